"""Random networks of Keras's layers, with samples that are known.

A recipe is plain data, which `hypothesis` draws and makes smaller.
"""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers as L
from keras import ops
from sample_table import SampleTable

import keras_crossreg as kcr

ROWS = 4
SHAPES = {
    "vector": (6,),
    "sequence": (6, 3),
    "image": (6, 6, 2),
    "tokens": (6,),
}


@keras.saving.register_keras_serializable("tests")
class LossOf(L.Layer):
    """Adds the mean or the sum of squares to the loss."""

    def __init__(self, reduction, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.reduction = reduction

    def call(self, inputs):
        squares = ops.square(ops.cast(inputs, "float32"))
        self.add_loss(0.1 * getattr(ops, self.reduction)(squares))
        return inputs


# Of any rank.
ANY = {
    "table": lambda n: SampleTable(0.2 + 0.1 * n),
    "dense": lambda n: L.Dense(3 + n % 3),
    "penalized": lambda n: L.Dense(3, kernel_regularizer="l2"),
    # Of sixteen bits, Keras cannot add them to other losses.
    "active": lambda n: L.Dense(3, activity_regularizer="l2", dtype="float32"),
    "activity": lambda n: L.ActivityRegularization(l2=0.1, dtype="float32"),
    "mean loss": lambda n: LossOf("mean"),
    "sum loss": lambda n: LossOf("sum"),
    "relu": lambda n: L.ReLU(),
    "activation": lambda n: L.Activation(["tanh", "gelu", "elu"][n % 3]),
    "dropout": lambda n: L.Dropout(0.5),
    "noise": lambda n: L.GaussianNoise(0.5),
    "layer norm": lambda n: L.LayerNormalization(),
    "batch norm": lambda n: L.BatchNormalization(momentum=0.5),
}
OF_VECTORS = {
    "reshape": lambda n: L.Reshape((-1, 1)),
    "unit norm": lambda n: L.UnitNormalization(),
}
OF_SEQUENCES = {
    "lstm": lambda n: L.LSTM(3, return_sequences=bool(n % 2)),
    "gru": lambda n: L.GRU(3, return_sequences=bool(n % 2)),
    "both ways": lambda n: L.Bidirectional(L.GRU(2, return_sequences=True)),
    "conv 1d": lambda n: L.Conv1D(3, 3, padding="same"),
    "max 1d": lambda n: L.MaxPooling1D(2, padding="same"),
    "global 1d": lambda n: L.GlobalAveragePooling1D(),
    "attention": lambda n: "attention",
}
OF_IMAGES = {
    "conv 2d": lambda n: L.Conv2D(3, 3, padding="same"),
    "depthwise": lambda n: L.DepthwiseConv2D(3, padding="same"),
    "max 2d": lambda n: L.MaxPooling2D(2, padding="same"),
    "average 2d": lambda n: L.AveragePooling2D(2, padding="same"),
    "global 2d": lambda n: L.GlobalMaxPooling2D(),
    "group norm": lambda n: L.GroupNormalization(1),
}
JOINS = ["add", "concatenate", "nested", "shared", "shared nested"]
BY_RANK = {2: OF_VECTORS, 3: OF_SEQUENCES, 4: OF_IMAGES}
STEPS = sorted(
    {*ANY, *OF_VECTORS, *OF_SEQUENCES, *OF_IMAGES, *JOINS, "flatten"}
)

FORMS = ["functional", "subclass", "nested", "wrapped"]

recipes = st.fixed_dictionaries(
    {
        "input": st.sampled_from(sorted(SHAPES)),
        "steps": st.lists(
            st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=7
        ),
        # Where the noise is, one at the least.
        "noise": st.lists(st.integers(0, 7), min_size=1, max_size=3),
        "second_input": st.booleans(),
        "second_output": st.booleans(),
        "loss": st.sampled_from(["mse", "logits", "probabilities"]),
        "form": st.sampled_from(FORMS),
        # The last is of several passes, on every backend.
        "num_samples": st.sampled_from([1, 2, 3, 4, 5, 9]),
        "samples_per_pass": st.sampled_from([2, 16]),
        "policy": st.sampled_from(["float32"] * 7 + ["mixed_bfloat16"]),
        "seed": st.integers(0, 99),
    }
)


def inner_model(x, noisy):
    inner = keras.Input(x.shape[1:], dtype=x.dtype)
    y = L.Dense(3)(inner)
    if noisy:
        y = SampleTable(0.4)(y)
    return keras.Model(inner, L.Dense(x.shape[-1], activation="tanh")(y))


def twice(layer, x):
    """A layer on a tensor, and on what it makes of it, and their sum."""
    first = layer(x)
    for part in [layer, *getattr(layer, "layers", ())]:
        if isinstance(part, SampleTable):
            part.calls_in_pass = 2
    return L.Add()([first, layer(first)])


def apply(name, n, x, before):
    """One step of a recipe; what does not fit a tensor leaves it as it is."""
    rank = len(x.shape)
    if name == "flatten":
        return L.Flatten()(x) if rank > 2 else x
    if name in ("add", "concatenate"):
        fits = [b for b in before if b.shape[:-1] == x.shape[:-1]]
        other = fits[n % len(fits)] if fits else x
        if name == "concatenate":
            return L.Concatenate()([x, other])
        return L.Add()([x, L.Dense(x.shape[-1])(other)])
    if name == "nested":
        return inner_model(x, noisy=n % 2)(x)
    if name == "shared nested":
        return twice(inner_model(x, noisy=n % 2), x)
    if name == "shared":
        return twice(SampleTable(0.3) if n % 2 else L.Dense(x.shape[-1]), x)
    make = ANY.get(name) or BY_RANK[rank].get(name)
    layer = make(n) if make else None
    if layer == "attention":
        return L.MultiHeadAttention(1, 2)(x, x)
    return layer(x) if layer else x


class Around(kcr.CrossRegModel):
    """A subclass that calls a functional model."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def build(recipe):
    """The model of a recipe, compiled, and its data `(x, y)`."""
    keras.utils.set_random_seed(recipe["seed"])
    rng = np.random.default_rng(recipe["seed"])
    shape = SHAPES[recipe["input"]]
    keras.config.set_dtype_policy(recipe["policy"])
    try:
        if recipe["input"] == "tokens":
            inputs = keras.Input(shape, dtype="int32", name="first")
            data = {"first": rng.integers(0, 5, (ROWS, *shape))}
            # Not all of a row is masked.
            data["first"][:, 0] = 1
            x = L.Embedding(
                5, 3, mask_zero=True, embeddings_initializer="glorot_normal"
            )(inputs)
        else:
            inputs = keras.Input(shape, name="first")
            data = {"first": rng.normal(size=(ROWS, *shape))}
            x = inputs
        before = [x]
        for i, (name, n) in enumerate(recipe["steps"]):
            if i in recipe["noise"]:
                x = SampleTable(0.3)(x)
            x = apply(name, n, x, before)
            before.append(x)
        if max(recipe["noise"]) >= len(recipe["steps"]):
            x = SampleTable(0.3)(x)
        if len(x.shape) == 3:
            x = L.GlobalAveragePooling1D()(x)
        elif len(x.shape) == 4:
            x = L.Flatten()(x)
        structure = {"first": inputs}
        if recipe["second_input"]:
            structure["second"] = keras.Input((2,), name="second")
            data["second"] = rng.normal(size=(ROWS, 2))
            x = L.Concatenate()([x, L.Dense(2)(structure["second"])])
        classes = recipe["loss"] != "mse"
        activation = "softmax" if recipe["loss"] == "probabilities" else None
        head = L.Dense(
            3 if classes else 2, activation=activation, dtype="float32"
        )
        outputs = {"a": head(x)}
        y = {"a": rng.normal(size=(ROWS, 2))}
        losses = {"a": "mse"}
        if classes:
            y["a"] = rng.integers(0, 3, ROWS)
            losses["a"] = keras.losses.SparseCategoricalCrossentropy(
                from_logits=activation is None
            )
        if recipe["second_output"]:
            outputs["b"] = L.Dense(1, dtype="float32")(x)
            y["b"], losses["b"] = rng.normal(size=(ROWS, 1)), "mse"
    finally:
        keras.config.set_dtype_policy("float32")
    form = recipe["form"]
    if form == "functional":
        model = kcr.CrossRegModel(structure, outputs)
    else:
        inner = keras.Model(structure, outputs)
        if form == "subclass":
            model = Around(inner)
            model(data)
        elif form == "wrapped":
            model = kcr.wrap(inner)
        else:
            model = kcr.CrossRegModel(structure, inner(structure))
    model.compile(
        keras.optimizers.SGD(0.0),
        losses,
        rho_optimizer=keras.optimizers.SGD(1.0),
        num_samples=recipe["num_samples"],
        samples_per_pass=recipe["samples_per_pass"],
        # That of the other set is made in the same way.
        hypergradient="direct",
        run_eagerly=not recipe.get("compiled"),
    )
    data = {
        name: a.astype("int32" if a.dtype.kind == "i" else "float32")
        for name, a in data.items()
    }
    y = {
        name: a.astype("int32" if a.dtype.kind == "i" else "float32")
        for name, a in y.items()
    }
    return model, losses, data, y
