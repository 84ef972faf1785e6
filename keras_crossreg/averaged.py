"""A plain Keras model that averages sampled predictions inside."""

from __future__ import annotations

import keras

from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.sampling.averaged_model import AveragedModel


def averaged(
    model: CrossRegModel, num_samples: int, noise: str = "random"
) -> keras.Model:
    """A plain `keras.Model` that samples and averages inside.

    For `export()`, for serving, and wherever a model is called rather than
    asked to `predict`. A call of it returns what `model.predict` returns with
    `eval_num_samples=num_samples`. It shares the weights of the model, and
    averages in the space of the loss that the model is compiled with. A model
    that is not compiled has no loss: its outputs are averaged as they are.

    With `noise="random"`, the noise is drawn from the state in which training
    left the seeds, and the state is put back. So a request that is repeated
    gets the same answer, on every server, and `model` trains on as if it had
    not predicted. The noise of an example depends on its place in the batch
    and on the size of the batch. The error of `num_samples` samples is that
    of noise drawn anew; only, to repeat a request does not average it out.
    Calls at the same moment may disturb each other's seeds: they get other
    noise of the same kind.

    With `noise="fixed"`, it is drawn once, ahead: K constants for each noise
    of the model, which all rows of all batches share. What a row gets depends
    on that row alone, not on its place or its batch; nothing is random when
    the model runs, and any runtime can run it. Each row has an average of
    `num_samples` samples, with the error that these have; but the error is a
    function of the row, which does not average out over rows. The constants
    follow from the seeds of the model, and have the size of `num_samples`
    examples at each noise.

    Args:
        model: A `CrossRegModel` that was built.
        num_samples: Integer, at least 1. Sampled predictions to average, in
            one pass over a batch that many times as large; more than 8 in
            several passes, one after the other.
        noise: `"random"` or `"fixed"`. Defaults to `"random"`.

    Returns:
        A `keras.Model`. It is for predictions: rho do not learn in it.

    Raises:
        ValueError: If `model` is not a `CrossRegModel` that was built; if
            `num_samples` is below 1; if `noise` is unknown; with
            `noise="fixed"`, if a noise has an open size beside that of the
            batch, such as a number of time steps, or a layer draws with
            other functions than `kcr.random.uniform` and `kcr.random.normal`,
            or for other rows than those of the batch.

    Example:

    >>> import tensorflow as tf
    >>> kcr.averaged(model, 32).export("served")
    >>> served = tf.saved_model.load("served")
    >>> served.serve(x_test)

    Without random numbers; with the extra `export`, `format="onnx"` does as
    well:

    >>> fixed = kcr.averaged(model, 32, noise="fixed")
    >>> fixed.export("fixed")
    """
    if not isinstance(model, CrossRegModel) or not model.built:
        raise ValueError(
            "`averaged` expects a `CrossRegModel` that was fitted, called or "
            f"loaded. Received: model={model} of type {type(model).__name__}"
        )
    return AveragedModel.of(model, num_samples, noise)
