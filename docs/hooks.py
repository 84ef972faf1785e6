"""What the theme leaves to do in the text of a page.

Equations become MathML, which browsers draw without a script or a font; a mean
and its standard error stay on one line.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(
    r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>',
    re.DOTALL,
)


def on_page_content(content: str, **kwargs: Any) -> str:
    def to_mathml(match: re.Match[str]) -> str:
        latex = html.unescape(match[2]).strip()
        display = "block" if match[1] == "[" else "inline"
        return convert(latex, display=display)

    return EQUATION.sub(to_mathml, content).replace(" ± ", "&nbsp;±&nbsp;")
