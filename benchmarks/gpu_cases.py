"""What `gpu.py` measures, and how: one case after the other."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from gpu_networks import NETWORKS

import keras_crossreg as kcr

IMAGE = (32, 32, 3)
CLASSES = 10
# K of predictions.
SAMPLES = 16
# The r of the defaults: so many steps of theta to one of rho.
REG_FREQ = 12
KINDS = ("keras", "frozen", "learning", "none")
PREDICTIONS = ("plain", "K=16")
AUGMENTATIONS = ("keras", "learned")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the results.

    Attributes:
        what: `"fit"`, `"predict"` or `"augment"`.
        kind: Which of those that are compared.
    """

    what: str
    kind: str
    network: str = "VGG-16"
    batch_size: int = 128
    precision: str = "float32"
    steps_per_execution: int = 1

    @property
    def setting(self) -> str:
        """All but the kind."""
        network = "" if self.what == "augment" else f"{self.network}, "
        steps = self.steps_per_execution
        return (
            f"{self.what}: {network}{self.batch_size}, {self.precision}"
            f"{f', {steps} steps an execution' if steps > 1 else ''}"
        )

    @property
    def name(self) -> str:
        return f"{self.setting}: {self.kind}"


def cases() -> list[Case]:
    """All, what matters most first: a run that is short has these."""
    fit = functools.partial(Case, "fit")
    settings: list[dict[str, Any]] = [
        {},
        # What someone would train with who is in a hurry.
        dict(precision="mixed_bfloat16", batch_size=1024),
        dict(network="transformer"),
        dict(network="WRN-16-4"),
        dict(steps_per_execution=8),
        dict(precision="mixed_float16"),
        dict(batch_size=1024),
        dict(precision="mixed_bfloat16"),
    ]
    settings += [
        dict(
            network=network,
            batch_size=batch_size,
            precision=precision,
            steps_per_execution=steps,
        )
        for steps, precision, batch_size, network in itertools.product(
            (1, 8), PRECISIONS, (128, 1024), NETWORKS
        )
    ]
    found = [fit(kind, **settings[0]) for kind in KINDS]
    found += [Case("predict", kind) for kind in PREDICTIONS]
    found += [Case("augment", kind) for kind in AUGMENTATIONS]
    found += [
        fit(kind, **setting) for setting in settings[1:] for kind in KINDS
    ]
    found += [
        Case("predict", kind, network)
        for network in NETWORKS
        for kind in PREDICTIONS
    ]
    if keras.backend.backend() == "torch":
        # Keras refuses more there.
        found = [case for case in found if case.steps_per_execution == 1]
    return list(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class Size:
    """How long a case runs: steps of an epoch, and epochs that are timed.

    `widths`: of networks that are not at their own.
    """

    steps: int = 96
    epochs: int = 5
    widths: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    batch_size: int | None = None

    def steps_of(self, batch_size: int) -> int:
        """A multiple of r, and of the steps of an execution."""
        return self.steps if batch_size <= 128 else max(self.steps // 4, 24)


# On a CPU; seconds in all.
SMOKE = Size(
    steps=24,
    epochs=2,
    widths={
        "VGG-16": dict(width=1),
        "WRN-16-4": dict(width=1),
        "transformer": dict(width=8, depth=1),
    },
    batch_size=4,
)


class Clock(keras.callbacks.Callback):
    """When each epoch ended: when the device had finished its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # A number is there once all that leads to it has been computed.
        float(logs["loss"])
        self.ends.append(time.perf_counter())


def build(case: Case, size: Size, noise: Any) -> kcr.CrossRegModel:
    inputs = keras.Input(IMAGE)
    body = NETWORKS[case.network](**size.widths.get(case.network, {}))
    # Logits, and their loss, in float32.
    outputs = keras.layers.Dense(CLASSES, dtype="float32")(body(inputs, noise))
    return kcr.CrossRegModel(inputs, outputs)


def noise_of(kind: str) -> Callable[[], keras.layers.Layer] | None:
    if kind in ("none", "plain"):
        return None
    if kind == "keras":
        return lambda: keras.layers.GaussianNoise(0.3)
    return kcr.layers.GaussianNoiseScale


def images(count: int) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((count, *IMAGE), "float32")
    return x


def fit(case: Case, size: Size) -> dict[str, Any]:
    """Seconds before the first epoch is as the others, and ms a step."""
    model = build(case, size, noise_of(case.kind))
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        reg_freq=REG_FREQ,
        # As in the steps that come later.
        reg_warmup=0,
        steps_per_execution=case.steps_per_execution,
    )
    rows = size.batch_size or case.batch_size
    steps = size.steps_of(case.batch_size)
    x = images(rows * steps)
    y = np.arange(len(x)) % CLASSES
    learning = {}
    if case.kind == "learning":
        learning = dict(
            reg_data=(x[: 8 * rows], y[: 8 * rows]),
            reg_batch_size=max(rows // 8, 1),
        )
    elif case.kind == "frozen":
        model.freeze_rho()
    clock = Clock()
    begin = time.perf_counter()
    model.fit(
        x,
        y,
        batch_size=rows,
        epochs=size.epochs + 1,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
        **learning,
    )
    seconds = np.diff([begin, *clock.ends])
    first, later = seconds[0], seconds[1:]
    return {
        "first_s": round(float(first - np.median(later)), 3),
        **milliseconds(later / steps),
    }


def predict(case: Case, size: Size) -> dict[str, Any]:
    """Of K samples of a batch, or of as many plain predictions in one batch."""
    model = build(case, size, noise_of(case.kind))
    model.compile(eval_num_samples=SAMPLES)
    rows = size.batch_size or case.batch_size
    x = images(rows)
    if case.kind == "plain":
        x = np.concatenate([x] * SAMPLES)
    return timed(lambda: model.predict(x, len(x), verbose=0), size)


class Augmented(keras.Model):
    """The means of images that were transformed: little to copy back."""

    def __init__(self, layers: list[keras.layers.Layer]) -> None:
        super().__init__()
        self.transforms = layers

    def call(self, images: Any) -> Any:
        for layer in self.transforms:
            images = layer(images, training=True)
        return keras.ops.mean(images, axis=(1, 2, 3))


def augment(case: Case, size: Size) -> dict[str, Any]:
    """What our layer does, and Keras's, one for each transform."""
    if case.kind == "learned":
        layers = [
            kcr.layers.LearnedAugmentation(brightness=None, contrast=None)
        ]
    else:
        layers = [
            keras.layers.RandomTranslation(0.03, 0.03),
            keras.layers.RandomRotation(0.01),
            keras.layers.RandomShear(0.05),
            keras.layers.RandomZoom(0.05),
        ]
    model = Augmented(layers)
    rows = size.batch_size or case.batch_size
    model.compile()
    x = images(rows)
    return timed(lambda: model.predict(x, rows, verbose=0), size)


def timed(run: Callable[[], Any], size: Size) -> dict[str, Any]:
    """Of a call that returns numbers on the host."""
    seconds = []
    for _ in range(1 + 4 * size.epochs):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    first = seconds[0] - statistics.median(seconds[1:])
    return {"first_s": round(first, 3), **milliseconds(np.array(seconds[1:]))}


def milliseconds(seconds: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(1e3 * seconds, [0.0, 0.5, 1.0]).round(4)
    return {"ms": float(median), "low": float(low), "high": float(high)}


WHAT = {"fit": fit, "predict": predict, "augment": augment}


def measure(case: Case, size: Size) -> dict[str, Any]:
    """A row: the case, and what was seen of it."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(case.precision)
    before = begin_memory()
    try:
        with warnings.catch_warnings():
            # These runs are short, and their data random.
            warnings.simplefilter("ignore", UserWarning)
            seen = WHAT[case.what](case, size)
        seen["peak_mib"] = peak_memory(before)
    except Exception as error:
        # A case that fails, for want of memory above all, is one row.
        seen = {"error": f"{type(error).__name__}: {error}"[:500]}
    finally:
        keras.config.set_dtype_policy("float32")
    return {"case": case.name, **dataclasses.asdict(case), **seen}


# ---- The device --------------------------------------------------------------


def device() -> str:
    """The name of what runs, of its maker."""
    if keras.backend.backend() == "jax":
        import jax

        return str(jax.local_devices()[0].device_kind)
    if keras.backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
        return "cpu"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu"
    details = tf.config.experimental.get_device_details(gpus[0])
    return str(details.get("device_name", gpus[0].name))


def begin_memory() -> int:
    """Begins to look for the peak; that of before, where it stays."""
    backend = keras.backend.backend()
    if backend == "jax":
        return memory_of_jax()
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return 0
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
    return 0


def peak_memory(before: int) -> float | None:
    """MiB of the device at most; `None` where the backend does not tell.

    JAX tells that of the whole process: `None` where an earlier case had more.
    """
    backend, peak = keras.backend.backend(), 0
    if backend == "jax":
        peak = memory_of_jax()
    elif backend == "torch":
        import torch

        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
    else:
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return round(peak / 2**20, 1) if peak > before else None


def memory_of_jax() -> int:
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0))


def versions() -> dict[str, str]:
    backend = keras.backend.backend()
    return {
        "python": platform.python_version(),
        "keras": keras.__version__,
        backend: importlib.metadata.version(backend),
        "keras_crossreg": kcr.__version__,
    }
