"""The pages of the API show every public name, and each of them once."""

import collections
import inspect
import pathlib
import re

import keras_crossreg as kcr

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
SHOWN = collections.Counter(
    name
    for page in PAGES
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
)


def is_file(name):
    return (ROOT / name.replace(".", "/")).with_suffix(".py").exists()


def public_names():
    modules = {
        f"keras_crossreg.{name}": module
        for name in kcr.__all__
        if inspect.ismodule(module := getattr(kcr, name))
    }
    for path, module in {"keras_crossreg": kcr, **modules}.items():
        for name in module.__all__:
            if not inspect.ismodule(getattr(module, name)):
                yield f"{path}.{name}"


# A base class, and a chooser by name.
ELSEWHERE = {
    "keras_crossreg.hypergradients.Hypergradient",
    "keras_crossreg.hypergradients.get",
}


def test_no_page_shows_a_file_instead_of_the_function_in_it():
    assert not [name for name in SHOWN if is_file(name)]


def test_every_public_name_is_shown_once():
    shown = collections.Counter()
    for name, count in SHOWN.items():
        folder, _, last = name.rpartition(".")
        # The function of a file of its own name.
        own = is_file(folder) and folder.endswith(f".{last}")
        shown[folder if own else name] += count
    wanted = set(public_names()) - ELSEWHERE
    assert set(shown) == wanted
    assert set(shown.values()) == {1}


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    nav = set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))
    docs = ROOT / "docs"
    pages = {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}
    assert nav == pages
