"""What a release says of itself, and what CONTRIBUTING promises."""

import pathlib
import re
import tomllib

import keras
import numpy as np
import pytest

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


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_lines_of_the_readme_run():
    text = (ROOT / "README.md").read_text()
    block = re.search("^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[
        1
    ]
    random = np.random.default_rng(0)
    data = {
        f"{kind}_{name}": array
        for name in ("train", "reg", "test")
        for kind, array in (
            ("x", random.normal(size=(40, 4)).astype("float32")),
            ("y", random.integers(0, 2, 40)),
        )
    }
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    namespace = {**data, "model": model}
    exec(block, namespace)
    assert namespace["model"].rho_optimizer.iterations > 0


def test_links_of_the_readme_lead_to_files():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]
