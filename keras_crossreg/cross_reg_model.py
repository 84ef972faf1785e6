"""A Keras model that learns its regularization while it trains."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_crossreg import averaging as averaging_lib
from keras_crossreg import hypergradients
from keras_crossreg._keras import CompileMetrics
from keras_crossreg._keras import Functional
from keras_crossreg._keras import GraphModel
from keras_crossreg._keras import all_layers
from keras_crossreg._keras import functional_init_arguments
from keras_crossreg._keras import keep_registered_name
from keras_crossreg._keras import receive_sampling
from keras_crossreg.backend import Trainer
from keras_crossreg.backend import after
from keras_crossreg.checks import check_integer
from keras_crossreg.level_sets import LevelSet
from keras_crossreg.level_sets import LevelSets
from keras_crossreg.level_sets import write_far
from keras_crossreg.random import sampling_pass
from keras_crossreg.rho import human_value
from keras_crossreg.rho import is_rho
from keras_crossreg.rho import rho_variables_of
from keras_crossreg.rho import stored_value
from keras_crossreg.rho import unmark_rho
from keras_crossreg.rho_patterns import check_patterns
from keras_crossreg.rho_patterns import mark_by_path
from keras_crossreg.rho_summary import print_rho_summary
from keras_crossreg.shared_samples import SharedSamples
from keras_crossreg.shared_samples import can_share
from keras_crossreg.shared_samples import is_stochastic

# Found on three data sets; the grid is in docs/defaults.md.
DEFAULT_NUM_SAMPLES = 16
DEFAULT_RHO_LEARNING_RATE = 0.1
# More are made in several passes, one after the other, so that memory does not
# grow with them. The first is of predictions, the second of a rho step, whose
# other passes cost a second forward pass.
SAMPLES_PER_PASS = 8
DEFAULT_SAMPLES_PER_PASS = 16
DEFAULTS = dict(
    num_samples=DEFAULT_NUM_SAMPLES,
    reg_freq=None,
    reg_warmup=None,
    averaging="auto",
    hypergradient="direct",
    eval_num_samples=DEFAULT_NUM_SAMPLES,
    rho=None,
    samples_per_pass=DEFAULT_SAMPLES_PER_PASS,
)


class Regularization:
    """What `compile` said of the regularization pass, and its state in `fit`.

    A plain object, so that Keras does not count its metrics and its optimizer
    into the model's own.
    """

    def __init__(
        self, metrics: CompileMetrics | None = None, **settings: Any
    ) -> None:
        self.settings = {**DEFAULTS, **settings}
        self.num_samples: int = self.settings["num_samples"]
        # `fit` sets these two where they are `None`.
        self.reg_freq: int | None = self.settings["reg_freq"]
        self.reg_warmup: int | None = self.settings["reg_warmup"]
        self.averaging: Any = self.settings["averaging"]
        self.eval_num_samples: int = self.settings["eval_num_samples"]
        self.samples_per_pass: int = self.settings["samples_per_pass"]
        # Weights that `compile(rho=)` made rho; `None` until there are weights.
        self.marked: list[keras.Variable] | None = None
        # What else `compile` was given; the optimizers as they were then,
        # before a callback moved a learning rate.
        self.keras_arguments: dict[str, Any] = {}
        self.optimizer_configs: dict[str, Any] = {}

        # `reg_loss` and the compiled metrics, on regularization batches.
        self.loss = keras.metrics.Mean(name="loss")
        self.metrics = metrics
        self.metrics_are_stale = True
        self.show_metrics = False
        # What `fit` reports of them: not a number until the first rho step,
        # so that every epoch has the same keys.
        self.logs: dict[str, Any] = {}
        self.has_results = False

        # Symbolic tensors like the training batches, in `fit`.
        self.train_like: Any = None

        # The learning of rho, in `fit`.
        self.stream: Any = None
        # The last one, for a `hypergradient` that looks at it.
        self.train_batch: Any = None
        # Rho steps with it, and after which training steps it met curvature
        # that was not positive.
        self.rho_steps = 0
        self.bad_curvature: list[int] = []
        self.rho_function: Any = None
        # Symbolic tensors like the training batch.
        self.like: Any = None
        self.checked: Any = None
        self.steps: int | None = None
        self.steps_are_stale = True

        # `predict_samples`: how many, and a predict function for each number.
        self.keep_samples = 0
        self.sample_functions: dict[int, Any] = {}

    def clear_results(self) -> None:
        self.logs = dict.fromkeys(self.results(), float("nan"))
        self.has_results = False

    def reset_metrics(self) -> None:
        self.loss.reset_state()
        if self.metrics is not None:
            self.metrics.reset_state()
        self.metrics_are_stale = False

    def results(self) -> dict[str, Any]:
        results = {"reg_loss": self.loss.result()}
        if self.metrics is not None:
            for name, value in self.metrics.result().items():
                results[f"reg_{name}"] = value
        return results


class _Sampling(threading.local):
    """What calls of the model are to do.

    Of a thread: a strategy traces its replicas in several.
    """

    # Whether they average samples.
    active = False
    # The K samples of a pass through a graph that repeats its batch itself.
    shared: int | None = None


@functools.cache
def _functional_class(cls: Any) -> Any:
    """`cls` and `Functional` in one, with no change to either.

    `Sub(inputs, outputs)` on a plain Keras subclass rewrites the bases of
    `Sub` and of every class above it, for the whole process.
    """
    if issubclass(cls, Functional):
        return cls
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    functional = type(cls.__name__, (cls, GraphModel), names)
    functional.__qualname__ = cls.__qualname__
    keep_registered_name(functional, cls)
    return functional


@keras.saving.register_keras_serializable(package="keras_crossreg")
class CrossRegModel(Trainer, keras.Model):
    """A `keras.Model` whose regularization weights rho are learned in `fit`.

    Theta, the weights, learn from the training batch as ever. Every
    `reg_freq` steps, rho learn from a batch of the regularization set, at the
    new theta, by the gradient of the loss of the average of `num_samples`
    sampled predictions; everything but the regularizers is then in inference
    mode. First order, one `fit`.

    Made as `keras.Model` is: `CrossRegModel(inputs, outputs)`, a subclass with
    `call`, or `kcr.wrap(model)`; all three can live in one process. A model
    without rho trains as `keras.Model` does, number for number.

    `evaluate`, `predict` and validation average over `eval_num_samples`
    samples of the noise, as the model was trained. They repeat the same noise
    until training goes on, so that two calls give the same numbers.

    Example:

    >>> inputs = keras.Input((8,))
    >>> x = keras.layers.Dense(64, use_bias=False)(inputs)
    >>> x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    >>> x = kcr.layers.GaussianNoiseScale()(x)
    >>> x = keras.layers.ReLU()(x)
    >>> outputs = keras.layers.Dense(2, activation="softmax")(x)
    >>> model = kcr.CrossRegModel(inputs, outputs)
    >>> model.compile("adam", "sparse_categorical_crossentropy")
    >>> model.fit(x_train, y_train, reg_data=(x_reg, y_reg), epochs=50)
    >>> model.rho_summary()

    Reference:

    - [Brito, 2025, Cross-regularization: Adaptive Model Complexity through
      Validation Gradients](https://arxiv.org/abs/2506.19755).
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # `keras.Model` drops the arguments here, so that the `get_config` of
        # a subclass without its own returns the defaults instead of them.
        if functional_init_arguments(args, kwargs):
            return super().__new__(cls)
        return keras.layers.Layer.__new__(cls, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Around the `__setattr__` of Keras, which cannot track attributes yet.
        object.__setattr__(self, "_sampling", _Sampling())
        if functional_init_arguments(args, kwargs):
            functional: Any = type(self)
            object.__setattr__(self, "__class__", _functional_class(functional))
            Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)
        receive_sampling(self)
        self._reg = Regularization()
        self._levels = LevelSets()
        self._rho_frozen = False
        self._hypergradient: Any = None

    # Construction

    def build_from_config(self, config: Any) -> None:
        # A graph of layers was built with them. Keras cannot build it again
        # from its config, which has no shape.
        if not (isinstance(self, Functional) and self.built):
            super().build_from_config(config)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        rho_optimizer: Any = None,
        num_samples: int = DEFAULT_NUM_SAMPLES,
        reg_freq: int | None = None,
        reg_warmup: int | None = None,
        averaging: Any = "auto",
        hypergradient: Any = "direct",
        eval_num_samples: int | None = None,
        rho: Any = None,
        samples_per_pass: int = DEFAULT_SAMPLES_PER_PASS,
    ) -> None:
        """Configures both optimizers and the regularization pass.

        Args:
            optimizer: Moves theta, and theta alone. This and every argument
                up to `auto_scale_loss` as in `keras.Model.compile`.
            loss: See `keras.Model.compile`.
            loss_weights: See `keras.Model.compile`.
            metrics: See `keras.Model.compile`. Each is also measured on the
                regularization batches, as `reg_<name>`.
            weighted_metrics: See `keras.Model.compile`.
            run_eagerly: See `keras.Model.compile`.
            steps_per_execution: See `keras.Model.compile`. The rho steps that
                are due follow each execution.
            jit_compile: See `keras.Model.compile`.
            auto_scale_loss: See `keras.Model.compile`. For both optimizers.
            rho_optimizer: String, dict or `keras.optimizers.Optimizer`. Moves
                rho, and rho alone. Defaults to `Adam(0.1)`.
            num_samples: Integer K, at least 1. Sampled predictions that the
                regularization pass averages. Defaults to `16`.
            reg_freq: Integer r, at least 1. Training steps per rho step.
                `None`: as many as keep the added work at a ninth of that of
                training, `r = 6 K B_reg / B` for regularization batches of
                `B_reg` and training batches of `B` examples. With the other
                defaults, 12. Defaults to `None`.
            reg_warmup: Integer, not negative. Training steps before rho start
                to learn. `None`: until the moving averages that predictions
                are normalized by have come up with theta, `2 / (1 -
                momentum)` for the largest `momentum` of the trainable
                `keras.layers.BatchNormalization` layers, 200 with Keras's
                default, but at most a quarter of the training where `fit`
                knows its length; 0 without such a layer. Defaults to `None`.
            averaging: The space in which sampled predictions are averaged.
                `"auto"`: probabilities for the classification losses (with
                `from_logits=True` the result is the log of the averaged
                probabilities, again logits), the plain mean for all other.
                `"outputs"`: the plain mean. `"probabilities"`: as `"auto"`,
                and the outputs of a loss of your own are taken for logits, of
                a sigmoid where there is one, of a softmax otherwise. A
                callable: from samples `(K, n, ...)` of one output to their
                average `(n, ...)`. Defaults to `"auto"`.
            hypergradient: `"direct"`: the partial derivative of the
                regularization loss, with theta held; first order, as in the
                paper. `"implicit"`: with theta's answer to rho, at their
                optimum, by Hessian-vector products. `"one_step"`: through one
                step of theta. Or an object of `kcr.hypergradients`, which
                says more. Defaults to `"direct"`.
            eval_num_samples: Integer, at least 1. Samples that `evaluate`,
                `predict` and validation average. Defaults to `num_samples`.
            rho: A regular expression, or a list of them: every trainable
                weight in whose path one is found becomes rho, beside those of
                rho layers, until the model is compiled anew. For example
                `"gamma$"`: the scales of all normalization layers. They are
                learned as they are stored, by `rho_optimizer`, whose default
                learning rate suits numbers of the size of 1. Defaults to
                `None`.
            samples_per_pass: Integer, at least 1. Most of the K samples of
                the regularization pass that are in memory at a time. More
                take several passes, one after the other, each made twice: a
                rho step then costs half as much again. The gradient is the
                same. Not where a layer calls `add_loss`. Defaults to `16`.

        Raises:
            ValueError: If an integer is too small, `averaging` or
                `hypergradient` is unknown, or `rho` matches no weight or
                every weight; of a model that is not built yet, `fit` says so.
        """
        if eval_num_samples is None:
            eval_num_samples = num_samples
        num_samples = check_integer("num_samples", num_samples, 1)
        if reg_freq is not None:
            reg_freq = check_integer("reg_freq", reg_freq, 1)
        if reg_warmup is not None:
            reg_warmup = check_integer("reg_warmup", reg_warmup, 0)
        eval_num_samples = check_integer(
            "eval_num_samples", eval_num_samples, 1
        )
        samples_per_pass = check_integer(
            "samples_per_pass", samples_per_pass, 1
        )
        averaging_lib.check_averaging(averaging)
        check_patterns(rho)
        second_order = hypergradients.get(hypergradient)
        if (
            second_order is not None
            and self.distribute_strategy.num_replicas_in_sync > 1
        ):
            raise ValueError(
                '`hypergradient` other than "direct" works on one device. '
                f"Received: hypergradient={hypergradient} under a strategy of "
                f"{self.distribute_strategy.num_replicas_in_sync} replicas"
            )
        keras_arguments = dict(
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        super().compile(optimizer=optimizer, **keras_arguments)
        if rho_optimizer is None:
            rho_optimizer = keras.optimizers.Adam(DEFAULT_RHO_LEARNING_RATE)
        rho_optimizer = keras.optimizers.get(rho_optimizer)
        reg_metrics = None
        if metrics is not None or weighted_metrics is not None:
            try:
                reg_metrics = CompileMetrics(
                    *_clone_metrics((metrics, weighted_metrics)),
                    output_names=getattr(self, "output_names", None),
                )
            except (NotImplementedError, TypeError, ValueError) as error:
                warnings.warn(
                    "Only `reg_loss` is measured on the regularization "
                    "batches, since Keras cannot copy the metrics: "
                    f"{error}. It takes a `get_config()` that returns the "
                    "arguments of the constructor, and "
                    "`keras.saving.register_keras_serializable` on every "
                    "class and function of your own.",
                    stacklevel=2,
                )
        for variable in self._reg.marked or ():
            unmark_rho(variable)
        self._reg = Regularization(
            reg_metrics,
            num_samples=num_samples,
            reg_freq=reg_freq,
            reg_warmup=reg_warmup,
            averaging=averaging,
            hypergradient=hypergradient,
            eval_num_samples=eval_num_samples,
            rho=rho,
            samples_per_pass=samples_per_pass,
        )
        self._hypergradient = second_order
        self._reg.keras_arguments = keras_arguments
        scaled = keras.optimizers.LossScaleOptimizer
        if (
            auto_scale_loss
            and isinstance(self.optimizer, scaled)
            and not isinstance(rho_optimizer, scaled)
        ):
            rho_optimizer = scaled(rho_optimizer)
        self.rho_optimizer = rho_optimizer
        self._reg.optimizer_configs = {
            name: _config_of(getattr(self, name))
            for name in ("optimizer", "rho_optimizer")
        }
        self._mark_rho()
        if num_samples == 1 and self._stochastic:
            warnings.warn(
                "With `num_samples=1` the regularization loss sees noise only "
                "as harm, and every sigma falls to zero. Use 4 or more.",
                stacklevel=2,
            )

    def get_compile_config(self) -> dict[str, Any]:
        """A serialized config of what `compile` was given."""
        config: dict[str, Any] = super().get_compile_config()
        if not config:
            return config
        for name, value in self._reg.settings.items():
            config[name] = keras.saving.serialize_keras_object(value)
        config.update(self._optimizer_configs())
        config["rho_frozen"] = self._rho_frozen
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model with what `get_compile_config` gave.

        A `compile` of one's own may take other arguments: as in
        `keras.Model`, it then takes a `compile_from_config` of one's own too.
        """
        if type(self).compile is not CrossRegModel.compile:
            # Which warns, and does not compile.
            super().compile_from_config(config)
            return
        config = dict(config)
        frozen = config.pop("rho_frozen", False)
        self.compile(
            **{
                name: keras.saving.deserialize_keras_object(value)
                for name, value in config.items()
            }
        )
        self._rho_frozen = frozen
        self._build_optimizers()

    def save(
        self,
        filepath: Any,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves the model, to train on; see `keras.Model.save`.

        Raises:
            ValueError: If the model has rho and the file is of the old HDF5
                format, in which the optimizer of rho, the settings of
                `compile` and the seeds of the noise would be lost.
        """
        if self.rho_variables and str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "The old HDF5 format would lose `rho_optimizer`, the settings "
                "of `compile` and the seeds of the noise. Save the model as "
                "`.keras`, or its weights by `save_weights`. "
                f"Received: filepath={filepath}"
            )
        super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Exports what `predict` gives, averaged over `eval_num_samples`.

        See `keras.Model.export` for the arguments, and `kcr.averaged` for
        another number of samples and for the noise. `model(x)` is one pass
        without noise; to export that, use `keras.export.ExportArchive`.
        """
        # Not above: that module builds on this one.
        from keras_crossreg.averaged import averaged

        export = super().export
        if self._stochastic:
            export = averaged(self, self._reg.eval_num_samples).export
        export(filepath, format, verbose, input_signature, **kwargs)

    def _compile_copy(self, copy: CrossRegModel) -> None:
        """Compiles `copy` as this model was, with optimizers anew.

        Not by `compile_from_config`, which asks that every loss and metric of
        one's own is registered with Keras.
        """
        given = self._reg.keras_arguments
        copy.compile(
            **{
                name: keras.saving.deserialize_keras_object(config)
                for name, config in self._optimizer_configs().items()
            },
            **given,
            **self._reg.settings,
        )

    def _optimizer_configs(self) -> dict[str, Any]:
        """Both optimizers, as they were given to `compile`.

        Raises:
            ValueError: If Keras cannot copy one.
        """
        configs = self._reg.optimizer_configs
        for name, config in configs.items():
            if config is None:
                raise ValueError(
                    f"`{name}` cannot be copied. It, and a learning rate "
                    "schedule in it, need a `get_config()` that returns the "
                    "arguments of the constructor. Received: "
                    f"{name}={getattr(self, name)}"
                )
        return configs

    def __reduce__(self) -> Any:
        # The class of a functional model is made at run time, where `pickle`
        # does not find it: name the method that reads it by this one.
        read, arguments = super().__reduce__()
        return getattr(CrossRegModel, read.__name__), arguments

    # Theta and rho

    # `layer.trainable = True` makes every weight of the layer trainable.

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        return [v for v in super().trainable_variables if not is_rho(v)]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        return [v for v in super().trainable_weights if not is_rho(v)]

    @property
    def theta_variables(self) -> list[keras.Variable]:
        """Every trainable weight that is not rho."""
        return self.trainable_variables

    @property
    def rho_variables(self) -> list[keras.Variable]:
        """Every regularization weight, in the order of the network."""
        levels, found = self._level_sets, []
        for v in self.weights:
            if is_rho(v):
                found.append(v)
            if id(v) in levels:
                found.append(levels[id(v)].rho)
        return found

    def _mark_rho(self) -> None:
        """Makes rho what `compile(rho=)` matches, once there are weights."""
        reg = self._reg
        if reg.marked is None and self._is_built:
            patterns = check_patterns(reg.settings["rho"])
            weights = [v for v in self.weights if v.trainable or is_rho(v)]
            reg.marked = mark_by_path(weights, patterns)

    @property
    def _level_sets(self) -> dict[int, LevelSet]:
        """Weights with a learned regularizer, by their `id`."""
        return self._levels.of(self.weights)

    def _read_level_sets(self) -> None:
        for level_set in self._level_sets.values():
            level_set.read()

    def _assign_rho(self, variable: keras.Variable, value: Any) -> None:
        """Sets a rho, and the weight where it is a complexity of one."""
        variable.assign(value)
        for level_set in self._level_sets.values():
            if level_set.rho is variable:
                write_far(level_set)

    def get_rho(self) -> dict[str, Any]:
        """What was learned: `{path: value in human units}`.

        Returns:
            A dict from the path of each rho to a float, or to a NumPy array
            where the rho has a shape.
        """
        return {v.path: human_value(v) for v in rho_variables_of(self)}

    def set_rho(self, values: dict[str, Any]) -> None:
        """Sets rho from human units.

        Args:
            values: A dict `{path: value}`, as `get_rho()` returns it; it may
                leave some out. A scalar fills a rho that has a shape.

        Raises:
            ValueError: If a path is unknown, or a value is not finite,
                negative, or of a shape that does not fit.
        """
        rho = {v.path: v for v in self.rho_variables}
        for path in values:
            if path not in rho:
                raise ValueError(
                    f"Expected the paths of rho, {sorted(rho)}. "
                    f"Received: path={path}"
                )
        # All are checked before one is set.
        stored = {p: stored_value(rho[p], v) for p, v in values.items()}
        for path, value in stored.items():
            self._assign_rho(rho[path], value)

    def freeze_rho(self) -> None:
        """Stops rho from learning, until `unfreeze_rho()`.

        The noise stays on. `fit` then needs no `reg_data`.
        """
        self._rho_frozen = True

    def unfreeze_rho(self) -> None:
        """Lets rho learn again."""
        self._rho_frozen = False

    def rho_summary(
        self, line_length: int | None = None, print_fn: Any = None
    ) -> None:
        """Prints what was learned: layer, meaning, start value, value now.

        In a notebook it is a rich table, as `summary()` is.

        Args:
            line_length: Integer, total length of the printed lines. Defaults
                to the width of the console.
            print_fn: Callable that gets the table as one string of plain
                text. Defaults to the console.
        """
        print_rho_summary(self, line_length=line_length, print_fn=print_fn)

    #: Keras's, compiled.
    predict_function: Any

    def predict_samples(
        self,
        x: Any,
        num_samples: int | None = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
    ) -> Any:
        """The sampled predictions that `predict` averages.

        Args:
            x: As in `keras.Model.predict`.
            num_samples: Integer, at least 1. Defaults to `eval_num_samples`.
            batch_size: See `keras.Model.predict`.
            verbose: See `keras.Model.predict`.
            steps: See `keras.Model.predict`.

        Returns:
            A NumPy array `(num_samples, n, ...)`, or a structure of them
            where the model has several outputs.

        Raises:
            ValueError: If `num_samples` is below 1.

        Example:

        >>> samples = model.predict_samples(x_test, 32)
        >>> spread = samples.std(axis=0)
        """
        reg = self._reg
        if num_samples is None:
            num_samples = reg.eval_num_samples
        num_samples = check_integer("num_samples", num_samples, 1)
        averaged: Any = self.predict_function
        self.predict_function = reg.sample_functions.get(num_samples)
        reg.keep_samples = num_samples
        try:
            samples = self.predict(x, batch_size, verbose, steps)
            reg.sample_functions[num_samples] = self.predict_function
        finally:
            reg.keep_samples = 0
            self.predict_function = averaged
        return tree.map_structure(lambda y: y.swapaxes(0, 1), samples)

    def _learning_rho(self) -> list[keras.Variable]:
        """The rho that a rho step moves: none when frozen."""
        if self._rho_frozen:
            return []
        held = {
            id(v)
            for layer in all_layers(self)
            if not layer.trainable
            for v in layer.weights
        }
        held |= {
            id(level_set.rho)
            for weight, level_set in self._level_sets.items()
            if weight in held
        }
        return [v for v in self.rho_variables if id(v) not in held]

    # Sampling passes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._sampling.active:
            return self._predict_average(args[0])
        return super().__call__(*args, **kwargs)

    def _sample(self, x: Any, num_samples: int) -> Any:
        """K sampled predictions `(K, n, ...)` in one tiled pass.

        The stochastic regularizers on, everything else in inference mode.
        """
        if self._repeats_late:
            self._sampling.shared = num_samples
        else:
            x = averaging_lib.tile(x, num_samples)
        try:
            with sampling_pass(num_samples):
                outputs = super().__call__(x, training=False, sampling=True)
        finally:
            self._sampling.shared = None
        return tree.map_structure(
            lambda y: averaging_lib.untile(y, num_samples), outputs
        )

    @functools.cached_property
    def _repeats_late(self) -> bool:
        """Whether layers before the first noise see each example once."""
        return (
            isinstance(self, GraphModel)
            # One of the user's own sees tiled inputs and outputs.
            and type(self).call is Functional.call
            and can_share(self)
        )

    def sharing(self, inputs: Any) -> SharedSamples | None:
        """For `GraphModel`: how a sampling pass walks the graph."""
        num_samples = self._sampling.shared
        if num_samples is None:
            return None
        return SharedSamples(inputs, num_samples)

    def _average(self, samples: Any) -> Any:
        """The average of sampled predictions, in the space of the loss."""
        return averaging_lib.average(
            samples,
            self._reg.averaging,
            self.loss,
            getattr(self, "output_names", None),
        )

    @contextlib.contextmanager
    def _averaged_calls(self) -> Iterator[None]:
        """Calls of the model within are averages of sampled predictions."""
        self._sampling.active = self._stochastic or bool(self._reg.keep_samples)
        try:
            yield
        finally:
            self._sampling.active = False

    def _predict_average(self, x: Any) -> Any:
        kept = self._reg.keep_samples
        samples = self._repeatable_samples(
            x, kept or self._reg.eval_num_samples
        )
        if kept:
            # Batches are put together along the first axis.
            return tree.map_structure(lambda y: ops.swapaxes(y, 0, 1), samples)
        return self._average(samples)

    def _repeatable_samples(self, x: Any, num_samples: int) -> Any:
        """Samples, the same in every call until training goes on."""
        active, self._sampling.active = self._sampling.active, False
        try:
            with self._kept_seeds():
                parts = self._sample_in_passes(x, num_samples, SAMPLES_PER_PASS)
        finally:
            self._sampling.active = active
        return averaging_lib.join(parts, num_samples)

    def _sample_in_passes(
        self, x: Any, num_samples: int, most: int
    ) -> list[Any]:
        """K samples or a few more, in passes of the same number of them."""
        in_each = averaging_lib.in_each_pass(num_samples, most)
        parts: list[Any] = []
        for _ in range(0, num_samples, in_each):
            with after(parts[-1:]):
                parts.append(self._sample(x, in_each))
        return parts

    @contextlib.contextmanager
    def _kept_seeds(self) -> Iterator[None]:
        """Leaves the random state as it was."""
        seeds = self._seed_states()
        before = [ops.copy(state.value) for state in seeds]
        yield
        for state, value in zip(seeds, before, strict=True):
            state.assign(value)

    def _seed_states(self) -> list[keras.Variable]:
        known = {id(v) for v in self.weights + self.metrics_variables}
        return [v for v in self.variables if id(v) not in known]

    @property
    def _stochastic(self) -> bool:
        return any(map(is_stochastic, all_layers(self)))


def _config_of(optimizer: Any) -> dict[str, Any] | None:
    """The optimizer serialized; `None` where it, or its schedule, cannot be."""
    try:
        config: dict[str, Any] = keras.saving.serialize_keras_object(optimizer)
    except (NotImplementedError, TypeError, ValueError):
        return None
    return config


def _clone_metrics(metrics: Any) -> Any:
    """The same metrics, with a state of their own."""

    def clone(metric: Any) -> Any:
        if isinstance(metric, keras.metrics.Metric):
            return metric.__class__.from_config(metric.get_config())
        return metric

    return tree.map_structure(clone, metrics)
