"""The house: what may import what, and how large a file may be."""

import ast
import pathlib
import subprocess
import sys

import keras_crossreg

PACKAGE = pathlib.Path(keras_crossreg.__file__).parent
FILES = {p.relative_to(PACKAGE).as_posix(): p for p in PACKAGE.rglob("*.py")}
# What takes of private API of Keras.
PRIVATE = {"_keras.py", "_keras_backends.py"}
TESTS = pathlib.Path(__file__).parent
BACKENDS = {"jax", "tensorflow", "torch"}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_imports_keep_the_contracts_of_pyproject():
    command = pathlib.Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [command, "--no-cache"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


def test_two_modules_import_private_keras():
    users = {
        name
        for name, path in FILES.items()
        if any(m.startswith("keras.src") for m in imported_modules(path))
    }
    assert users == PRIVATE
    text = "".join(p.read_text() for n, p in FILES.items() if n not in PRIVATE)
    assert "keras.src" not in text


def test_no_file_is_long():
    lengths = {n: len(p.read_text().splitlines()) for n, p in FILES.items()}
    assert max(lengths.values()) <= 450, lengths
    assert lengths["cross_reg_model.py"] < 400


def test_neutral_tests_import_no_backend():
    for path in TESTS.rglob("*.py"):
        if "backend" in path.relative_to(TESTS).parts:
            continue
        if path.name == "conftest.py":
            # It sets them up.
            continue
        roots = {m.split(".")[0] for m in imported_modules(path)}
        assert not roots & BACKENDS, path


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").exists()
