"""What the contract of rho layers asks of a layer in a model."""

from __future__ import annotations

import math
import pathlib
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.testing.rho_layer_probe import RhoLayerProbe
from keras_crossreg.testing.rho_layer_probe import is_something
from keras_crossreg.testing.rho_layer_probe import rho_of


class ModelContract(RhoLayerProbe):
    """Checks of a layer as a part of a `CrossRegModel`."""

    def symbolic(self, layer: Any) -> tuple[Any, Any]:
        """Inputs and outputs of a graph, with an open batch size."""

        def placeholder(array: Any, name: str | None = None) -> Any:
            # JAX has no integers of 64 bits unless it is asked for them.
            dtype = ops.convert_to_tensor(array[:0]).dtype
            return keras.Input(
                array.shape[1:],
                dtype=keras.backend.standardize_dtype(dtype),
                name=name,
            )

        if isinstance(self.x, dict):
            # Keras wants their names to be the keys.
            inputs: Any = {k: placeholder(a, k) for k, a in self.x.items()}
        else:
            inputs = tree.map_structure(placeholder, self.x)
        return inputs, layer(inputs, **self.call_kwargs)

    def model(self, **compile_kwargs: Any) -> tuple[Any, Any]:
        """A new layer in a compiled `CrossRegModel`, before a `Dense`."""
        layer = self.make()
        inputs, outputs = self.symbolic(layer)
        # These are operations, as a `Flatten` would complain of masks.
        features = ops.concatenate(
            [
                ops.reshape(y, (-1, math.prod(y.shape[1:])))
                for y in tree.flatten(outputs)
            ],
            axis=-1,
        )
        model = CrossRegModel(inputs, keras.layers.Dense(1)(features))
        model.compile(
            "sgd",
            "mse",
            rho_optimizer=keras.optimizers.Adam(0.1),
            num_samples=2,
            reg_freq=1,
            **compile_kwargs,
        )
        return model, layer

    def check_symbolic_call(self) -> None:
        layer = self.make()
        with self.trying("a symbolic call with an open batch size"):
            inputs, outputs = self.symbolic(layer)
        real = self.call(layer)
        shapes = [tuple(y.shape) for y in tree.flatten(outputs)]
        expected = [(None, *y.shape[1:]) for y in real]
        self.expect(
            shapes == expected,
            "a symbolic call with an open batch size must give outputs of "
            f"shapes {expected}. Received: {shapes}",
        )
        model = CrossRegModel(inputs, outputs)
        with self.trying("a sampling pass with another batch size"):
            twice = tree.map_structure(lambda a: np.concatenate([a, a]), self.x)
            model(twice, sampling=True)

    def check_gradients(self) -> None:
        layer = self.make()
        model = CrossRegModel(*self.symbolic(layer))
        self.expect(
            all(map(is_something, self.gradients(layer, model, sampling=True))),
            "`sampling` does not reach it inside a model. Derive it from "
            "`kcr.layers.RhoLayer`, and call `super().__init__(**kwargs)`.",
        )

    def check_weights_file(self, folder: pathlib.Path) -> None:
        path = folder / "model.weights.h5"
        layer, copy = self.make(), self.make()
        # This call moves the noise on.
        self.call(layer, sampling=True)
        with self.trying("saving and loading weights"):
            CrossRegModel(*self.symbolic(layer)).save_weights(path)
            CrossRegModel(*self.symbolic(copy)).load_weights(path)
        self.expect(
            self.same(layer.weights, copy.weights),
            "a copy that loads its weights must have the same weights.",
        )
        for flags in ({"sampling": True}, {"training": True}):
            self.expect(
                self.same(self.call(layer, **flags), self.call(copy, **flags)),
                "a copy that loads its weights must go on with the same "
                "noise. Keep the generator in `self.seed_generator`, which "
                "`RhoLayer` saves; save any other state yourself, in "
                "`save_own_variables()` and `load_own_variables()`.",
            )

    def check_fit_and_keras_file(self, folder: pathlib.Path) -> None:
        model, layer = self.model(run_eagerly=True)
        rho = rho_of(layer)
        before = [ops.convert_to_numpy(v) for v in rho]
        self.fit(model)
        still = [
            v.path
            for v, b in zip(rho, before, strict=True)
            if self.same([v], [b])
        ]
        self.expect(
            not still,
            f"`CrossRegModel.fit` does not move {still}. The rho of a layer "
            "that is not `trainable` do not learn.",
        )
        model.freeze_rho()
        before = [ops.convert_to_numpy(v) for v in rho]
        self.fit(model)
        self.expect(
            self.same(rho, before),
            "a rho moved in `CrossRegModel.fit` after `freeze_rho()`: nothing "
            "but the rho step may assign it.",
        )
        with self.trying("saving a model as a `.keras` file and loading it"):
            model.save(folder / "model.keras")
            loaded = keras.models.load_model(
                folder / "model.keras",
                custom_objects={self.layer_cls.__name__: self.layer_cls},
            )
        predictions = [m.predict(self.x, verbose=0) for m in (model, loaded)]
        self.expect(
            model.get_rho().keys() == loaded.get_rho().keys()
            and self.same(model.rho_variables, loaded.rho_variables)
            and self.same(predictions[:1], predictions[1:]),
            "a model that is loaded from a `.keras` file must have the same "
            "rho and the same predictions.",
        )

    def fit(self, model: Any) -> None:
        size = len(tree.flatten(self.x)[0])
        y = np.random.default_rng(2).normal(size=(size, 1)).astype("float32")
        with self.trying("`CrossRegModel.fit`"), warnings.catch_warnings():
            # A few rows are enough here, of which `fit` warns.
            warnings.filterwarnings("ignore", ".* regularization examples")
            # That a rho does not move says more here.
            warnings.filterwarnings("ignore", "No rho learns")
            model.fit(
                self.x, y, reg_data=(self.x, y), batch_size=size, verbose=0
            )

    def check_compiled(self, jit_compile: bool) -> None:
        model, _ = self.model(jit_compile=jit_compile)
        with self.trying(
            f"a compiled sampling pass with `jit_compile={jit_compile}`"
        ):
            model.predict(self.x, verbose=0)
