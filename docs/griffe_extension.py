"""Docstrings and signatures of Keras's manner, as mkdocstrings reads them."""

from __future__ import annotations

import re
from typing import Any

import griffe

PROSE = "Example", "Input shape", "Output shape", "Reference"


def translate(docstring: str) -> str:
    docstring = docstring.replace(
        "\nCall arguments:\n", "\nOther Parameters: Call arguments:\n"
    )
    for title in PROSE:
        # Their text may be indented, which Markdown would take for code.
        docstring = re.sub(
            rf"^{title}:\n((?:    .*\n?)*)",
            lambda match, title=title: (
                f"**{title}:**\n\n" + re.sub("(?m)^    ", "", match[1])
            ),
            docstring,
            flags=re.MULTILINE,
        )
    # Sessions up to the next empty line.
    return re.sub(
        r"^(>>> (?:.+\n?)+)",
        lambda match: f"```pycon\n{match[1].rstrip()}\n```\n",
        docstring,
        flags=re.MULTILINE,
    )


class KerasDocstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = translate(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        for parameter in func.parameters:
            # Says nothing.
            if str(parameter.annotation) == "Any":
                parameter.annotation = None
            # The number, not the name of a constant or of a field.
            try:
                constant = func.module[str(parameter.default)]
                if constant.is_attribute:
                    parameter.default = constant.value
            except (KeyError, ValueError, griffe.AliasResolutionError):
                continue
