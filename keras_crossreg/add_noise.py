"""Learned noise in a model that was made without."""

from __future__ import annotations

import keras

from keras_crossreg._keras import graph_structure
from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.own_steps import check_no_own_steps
from keras_crossreg.rewriting.graph import is_graph
from keras_crossreg.rewriting.graph import plain_graph
from keras_crossreg.rewriting.layer_choice import After
from keras_crossreg.rewriting.noise_insertion import NoiseInsertion
from keras_crossreg.rho import check_start


def add_noise(
    model: keras.Model,
    after: After = None,
    relative: bool | None = None,
    axis: int | tuple[int, ...] | None = None,
    initial_scale: float = 0.3,
    seed: int | None = None,
) -> CrossRegModel:
    """A `CrossRegModel` clone of a model, with noise whose scale is learned.

    The clone has the weights of the model, layers of the same names and
    configuration, and a `GaussianNoiseScale` at each of these places, so that
    every hidden activation sees noise once:

    - after each normalization layer of Keras. With a trainable gain gamma,
      sigma is in units of the *normalized* input,
      `outputs = inputs + sigma * gamma * eps`: what
      `gamma * (normalized + sigma * eps) + beta` gives. No gamma can outgrow
      that noise, in any single channel, as it could noise that is measured
      over all channels;
    - before each hidden activation that no such noise reaches, with
      `relative=True`: in units of the standard deviation of each example's
      own pre-activation. An `activation=` of a `Dense` or a convolution
      becomes an `Activation` layer of its own, `<name>_activation`.

    Softmax, and what is between the last layer with weights and the output,
    get none. The noise layers are called `<name>_noise`. As the noise goes to
    zero, the predictions become those of the model.

    Nested functional and sequential models are rewritten too, and become
    functional. A layer with weights that is called twice has one noise layer,
    as it has one set of weights (where its outputs are of the same shape); a
    layer without, such as one `ReLU` for a whole network, has one for each
    call. Noise that is there already is kept, and no other is put beside it.
    Layers inside of others, such as those of a transformer block that is one
    layer, and inside of subclassed models, are left as they are: name the
    block by `after`.

    A model that was trained without noise is disturbed less by a smaller
    `initial_scale`.

    Args:
        model: A functional or a built sequential `keras.Model`. It is not
            changed.
        after: Where the noise goes, instead: after each layer of this type or
            of these types; after each layer in whose name this regular
            expression is found (`re.search`); or after each layer for which
            this callable returns `True`. Defaults to `None`, the places above.
        relative: Boolean, for all of the noise: `True` for units of the
            standard deviation of each example's own input, `False` for units
            of the input. Defaults to `None`: in units of the normalized input
            after a normalization layer, `True` elsewhere.
        axis: As in `GaussianNoiseScale`: `-1` for a sigma per channel, `None`
            for one in each place. Defaults to `None`.
        initial_scale: Float, the first sigma. Not negative. Defaults to
            `0.3`.
        seed: Integer, optional random seed.

    Returns:
        A functional `CrossRegModel`, to be compiled.

    Raises:
        ValueError: If `model` is not a functional or a built sequential model,
            if its class has steps or a loss of its own, if one of its layers
            cannot be copied, if there is no place for noise, or if `after`
            matches no layer or all of them.

    Example:

    >>> model = keras.applications.MobileNetV2(weights="imagenet")
    >>> model = kcr.add_noise(model, initial_scale=0.1)
    >>> head = kcr.add_noise(other, after="head_dense|pooled", axis=-1)

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), section 4: noise on the
      normalized pre-activation.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`add_noise` expects a `keras.Model`. "
            f"Received: model={model} of type {type(model).__name__}"
        )
    if not is_graph(model):
        raise ValueError(
            "`add_noise` rewrites functional models and sequential models "
            "that were built. Build a sequential model with "
            "`model.build(input_shape)`. In a model with a `call` of its own, "
            "put `keras_crossreg.layers.GaussianNoiseScale` behind each "
            "normalization yourself, and `keras_crossreg.wrap(model)`. "
            f"Received: model={model} of type {type(model).__name__}"
        )
    check_no_own_steps(model, "add_noise")
    graph = plain_graph(model)
    insertion = NoiseInsertion(
        graph,
        after,
        relative=relative,
        axis=axis,
        initial_scale=check_start("initial_scale", initial_scale),
        seed=seed,
    )
    clone = insertion.clone(graph)
    if not insertion.num_noise:
        raise insertion.choice.no_place()
    insertion.copy_state()
    inputs, outputs = graph_structure(clone)
    return CrossRegModel(
        inputs, outputs, name=model.name, trainable=model.trainable
    )
