"""Training runs in processes of their own, some of which are killed."""

import multiprocessing
import os
import pathlib
import signal

import keras
import numpy as np
from helpers import EAGER
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import random_states

# The processes start as forks of one that has imported Keras and its backend,
# and run nothing before: an import each would take most of the time.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["keras"])


def in_process(function, *args, **kwargs):
    """Runs a function of a module elsewhere, and returns its exit code."""
    process = CONTEXT.Process(target=function, args=args, kwargs=kwargs)
    process.start()
    process.join()
    return process.exitcode


class Die(keras.callbacks.Callback):
    """`kill -9` at the end of a batch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def overflowing(optimizer, scale):
    """Loss scaling that begins with steps left out."""
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=scale)


def state(model):
    """All that training moves, as one dict of arrays."""
    parts = {
        "weights": model.weights,
        "seeds": random_states(model),
        "optimizer": model.optimizer.variables,
        "rho_optimizer": model.rho_optimizer.variables,
    }
    return {
        f"{name}_{i}": keras.ops.convert_to_numpy(variable.value)
        for name, variables in parts.items()
        for i, variable in enumerate(variables)
    }


def compiled(kind):
    """A model to train, of the dtype policy or the variant that `kind` says."""
    mixed, averages = kind == "mixed_float16", kind == "averages"
    keras.config.set_dtype_policy(kind if mixed else "float32")
    adam = keras.optimizers.Adam(0.01, use_ema=averages)
    rho_adam = keras.optimizers.Adam(0.05, use_ema=averages)
    if mixed:
        adam = overflowing(adam, 2.0**17)
        rho_adam = overflowing(rho_adam, 2.0**16)
    try:
        return compile_model(
            make_model(),
            optimizer=adam,
            rho_optimizer=rho_adam,
            reg_freq=2,
            reg_warmup=1,
            run_eagerly=EAGER and kind != "compiled",
        )
    finally:
        keras.config.set_dtype_policy("float32")


def train(kind, folder=None, die_at=None):
    """A run that can go on; returns its state, or saves it in the folder."""
    model = compiled(kind)
    callbacks = []
    if folder:
        backup = str(pathlib.Path(folder) / "backup")
        callbacks = [keras.callbacks.BackupAndRestore(backup)]
    if die_at:
        callbacks.append(Die(*die_at))
    model.fit(
        *make_data(),
        batch_size=8,
        # Three batches, and every other step takes one.
        reg_data=make_data(12, seed=1),
        reg_batch_size=4,
        # Elsewhere the order is one of the process: Keras does not keep it.
        shuffle=keras.backend.backend() == "tensorflow",
        epochs=6,
        merge_epochs=2,
        callbacks=callbacks,
        verbose=0,
    )
    if folder is None:
        return state(model)
    np.savez(pathlib.Path(folder) / "state.npz", **state(model))


def go_on(model, epochs=2):
    """In the same order always."""
    model.fit(
        *make_data(),
        batch_size=8,
        shuffle=False,
        reg_data=make_data(12, seed=1),
        reg_batch_size=4,
        epochs=epochs,
        verbose=0,
    )
    return model


def go_on_with_files(folder):
    """Trains every model in the folder on, and saves the state."""
    for path in pathlib.Path(folder).glob("*.keras"):
        model = go_on(keras.models.load_model(path))
        np.savez(path.with_suffix(".npz"), **state(model))
