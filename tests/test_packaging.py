"""What a release says of itself, and what CONTRIBUTING promises."""

import pathlib
import re
import tomllib

import keras_crossreg as kcr
from keras_crossreg.testing import check_rho_layer

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_in_one_place():
    assert "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", kcr.__version__)


def test_the_changelog_is_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    version, note = re.search(
        r"^## (\S+)( \(unreleased\))?$", text, re.MULTILINE
    ).groups()
    release, dev, _ = kcr.__version__.partition(".dev")
    assert version == release
    assert (note is not None) == bool(dev)


def test_the_walkthrough_of_a_rho_layer_ends_with_one_that_passes():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall("^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    namespace = {"__name__": "learned_shift"}
    exec(blocks[0], namespace)
    assert "check_rho_layer(LearnedShift" in blocks[1]
    # The last of its checks takes as long as all others: a compiled pass.
    check_rho_layer(
        namespace["LearnedShift"],
        {"initial_scale": 0.2},
        (4, 8),
        jit_compile=False,
    )


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    house = text.partition("## The house on one page")[2]
    house = house.partition("## Add a rho layer")[0]
    names = set(re.findall(r"`([a-z_]+(?:\.py|/))", house))
    package = ROOT / "keras_crossreg"
    missing = {
        name
        for name in names
        if not (package / name).exists() and not (ROOT / name).exists()
    }
    assert not missing
    # Every folder of the package has its line.
    folders = {f"{p.parent.name}/" for p in package.glob("*/__init__.py")}
    assert folders <= names
