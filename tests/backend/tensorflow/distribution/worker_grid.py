"""Two workers with everything else; see `test_distribution.py`."""

import pathlib
import sys

import keras
import tensorflow as tf
from helpers import compile_model
from helpers import make_data
from helpers import values
from still import still_model
from still import train
from still import twin_data
from worker import keep
from worker import save_kept
from worker import strategy

TASK = strategy.cluster_resolver.task_id


def keep_model(name, model):
    keep(f"{name}: steps", model.optimizer.iterations.numpy())
    keep(f"{name}: rho steps", model.rho_optimizer.iterations.numpy())
    for i, value in enumerate(values(model.weights)):
        keep(f"{name}: weight {i}", value)


def own_data(rows, seed):
    """A dataset of each worker's own, of unknown length, that is not split."""
    x, y = make_data(rows, seed=seed + TASK)
    dataset = tf.data.Dataset.from_generator(
        lambda: ((x[i : i + 2], y[i : i + 2]) for i in range(0, rows, 2)),
        output_signature=(
            tf.TensorSpec((None, 3), "float32"),
            tf.TensorSpec((None,), "int32"),
        ),
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return dataset.with_options(options)


def different_lengths():
    """5 and 3 training batches; 2 and 3 regularization batches, repeated."""
    model, _ = train(
        strategy,
        make=lambda: still_model(batch_norm=False),
        x=own_data([10, 6][TASK], seed=0),
        y=None,
        batch_size=None,
        epochs=2,
        reg_data=own_data([4, 6][TASK], seed=2),
        reg_batch_size=None,
    )
    keep_model("different lengths", model)


def own_batches():
    """`train_on_batch`: the workers' batches make one."""
    with strategy.scope():
        model = compile_model(still_model(batch_norm=False), run_eagerly=False)
    model.train_on_batch(
        *make_data(4, seed=TASK), reg_data=make_data(3, seed=2 + TASK)
    )
    keep_model("own batches", model)


def merged():
    model, _ = train(
        strategy,
        make=lambda: still_model(batch_norm=False),
        merge_epochs=1,
        reg_data=make_data(16, seed=1),
    )
    keep_model("merged", model)


def resumed(folder):
    """Saved by the chief, loaded by all."""
    model, history = train(strategy, epochs=2)
    keep("used: validation", history["val_loss"])
    if TASK == 0:
        model.save(folder / "resumed.keras")
    # Both wait for each other here.
    x, y = make_data(7, seed=3)
    keep("used: evaluation", model.evaluate(x, y, batch_size=4, verbose=0))
    keep("used: prediction", model.predict(x, batch_size=4, verbose=0))
    keep("used: samples", model.predict_samples(x, 2, verbose=0))
    with strategy.scope():
        model = keras.saving.load_model(folder / "resumed.keras")
    x, y = twin_data()
    model.fit(
        x,
        y,
        batch_size=8,
        initial_epoch=2,
        epochs=3,
        reg_data=make_data(14, seed=1),
        reg_batch_size=6,
        shuffle=False,
        verbose=0,
    )
    keep_model("resumed", model)


def backed_up(folder):
    """`BackupAndRestore` in a directory of each worker's own."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(folder / f"backup_{TASK}")
    try:
        train(strategy, callbacks=[backup, Stop()])
    except KeyboardInterrupt:
        model, history = train(strategy, callbacks=[backup])
        assert len(history["loss"]) == 1
        keep_model("backed up", model)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    different_lengths()
    own_batches()
    merged()
    resumed(folder)
    backed_up(folder)
    save_kept(folder)
