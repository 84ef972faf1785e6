"""No step waits for the device: the host reads none of its numbers."""

import keras
import numpy as np
import pytest
from backend.host_reads import counted_reads
from helpers import slow_but

import keras_crossreg as kcr

pytestmark = pytest.mark.backend

STEPS, REG_FREQ = 32, 4


class AtEnds(keras.callbacks.Callback):
    """How many reads there were when each execution of steps had ended."""

    def __init__(self, reads):
        super().__init__()
        self.reads, self.counts = reads, []

    def on_train_batch_end(self, batch, logs=None):
        self.counts.append(self.reads.count)


def reads_between_steps(model, steps_per_execution, data=None, **arguments):
    """Those of all steps of an epoch but the first executions."""
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
        **arguments,
    )
    rng = np.random.default_rng(0)
    # The last execution of an epoch is shorter than the others.
    rows = 4 * (STEPS + (1 if steps_per_execution > 1 else 0))
    x = rng.normal(size=(rows, 3)).astype("float32")
    y = np.arange(rows) % 2
    with counted_reads() as reads:
        ends = AtEnds(reads)
        model.fit(
            x, y, batch_size=4, verbose=0, callbacks=[ends], **(data or {})
        )
    first = 8 // steps_per_execution
    return ends.counts[-1] - ends.counts[first - 1], reads


def network(layer):
    inputs = keras.Input((3,))
    hidden = layer(keras.layers.Dense(4)(inputs))
    return inputs, keras.layers.Dense(2)(hidden)


@pytest.mark.parametrize("steps_per_execution", [1, 8])
@pytest.mark.parametrize(
    "hypergradient",
    slow_but([None], [None, "direct", "one_step"]),
)
def test_steps_read_no_more_than_those_of_keras(
    hypergradient, steps_per_execution
):
    if steps_per_execution > 1 and keras.backend.backend() == "torch":
        pytest.skip("Keras refuses more steps an execution there")
    keras.utils.set_random_seed(0)
    plain = keras.Model(*network(keras.layers.GaussianNoise(0.3)))
    of_keras, _ = reads_between_steps(plain, steps_per_execution)
    model = kcr.CrossRegModel(*network(kcr.layers.GaussianNoiseScale()))
    rng = np.random.default_rng(1)
    reg = rng.normal(size=(64, 3)).astype("float32"), np.arange(64) % 2
    ours, reads = reads_between_steps(
        model,
        steps_per_execution,
        data=dict(reg_data=reg, reg_batch_size=4),
        num_samples=2,
        reg_freq=REG_FREQ,
        reg_warmup=0,
        **({} if hypergradient is None else {"hypergradient": hypergradient}),
    )
    rho_steps = int(model.rho_optimizer.iterations)
    assert rho_steps == STEPS // REG_FREQ
    # The optimizer of rho reads as often as that of theta, where Keras's does.
    limit = of_keras * (1 + 1 / REG_FREQ)
    assert ours <= limit, reads.places


def test_reads_are_seen():
    values = keras.ops.ones((3,))
    with counted_reads() as reads:
        float(values[0])
    assert reads.count
    before = reads.count
    float(values[0])
    assert reads.count == before
