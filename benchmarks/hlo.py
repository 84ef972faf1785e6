"""How much XLA has to compile: instructions of HLO of each step.

    KERAS_BACKEND=jax python benchmarks/hlo.py --out hlo.jsonl

On TensorFlow and on JAX, with `jit_compile=True`, of a step of theta and one of
rho with the defaults, before and after XLA's optimizations for the device at
hand. A network is compiled at a small width, which does not change their
number. `--noise accelerator` draws noise on a CPU as it is drawn on a GPU:
what a GPU is given is then seen without one, before optimizations.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings
from typing import Any

KINDS = ("none", "keras", "frozen", "learning")
# Modules with fewer instructions are not of a step.
LEAST = 400
STAGES = {
    "given": "*before_optimizations.txt",
    "optimized": "*after_optimizations.txt",
}


def counted(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Instructions of each large module, in the order of compilation."""
    counts = {
        stage: {
            file.name.split(".")[0]: len(
                re.findall(r"^ +(?:ROOT )?\S+ = ", file.read_text(), re.M)
            )
            for file in sorted(folder.glob(pattern))
        }
        for stage, pattern in STAGES.items()
    }
    large = [m for m, count in counts["given"].items() if count >= LEAST]
    return [{stage: counts[stage].get(m) for stage in STAGES} for m in large]


def train(network: str, kind: str, noise: str) -> None:
    """Compiles and takes one step of theta, and one of rho."""
    import contextlib

    import keras
    import numpy as np
    from gpu_networks import NARROW
    from gpu_networks import NETWORKS

    import keras_crossreg as kcr

    layer = {
        "none": None,
        "keras": lambda: keras.layers.GaussianNoise(0.3),
    }.get(kind, kcr.layers.GaussianNoiseScale)
    inputs = keras.Input((32, 32, 3))
    outputs = NETWORKS[network](NARROW[network])(inputs, layer)
    model = kcr.CrossRegModel(inputs, keras.layers.Dense(10)(outputs))
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
        reg_freq=1,
        reg_warmup=0,
    )
    x = np.random.default_rng(0).normal(size=(128, 32, 32, 3))
    x, y = x.astype("float32"), np.arange(128) % 10
    reg = dict(reg_data=(x, y)) if kind == "learning" else {}
    if kind == "frozen":
        model.freeze_rho()
    drawn = (
        kcr.random.as_on_an_accelerator()
        if noise == "accelerator"
        else contextlib.nullcontext()
    )
    warnings.simplefilter("ignore", UserWarning)
    with drawn:
        model.fit(x, y, batch_size=128, verbose=0, **reg)


def measure(network: str, kind: str, noise: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--xla_dump_to={folder} --xla_dump_hlo_as_text "
            # Of what comes behind HLO.
            "--xla_backend_optimization_level=0"
        )
        subprocess.run(
            [sys.executable, __file__, "--train", network, kind, noise],
            env={**os.environ, "XLA_FLAGS": flags},
            check=True,
        )
        steps = counted(pathlib.Path(folder))
    return {
        "theta": steps[0],
        # JAX compiles one for every shape, TensorFlow may compile one twice.
        **({"rho": steps[-1]} if kind == "learning" else {}),
        "modules": len(steps),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--networks", nargs="+", default=["VGG-16"])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--noise", default="here")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train:
        train(*options.train)
        return
    for network in options.networks:
        for kind in options.kinds:
            row = {
                "backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
                "network": network,
                "kind": kind,
                "noise": options.noise,
                **measure(network, kind, options.noise),
            }
            print(json.dumps(row), flush=True)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
