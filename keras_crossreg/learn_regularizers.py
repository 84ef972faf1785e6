"""The regularizers that a model has already, learned."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg._keras import graph_structure
from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.own_steps import check_no_own_steps
from keras_crossreg.rewriting.graph import is_graph
from keras_crossreg.rewriting.graph import plain_graph
from keras_crossreg.rewriting.learned_clone import Key
from keras_crossreg.rewriting.learned_clone import LearnedClone
from keras_crossreg.rewriting.learned_clone import Row
from keras_crossreg.rewriting.learned_forms import Left
from keras_crossreg.sampling.row_probe import random_inputs
from keras_crossreg.text_table import print_table
from keras_crossreg.wrap import wrap


def learn_regularizers(model: keras.Model, verbose: int = 1) -> CrossRegModel:
    """A `CrossRegModel` clone of a model, which learns its regularizers.

    Everything that the user had chosen a strength for is learned on
    `reg_data`, from that strength on:

    - `Dropout` and `SpatialDropout1D`, `2D`, `3D`: by `LearnedDropout`, with
      masks of the same shape;
    - `GaussianDropout`: by `LearnedGaussianDropout`;
    - `GaussianNoise`: by `GaussianNoiseScale`;
    - `dropout=` and `recurrent_dropout=` of `LSTM`, `GRU`, `SimpleRNN` and of
      their cells: by `LearnedDropout`, one mask for all steps;
    - `RandomTranslation`, `RandomRotation`, `RandomShear`, `RandomZoom`,
      `RandomBrightness`, `RandomContrast`: by `LearnedAugmentation` with this
      one width. The first two start at the same range of pixels and degrees;
      the table says how the others differ;
    - `kernel_regularizer="l1"` or `"l2"`, and those of all other weights: by
      `LearnedL1` and `LearnedL2`. They have no strength: the norm of the
      weight is learned, from the one that it has. On one device.

    Layers inside of others are found wherever a layer keeps them in an
    attribute, a list or a dict: the dropout of `MultiHeadAttention`, of blocks
    such as those of KerasHub, of your own. So are nested models. The layer
    around them stays what it was; its class is derived from its own.

    All else is as in the model: weights, names, dtypes, `trainable`, layers
    that are called twice. Until something is learned, inference gives what
    the model gives, and training draws the same noise. A layer that is
    `trainable=False` keeps its start value until that is changed.

    What is left as it is, such as a strength of 0, noise of another kind, or
    ranges that are not symmetric, is in the table that is printed, with the
    reason. Weight decay belongs to the optimizer, which is not kept: `compile`
    the clone.

    Args:
        model: A functional or a built sequential `keras.Model`, or a built
            model with a `call` and a `get_config` of its own. It is not
            changed.
        verbose: `0` or `1`. `1` prints a table: what became what, what was
            left, and why. Defaults to `1`.

    Returns:
        A `CrossRegModel`, to be compiled. It is functional where `model` is.

    Raises:
        ValueError: If `model` is not a built `keras.Model`, if its class has
            steps or a loss of its own, if one of its layers cannot be copied,
            or if it has nothing that can be learned.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(64, activation="relu", kernel_regularizer="l2"),
    ...     keras.layers.Dropout(0.3),
    ...     keras.layers.Dense(2, activation="softmax"),
    ... ])
    >>> model = kcr.learn_regularizers(model)
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`learn_regularizers` expects a `keras.Model`. "
            f"Received: model={model} of type {type(model).__name__}"
        )
    if not model.built or not (is_graph(model) or model.weights):
        raise ValueError(
            "The model is not built, so that it has no weights to keep. Call "
            "it once on data, or `model.build(input_shape)`. "
            f"Received: model={model} of type {type(model).__name__}"
        )
    if is_graph(model) or not isinstance(model, CrossRegModel):
        check_no_own_steps(model, "learn_regularizers")
    run, clone = _run(model)
    unheard = _find_unheard(run, clone)
    if unheard:
        run, clone = _run(model, unheard)
    run.copy_state()
    if is_graph(model):
        inputs, outputs = graph_structure(clone)
        learning = CrossRegModel(
            inputs, outputs, name=model.name, trainable=model.trainable
        )
    else:
        learning = wrap(clone)
    if verbose:
        print_table(
            f'Regularizers of model: "{model.name}"',
            dict.fromkeys(("Was", "Is now", "Starts at"), "left"),
            map(_texts, run.rows),
            "",
        )
    return learning


def _run(
    model: keras.Model, unheard: frozenset[Key] = frozenset()
) -> tuple[LearnedClone, Any]:
    run = LearnedClone(unheard)
    if is_graph(model):
        clone = run.clone(plain_graph(model))
        _check_some(run, model)
        run.check_in_place()
        return run, clone
    clone = run.make_whole(model)
    _check_some(run, model)
    if not clone.built:
        # As loading would.
        clone.build_from_config(model.get_build_config())
    run.check_in_place()
    return run, clone


def _find_unheard(run: LearnedClone, clone: Any) -> frozenset[Key]:
    """Which layers inside of others a sampling pass would not reach."""
    nothing: frozenset[Key] = frozenset()
    if not run.find_unheard():
        return nothing
    try:
        inputs = random_inputs(clone)
        if inputs is None:
            return nothing
        clone(inputs, training=False)
    except Exception:
        # A model that does not take such inputs: `fit` will tell.
        return nothing
    return run.find_unheard()


def _check_some(run: LearnedClone, model: keras.Model) -> None:
    if run.num_learned:
        return
    left = [
        f"{row.name} ({row.kind}): {row.form.reason}"
        for row in run.rows
        if isinstance(row.form, Left)
    ]
    found = "; ".join(left) or (
        "no dropout, no noise, no random image layer and no weight regularizer"
    )
    raise ValueError(
        f"The model has nothing whose strength can be learned: {found}. Put "
        "learned noise into it by `keras_crossreg.add_noise(model)`. "
        f"Received: model={model} of type {type(model).__name__}"
    )


def _texts(row: Row) -> tuple[str, str, str]:
    was = f"{row.name} ({row.kind})"
    if isinstance(row.form, Left):
        return was, "left", row.form.reason
    note = f"; {row.form.note}" if row.form.note else ""
    return was, type(row.form.by).__name__, row.form.start + note
