"""A Keras model that learns its regularization while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

import keras

from keras_crossreg._keras import Functional
from keras_crossreg._keras import functional_init_arguments
from keras_crossreg.compile_options import CompileOptions
from keras_crossreg.compile_options import GivenArguments
from keras_crossreg.compile_options import copy_metrics
from keras_crossreg.compile_options import get_rho_optimizer
from keras_crossreg.functional import functional_class
from keras_crossreg.sampling.averaged_model import AveragedModel
from keras_crossreg.supported_backends import check_backend
from keras_crossreg.trainers.reg_metrics import RegMetrics
from keras_crossreg.trainers.regularization_loss import CheckedBatch
from keras_crossreg.user_warnings import warn_user

_BACKEND = check_backend()

if TYPE_CHECKING:
    from keras_crossreg.trainers.trainer import CrossRegTrainer as Trainer
elif _BACKEND == "tensorflow":
    from keras_crossreg.backend.tensorflow.trainer import (
        TensorFlowTrainer as Trainer,
    )
elif _BACKEND == "jax":
    from keras_crossreg.backend.jax.trainer import JaxTrainer as Trainer
elif _BACKEND == "torch":
    from keras_crossreg.backend.torch.trainer import TorchTrainer as Trainer


@keras.saving.register_keras_serializable(package="keras_crossreg")
class CrossRegModel(Trainer):
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
        if functional_init_arguments(args, kwargs):
            functional: Any = type(self)
            # The `__setattr__` of Keras cannot track attributes yet.
            object.__setattr__(self, "__class__", functional_class(functional))
        super().__init__(*args, **kwargs)
        self._given = GivenArguments()

    def build_from_config(self, config: Any) -> None:
        # A graph of layers was built together with them, and Keras cannot
        # build it again from a config that has no shape.
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
        num_samples: int = CompileOptions.num_samples,
        reg_freq: int | None = CompileOptions.reg_freq,
        reg_warmup: int | None = CompileOptions.reg_warmup,
        averaging: Any = CompileOptions.averaging,
        hypergradient: Any = CompileOptions.hypergradient,
        eval_num_samples: int | None = CompileOptions.eval_num_samples,
        rho: Any = CompileOptions.rho,
        samples_per_pass: int = CompileOptions.samples_per_pass,
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
                rho, and rho alone. `None` for `kcr.optimizers.AnchoredAdam()`:
                Adam at 0.1, which leaves noise, dropout and augmentation
                where they start unless there is evidence. Defaults to `None`.
            num_samples: Integer K, at least 1. Sampled predictions that the
                regularization pass averages. Defaults to `16`.
            reg_freq: Integer r, at least 1. Training steps per rho step.
                `None`: as many as keep the added work at a ninth of that of
                training, `r = 6 K B_reg / B` for regularization batches of
                `B_reg` and training batches of `B` examples: 12 with the
                other defaults, and 24 where noise, dropout or an augmentation
                learn from both sets. In a `fit` of which rho learn in a part
                alone, r is smaller by that part. Where that leaves fewer than
                200 rho steps, r is down to 12 for both sets; where it leaves
                fewer than 50, both r and the default `B_reg` are smaller.
                Defaults to `None`.
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
                paper. `"gap"`: the same for norms and temperatures; noise,
                dropout and augmentation also take in how they hurt as many
                training examples, which theta have memorized, and end
                stronger; first order. `"implicit"`: with theta's answer to
                rho, at their optimum, by Hessian-vector products.
                `"one_step"`: through one step of theta. Or an object of
                `kcr.hypergradients`, which says more. `"auto"`: `"gap"`, and
                `"direct"` on several devices, where no other works. Defaults
                to `"auto"`.
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
        options = CompileOptions(
            num_samples=num_samples,
            reg_freq=reg_freq,
            reg_warmup=reg_warmup,
            averaging=averaging,
            hypergradient=hypergradient,
            eval_num_samples=eval_num_samples,
            rho=rho,
            samples_per_pass=samples_per_pass,
        )
        if self._num_replicas > 1:
            options = options.on_several_devices()
            if options.correction is not None:
                raise ValueError(
                    '`hypergradient` other than "direct" works on one device. '
                    f"Received: hypergradient={hypergradient} under a "
                    f"strategy of {self._num_replicas} replicas"
                )
        is_object = isinstance(optimizer, keras.optimizers.Optimizer)
        if is_object and rho_optimizer is optimizer:
            raise ValueError(
                "Theta and rho each need an optimizer of their own: pass two "
                "objects, or a name for one of them. Received: "
                f"optimizer={optimizer}, rho_optimizer={rho_optimizer}, which "
                "are one object"
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
        rho_optimizer = get_rho_optimizer(rho_optimizer)
        self._reg_metrics = RegMetrics(
            copy_metrics(
                metrics, weighted_metrics, getattr(self, "output_names", None)
            )
        )
        self._unmark_rho()
        self._options = options
        self._checked = CheckedBatch()
        self._samplers.by_number.clear()
        scaled = keras.optimizers.LossScaleOptimizer
        if (
            auto_scale_loss
            and isinstance(self.optimizer, scaled)
            and not isinstance(rho_optimizer, scaled)
        ):
            rho_optimizer = scaled(rho_optimizer)
        self.rho_optimizer = rho_optimizer
        self._given = GivenArguments.of(self, keras_arguments)
        self._mark_rho()
        if options.num_samples == 1 and self._stochastic:
            warn_user(
                "With `num_samples=1` the regularization loss sees noise only "
                "as harm, and every sigma falls to zero. Use 4 or more."
            )

    # ---- Saving, copies and export -------------------------------------------

    def get_compile_config(self) -> dict[str, Any]:
        """A serialized config of what `compile` was given."""
        config: dict[str, Any] = super().get_compile_config()
        if not config:
            return config
        for name, value in self._options.as_arguments().items():
            config[name] = keras.saving.serialize_keras_object(value)
        config.update(self._given.optimizers(self))
        config["rho_frozen"] = self._rho_frozen
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model with what `get_compile_config` gave.

        A `compile` of one's own may take other arguments: as in
        `keras.Model`, it then takes a `compile_from_config` of one's own too.
        """
        if type(self).compile is not CrossRegModel.compile:
            # Keras then warns, and does not compile.
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

    def compile_arguments(self) -> dict[str, Any]:
        """What `compile` was given, for the `compile` of a copy.

        The optimizers are new ones, as they were given: before a callback
        moved a learning rate. All else is what was given, which no config
        asks to be registered with Keras.

        Returns:
            A dict of the arguments by name.

        Raises:
            ValueError: If Keras cannot copy an optimizer.
        """
        configs = self._given.optimizers(self)
        return {
            **{
                name: keras.saving.deserialize_keras_object(config)
                for name, config in configs.items()
            },
            **self._given.keras_arguments,
            **self._options.as_arguments(),
        }

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
        export = super().export
        num_samples = self._options.eval_num_samples
        if self._stochastic and num_samples is not None:
            export = AveragedModel.of(self, num_samples).export
        export(filepath, format, verbose, input_signature, **kwargs)

    def __reduce__(self) -> Any:
        # The class of a functional model is made at run time, where `pickle`
        # does not find it: the method that reads it goes by this class.
        read, arguments = super().__reduce__()
        return getattr(CrossRegModel, read.__name__), arguments
