"""A Keras model whose predictions are averages of sampled predictions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_crossreg._keras import Functional
from keras_crossreg._keras import GraphModel
from keras_crossreg._keras import losses_by_layer
from keras_crossreg._keras import receive_sampling
from keras_crossreg._keras import set_losses_by_layer
from keras_crossreg.checks import check_integer
from keras_crossreg.compile_options import CompileOptions
from keras_crossreg.primitives import SAMPLES_PER_PASS
from keras_crossreg.primitives import evaluated_after
from keras_crossreg.primitives import in_turn
from keras_crossreg.random import has_source
from keras_crossreg.random import sampling_pass
from keras_crossreg.sampling import averaging
from keras_crossreg.sampling.late_tiling import LateTiling
from keras_crossreg.sampling.late_tiling import can_tile_late
from keras_crossreg.sampling.probed_model import ProbedModel
from keras_crossreg.sampling.probed_model import batches_in


@dataclasses.dataclass(frozen=True)
class _SampledCall:
    """What the next call of a model returns: K samples, put together."""

    model: Any
    num_samples: int
    combine: Callable[[Any], Any]


class _Calls(threading.local):
    """What calls of models are to do.

    Each thread has its own: a strategy traces its replicas in several.
    """

    sampled: _SampledCall | None = None
    #: The model whose graph tiles the batch itself, and K.
    tiling: tuple[Any, int] | None = None


_CALLS = _Calls()


@contextlib.contextmanager
def sampled_calls(
    model: Any, num_samples: int, combine: Callable[[Any], Any]
) -> Iterator[None]:
    """Calls of the model within are of K sampled predictions.

    The same samples in every call until training goes on.

    Args:
        model: A `SampledModel`.
        num_samples: Integer K.
        combine: From the samples `(K, n, ...)` to what a call returns.
    """
    call = _SampledCall(model, num_samples, combine)
    before, _CALLS.sampled = _CALLS.sampled, call
    try:
        yield
    finally:
        _CALLS.sampled = before


@dataclasses.dataclass
class _Samplers:
    """What `predict_samples` predicts with, by the number of samples.

    A plain object: Keras would track a dict.
    """

    by_number: dict[int, Any] = dataclasses.field(default_factory=dict)


class SampledModel(ProbedModel):
    """Draws sampled predictions, and averages them in `predict`.

    A sampling pass is a forward pass with the stochastic regularizers on and
    everything else in inference mode.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A step of the user's own calls the model too, and predicts then.
        for name in ("test_step", "predict_step"):
            if name in vars(cls):
                setattr(cls, name, _predicting(vars(cls)[name]))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        receive_sampling(self)
        self._samplers = _Samplers()

    @property
    def compile_options(self) -> CompileOptions:
        """What `compile` said of the regularization pass."""
        return self._options

    # ---- Sampling passes -----------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = _CALLS.sampled
        is_asked = call is not None and call.model is self
        if not is_asked or kwargs.get("training"):
            return super().__call__(*args, **kwargs)
        assert call is not None
        _CALLS.sampled = None
        try:
            samples = self._predicted_samples(args[0], call.num_samples)
        finally:
            _CALLS.sampled = call
        return call.combine(samples)

    def _sample(self, x: Any, num_samples: int) -> Any:
        """K sampled predictions `(K, n, ...)`, which leave no state behind."""
        with self._kept_state():
            return self._pass(x, num_samples)

    def _pass(self, x: Any, num_samples: int) -> Any:
        """K sampled predictions `(K, n, ...)` in one tiled pass."""
        before = _CALLS.tiling
        if self._tiles_late:
            _CALLS.tiling = self, num_samples
        else:
            x = averaging.tile(x, num_samples)
        try:
            with sampling_pass(num_samples):
                outputs = super().__call__(x, training=False, sampling=True)
        finally:
            _CALLS.tiling = before
        return tree.map_structure(
            lambda y: averaging.untile(y, num_samples), outputs
        )

    @functools.cached_property
    def _tiles_late(self) -> bool:
        """Whether layers before the first noise see each example once."""
        return (
            isinstance(self, GraphModel)
            # A `call` of the user's own sees tiled inputs and outputs.
            and type(self).call is Functional.call
            and can_tile_late(self)
        )

    def graph_walk(self, inputs: Any) -> LateTiling | None:
        """How a sampling pass walks the graph; for `GraphModel`."""
        if _CALLS.tiling is None:
            return None
        model, num_samples = _CALLS.tiling
        return LateTiling(inputs, num_samples) if model is self else None

    def _sample_in_passes(
        self, x: Any, num_samples: int, most: int
    ) -> list[Any]:
        """K samples or a few more, in passes of the same number of them."""
        in_each = self._in_each_pass(num_samples, most)
        if in_each == num_samples:
            set_losses_by_layer(self, None)
            return [self._sample(x, in_each)]
        if num_samples % in_each == 0:
            parts = self._passes(x, num_samples, in_each)
        else:
            # Callers that take samples beyond K put seeds back themselves.
            with self._kept_seeds():
                parts = self._passes(x, num_samples, in_each)
            if any(parts[0][1]):
                # What layers add for samples beyond K would count too.
                in_each = averaging.in_each_equal_pass(num_samples, most)
                parts = self._passes(x, num_samples, in_each)
        _set_mean_of_losses(self, [losses for _, losses in parts])
        return [samples for samples, _ in parts]

    def _passes(self, x: Any, num_samples: int, in_each: int) -> list[Any]:
        """Of each pass its samples, and what layers add to the loss."""
        passes = -(-num_samples // in_each)
        set_losses_by_layer(self, None)

        def sample() -> tuple[Any, list[list[Any]]]:
            samples = self._sample(x, in_each)
            losses = losses_by_layer(self)
            # Keras clears them in a call that is in no other call alone.
            set_losses_by_layer(self, None)
            return samples, losses

        if has_source():
            # A loop is traced once: passes would have one draw in common.
            return [sample() for _ in range(passes)]
        return in_turn(lambda _: sample(), [None] * passes)

    def _in_each_pass(self, num_samples: int, most: int) -> int:
        """K shared out to passes of at most so many, or of one each."""
        return averaging.in_each_pass(
            num_samples, 1 if self._seen.apart else most
        )

    def _repeatable_samples(self, x: Any, num_samples: int) -> Any:
        """Samples, the same in every call until training goes on.

        In several passes, one after the other, memory does not grow with them.
        """
        with self._kept_seeds():
            parts = self._sample_in_passes(x, num_samples, SAMPLES_PER_PASS)
        return averaging.join(parts, num_samples)

    def _predicted_samples(self, x: Any, num_samples: int) -> Any:
        """As `_repeatable_samples`, but that each sample keeps its state.

        A prediction of several batches is one of K runs of the model. What it
        moves is then as the last of them leaves it.
        """
        moving = self._seen.moving
        if not moving:
            return self._repeatable_samples(x, num_samples)
        runs = self._sample_runs(num_samples)
        parts: list[Any] = []
        ends: list[list[Any]] = []
        losses: list[Any] = []
        set_losses_by_layer(self, None)
        with self._kept_seeds():
            before = [(v, ops.copy(v.value)) for v in moving]
            starts = runs.starts()
            for k in range(num_samples):
                with evaluated_after([parts[-1:], ends[-1:]]):
                    for variable, value in before:
                        variable.assign(value)
                    for variable, values in zip(
                        runs.variables, starts, strict=True
                    ):
                        variable.assign(values[k])
                    parts.append(self._pass(x, 1))
                    ends.append([ops.copy(v.value) for v in runs.variables])
                losses.append(losses_by_layer(self))
                set_losses_by_layer(self, None)
            runs.keep(ends)
        _set_mean_of_losses(self, losses)
        return averaging.join(parts, num_samples)

    @property
    def _num_samples(self) -> int:
        """K of the regularization pass."""
        # Samples of a model without noise are all the same.
        return self._options.num_samples if self._stochastic else 1

    # ---- Predictions ---------------------------------------------------------

    def _average(self, samples: Any) -> Any:
        """The average of sampled predictions, in the space of the loss."""
        return averaging.average(
            samples,
            self._options.averaging,
            self.loss,
            getattr(self, "output_names", None),
        )

    @contextlib.contextmanager
    def _predictions(self) -> Iterator[None]:
        """Calls of the model within are predictions."""
        call = _CALLS.sampled
        if call is not None and call.model is self:
            # `predict_samples` asks for the samples themselves.
            yield
        elif self._stochastic:
            num_samples = self._options.eval_num_samples
            assert num_samples is not None
            with sampled_calls(self, num_samples, self._average):
                yield
        else:
            yield

    def test_step(self, *args: Any) -> Any:
        """Keras's own step, on the average of sampled predictions."""
        with self._predictions():
            return super().test_step(*args)

    def predict_step(self, *args: Any) -> Any:
        """Keras's own step, on the average of sampled predictions."""
        with self._predictions():
            return super().predict_step(*args)

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
        if num_samples is None:
            num_samples = self._options.eval_num_samples
        num_samples = check_integer("num_samples", num_samples, 1)
        samplers = self._samplers.by_number
        if num_samples not in samplers:
            samplers[num_samples] = self._make_sampler(num_samples)
        samples = samplers[num_samples].predict(x, batch_size, verbose, steps)
        return tree.map_structure(lambda y: y.swapaxes(0, 1), samples)

    @property
    def _sampler_class(self) -> type[Sampler]:
        """What `predict_samples` predicts with; of a backend."""
        return Sampler

    def _make_sampler(self, num_samples: int) -> Sampler:
        self._look_for_predictions()
        with self._creation_scope():
            sampler = self._sampler_class(self, num_samples)
        sampler.compile(
            run_eagerly=self.run_eagerly,
            steps_per_execution=self.steps_per_execution,
            # On JAX it is true of a model that runs eagerly too.
            jit_compile=self.jit_compile and not self.run_eagerly,
        )
        return sampler


class Sampler(keras.Model):
    """Predicts the samples that another model averages.

    A model of its own, with a predict function of its own: what one thread
    predicts does not change what the other model predicts in another.
    """

    def __init__(self, model: SampledModel, num_samples: int) -> None:
        super().__init__()
        # Keras would count its weights, and their losses, twice.
        self.of = lambda: model
        self.num_samples = num_samples
        self.built = True

    # On JAX, the state that a step is given: that of the other model.

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        found: list[keras.Variable] = self.of().trainable_variables
        return found

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        found: list[keras.Variable] = self.of().non_trainable_variables
        return found

    def make_predict_function(self, force: bool = False) -> Any:
        before = self.predict_function
        super().make_predict_function(force)
        predict = self.predict_function
        if predict is not before:

            def look_and_predict(*args: Any) -> Any:
                batches, args = batches_in(args, self.steps_per_execution)
                self.of().look_at_batch(batches[0], self.num_samples)
                return predict(*args)

            self.predict_function: Callable[[Any], Any] = look_and_predict
        return self.predict_function

    def predict_step(self, *args: Any) -> Any:
        model = self.of()
        with sampled_calls(model, self.num_samples, _examples_first):
            return model.predict_step(*args)


def _set_mean_of_losses(model: Any, passes: list[list[list[Any]]]) -> None:
    """Sets what layers add to the loss to the mean over several passes."""
    means = [
        [sum(terms) / len(passes) for terms in zip(*of_layer, strict=True)]
        for of_layer in zip(*passes, strict=True)
    ]
    set_losses_by_layer(model, means)


def _predicting(step: Any) -> Any:
    """A test step or a predict step, whose calls of the model are averaged."""

    @functools.wraps(step)
    def predicting_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._predictions():
            return step(self, *args, **kwargs)

    return predicting_step


def _examples_first(samples: Any) -> Any:
    """`(K, n, ...)` to `(n, K, ...)`: Keras joins batches along axis 0."""
    return tree.map_structure(lambda y: ops.swapaxes(y, 0, 1), samples)
