"""Runs every Python block of the documentation, page by page.

The blocks of a page share one namespace. It starts with the imports, the data
and the model of "Getting started", as the pages say; only, the data are fewer,
and the model has seen some of them once.
"""

import contextlib
import pathlib
import re
import tempfile

import keras
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

START = pathlib.Path(__file__).parent / "getting_started.md"
ROWS = {"train": 256, "reg": 40, "val": 40, "test": 100}


def setup(namespace):
    data, model = re.findall(
        "^```python\n(.*?)^```", START.read_text(), re.DOTALL | re.MULTILINE
    )[:2]
    exec(data + model, namespace)
    for name, rows in ROWS.items():
        for array in f"x_{name}", f"y_{name}":
            namespace[array] = namespace[array][:rows]
    model = namespace["model"]
    model.compile(
        "adam",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        reg_freq=4,
        reg_warmup=0,
        run_eagerly=True,
    )
    model.fit(
        namespace["x_train"][:32],
        namespace["y_train"][:32],
        batch_size=8,
        reg_data=(namespace["x_reg"], namespace["y_reg"]),
        verbose=0,
    )

    # Blocks may write files.
    stack = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.chdir(folder))
    namespace["_stack"] = stack


def teardown(namespace):
    namespace["_stack"].close()
    keras.utils.clear_session()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    pattern="*.md",
    setup=setup,
    teardown=teardown,
).pytest()
