"""A Keras model that knows what its passes do to a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from keras_crossreg._keras import all_layers
from keras_crossreg.compile_options import CompileOptions
from keras_crossreg.random import has_source
from keras_crossreg.sampling import state
from keras_crossreg.sampling.row_probe import Look
from keras_crossreg.sampling.row_probe import look_at
from keras_crossreg.sampling.row_probe import needs_a_look
from keras_crossreg.sampling.row_probe import random_inputs
from keras_crossreg.sampling.stochastic_layers import is_stochastic
from keras_crossreg.user_warnings import warn_user


@dataclasses.dataclass
class _Known:
    """A plain object: Keras would track the variables.

    Attributes:
        look: What was seen; `None` while nothing was.
        runs: The states of K samples of predictions, by K.
    """

    look: Look | None = None
    runs: dict[int, state.SampleRuns] = dataclasses.field(default_factory=dict)


class ProbedModel(keras.Model):
    """Finds out whether rows meet in a model, and what its passes move.

    By looking at its layers, and by a probe where these do not tell: before
    the first regularization pass and before the first prediction, once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = CompileOptions()
        self._known = _Known()

    @property
    def _stochastic(self) -> bool:
        return any(map(is_stochastic, all_layers(self)))

    @property
    def _seen(self) -> Look:
        return self._known.look or Look()

    def _creation_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables and models are created; of a backend."""
        return contextlib.nullcontext()

    def _build_on_inputs(self, x: Any) -> None:
        """Creates the variables of the model, from symbolic inputs."""
        self(x)

    def _part_of_one_replica(self, batch: Any) -> Any:
        """What one replica sees of a batch; of a backend."""
        return batch

    # ---- Looking -------------------------------------------------------------

    def look(self, x: Any = None) -> None:
        """Looks at the layers, and where these do not tell, at a pass.

        Args:
            x: Inputs. Without them, those of a functional model are random
                numbers, and nothing is known of another model.
        """
        if self._known.look is not None or not self.built:
            return
        if not needs_a_look(self):
            self._known.look = Look()
            return
        is_random = x is None
        if is_random:
            x = random_inputs(self)
        if x is None:
            return
        try:
            look = look_at(self, x)
        except Exception:
            # A model may not take random inputs. Where it is not to be called
            # eagerly, or on so few rows, samples apart are right all the same.
            if not is_random:
                self._known.look = Look(rows_meet=True)
            return
        self._known.look = look
        if look.apart and self._stochastic:
            warn_user(
                "The samples of a prediction and of the regularization pass "
                "are drawn one at a time, which takes longer than all in one "
                "pass: "
                + (
                    "a pass of this model in inference mode moves a state or "
                    f"a metric, {[v.path for v in look.moving]}."
                    if look.moving
                    else "the rows of a batch meet in this model, or it draws "
                    "random numbers in inference mode. An output, or a loss "
                    "that a layer adds, is another one where two rows come "
                    "together."
                )
            )

    def _look_for_predictions(self, x: Any = None) -> None:
        if self._stochastic:
            self.look(x)

    def look_at_batch(self, batch: Any, num_samples: int | None = None) -> None:
        """Looks at a batch of data that is about to be predicted.

        `num_samples`: integer K, by default that of `evaluate`.
        """
        if self._known.look is None and self._stochastic:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(
                self._part_of_one_replica(batch)
            )
            if not self.built:
                self._build_on_inputs(tree.map_structure(_symbolic, x))
            self.look(x)
        self._make_runs(num_samples)

    def make_test_function(self, force: bool = False) -> Any:
        self._look_for_predictions()
        before = self.test_function
        super().make_test_function(force)
        test = self.test_function
        if test is not before:

            def look_and_test(*args: Any) -> Any:
                if self._known.look is None and self._stochastic:
                    batches, args = batches_in(args, self.steps_per_execution)
                    self.look_at_batch(batches[0])
                self._make_runs()
                return test(*args)

            self.test_function: Callable[[Any], Any] = look_and_test
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Any:
        self._look_for_predictions()
        before = self.predict_function
        super().make_predict_function(force)
        predict = self.predict_function
        if predict is not before:

            def look_and_predict(*args: Any) -> Any:
                batches, args = batches_in(args, self.steps_per_execution)
                self.look_at_batch(batches[0])
                return predict(*args)

            self.predict_function: Callable[[Any], Any] = look_and_predict
        return self.predict_function

    # ---- State ---------------------------------------------------------------

    @property
    def _seeds(self) -> list[keras.Variable]:
        """The states of random generators."""
        known = {id(v) for v in self.weights + self.metrics_variables}
        return [v for v in self.variables if id(v) not in known]

    @property
    def random_states(self) -> list[keras.Variable]:
        """The states of random generators, for models around this one."""
        return self._seeds

    @contextlib.contextmanager
    def _kept_seeds(self) -> Iterator[None]:
        """Leaves the random state as it was."""
        # A file for a runtime that has no variables is not to have any.
        with state.kept([] if has_source() else self._seeds):
            yield

    @contextlib.contextmanager
    def _kept_state(self) -> Iterator[None]:
        """Leaves what a pass moves as it was; sequences start within."""
        with state.kept(self._seen.moving):
            if self._seen.moving:
                state.reset_states(self)
            yield

    def _make_runs(self, num_samples: int | None = None) -> None:
        """Makes what keeps states: a step that is compiled cannot."""
        if self._seen.moving:
            num_samples = num_samples or self._options.eval_num_samples
            assert num_samples is not None
            self._sample_runs(num_samples)

    def _sample_runs(self, num_samples: int) -> state.SampleRuns:
        """What keeps the states of K samples from batch to batch."""
        runs = self._known.runs
        if num_samples not in runs:
            with self._creation_scope():
                runs[num_samples] = state.SampleRuns(
                    self.moving_states, num_samples
                )
        return runs[num_samples]

    @property
    def moving_variables(self) -> list[keras.Variable]:
        """What passes in inference mode move, as far as that is known."""
        return list(self._seen.moving)

    @property
    def states_of_samples(self) -> list[keras.Variable]:
        """The states of the samples of predictions, as far as there are any."""
        runs = self._known.runs.values()
        return [v for of_samples in runs for v in of_samples.states]

    @property
    def moving_states(self) -> list[keras.Variable]:
        """What passes in inference mode move, but metrics."""
        metrics = {id(v) for v in self.metrics_variables}
        return [v for v in self._seen.moving if id(v) not in metrics]


def batches_in(
    args: tuple[Any, ...], steps: int
) -> tuple[list[Any], tuple[Any, ...]]:
    """The batches that one execution is given, and its arguments.

    Its last argument is a list of them or an iterator. On JAX the state of the
    model comes first.
    """
    *state, batches = args
    if isinstance(batches, list):
        return batches, args
    taken = list(itertools.islice(batches, steps))
    if not taken:
        raise StopIteration
    return taken, (*state, iter(taken))


def _symbolic(array: Any) -> Any:
    if array is None:
        return None
    return keras.KerasTensor(
        (None, *array.shape[1:]),
        keras.backend.standardize_dtype(array.dtype),
    )
