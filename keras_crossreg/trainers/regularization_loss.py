"""The loss of the regularization set, and its gradient by rho."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_crossreg import _keras
from keras_crossreg import primitives
from keras_crossreg.hypergradients.correction import SecondOrderError
from keras_crossreg.hypergradients.correction import correction
from keras_crossreg.rho import is_rho
from keras_crossreg.rho_model import RhoModel
from keras_crossreg.sampling import state
from keras_crossreg.sampling.averaging import join
from keras_crossreg.sampling.stochastic_layers import is_stochastic
from keras_crossreg.trainers import reg_data
from keras_crossreg.trainers.data_checks import are_beyond_classes
from keras_crossreg.trainers.data_checks import label_range
from keras_crossreg.trainers.data_checks import not_finite_rows
from keras_crossreg.trainers.data_checks import num_classes
from keras_crossreg.trainers.reg_metrics import RegMetrics


@dataclasses.dataclass
class CheckedBatch:
    """The regularization batch that was checked last.

    A plain object: Keras would track a structure.

    Attributes:
        like: Symbolic tensors like the training batch that goes with it, or
            `None`.
        key: What tells it from others that need a check of their own.
        train_batch: In a rho step: the training batch that a `hypergradient`
            looks at, for a `rho_step` of the user's own that hands on one.
    """

    like: Any = None
    key: Any = None
    train_batch: Any = None
    #: The least and the most of the integer targets that were fine.
    labels: tuple[int, int] = (0, -1)


class RegularizationLoss(RhoModel):
    """L_reg, the loss of the average of K sampled predictions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rho_optimizer: Any = None
        self._reg_metrics = RegMetrics()
        self._checked = CheckedBatch()

    def _rho_gradients(self, data: Any, train_data: Any) -> Any:
        """L_reg and `dL_reg / drho`.

        With a `hypergradient` other than the direct one, also what theta's
        answer to rho adds, from L_train on `train_data`.

        Returns:
            `(loss, y_pred, gradients, is_positive)`, the last of which tells
            whether the curvature of L_train was positive, where it is used.
        """
        second_order = self._options.second_order
        rho = self._learning_rho()
        theta = [] if second_order is None else self.theta_variables
        crossing = self._learning_level_sets()
        # The gradient is by rho alone, and by theta where they shall answer.
        watched = [*rho, *theta, *(s.weight for s in crossing)]
        noisy = self._rho_with_gap(rho) if train_data is not None else []
        batches = [data]
        if noisy:
            batches.append(self._rows_to_compare(train_data, data))
        ((loss, y_pred), found), *compared = primitives.in_turn(
            lambda batch: self._gradients_of_average(batch, watched), batches
        )
        if compared:
            found = self._with_gap(noisy, watched, found, compared[0][1])
        gradients = found[: len(rho)]
        answers = found[len(rho) : len(rho) + len(theta)]
        across = found[len(rho) + len(theta) :]
        # Weights with a learned regularizer leave a part of theirs to rho.
        g_rho = {
            id(level_set.rho): level_set.rho_gradient(g)
            for level_set, g in zip(crossing, across, strict=True)
            if g is not None
        }
        gradients = [
            g_rho.get(id(v), g) for v, g in zip(rho, gradients, strict=True)
        ]
        is_positive: Any = True
        if second_order is not None and theta:
            added, is_positive = correction(
                second_order,
                functools.partial(
                    self._training_loss,
                    reg_data.first_examples(
                        train_data, second_order.batch_size
                    ),
                ),
                theta,
                rho,
                answers,
                learning_rate=lambda: self.optimizer.learning_rate,
                received=self._options.hypergradient,
            )
            gradients = [
                g if g is None else g + a
                for g, a in zip(gradients, added, strict=True)
            ]
        return loss, y_pred, gradients, is_positive

    def _gradients_of_average(
        self, data: Any, watched: list[keras.Variable]
    ) -> tuple[tuple[Any, Any], list[Any]]:
        """The loss of averaged predictions, these, and the gradients of it."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        num_samples = self._num_samples
        passes = self._samples_for_passes(x, num_samples)

        def loss_of_average(passes: Any) -> Any:
            samples = passes or self._sample_in_passes(
                x, num_samples, num_samples
            )
            y_pred = self._average(join(samples, num_samples))
            loss = self._loss_without_a_trace(x, y, y_pred, sample_weight)
            # Theta's answer is to the loss of the examples alone.
            scaled = self.rho_optimizer.scale_loss(loss - self._penalty())
            return scaled, (loss, y_pred)

        seen, found, upstream = primitives.value_and_gradients(
            loss_of_average, watched, passes
        )
        in_each = self._in_each_pass(
            num_samples, self._options.samples_per_pass
        )
        found = primitives.gradient_in_passes(
            lambda: self._sample(x, in_each), upstream, watched, found
        )
        return seen, found

    def _rho_with_gap(self, rho: list[keras.Variable]) -> list[keras.Variable]:
        """Those of noise, where the gap is what they learn from."""
        return [] if self._options.gap is None else self._rho_of_noise(rho)

    def _rho_of_noise(self, rho: list[keras.Variable]) -> list[keras.Variable]:
        """Those of stochastic layers."""
        noise = {
            id(v)
            for layer in _keras.all_layers(self)
            if is_stochastic(layer)
            for v in layer.variables
        }
        return [v for v in rho if id(v) in noise]

    def _rows_to_compare(self, train_data: Any, data: Any) -> Any:
        """As many training examples, in the form of a regularization batch."""
        gap = self._options.gap
        assert gap is not None
        size = gap.batch_size or reg_data.batch_rows(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(
            reg_data.first_examples(train_data, size)
        )
        if keras.utils.unpack_x_y_sample_weight(data)[2] is None:
            # The two losses are compared, and weigh alike.
            sample_weight = None
        return x, y, sample_weight

    def _with_gap(
        self,
        noisy: list[keras.Variable],
        watched: list[keras.Variable],
        g_reg: list[Any],
        g_train: list[Any],
    ) -> list[Any]:
        """`g_train + c (g_reg - g_train)` for the rho of stochastic layers."""
        gap = self._options.gap
        assert gap is not None
        answering = {id(v) for v in noisy}
        return [
            t + gap.factor * (g - t)
            if id(v) in answering and g is not None and t is not None
            else g
            for v, g, t in zip(watched, g_reg, g_train, strict=True)
        ]

    def _samples_for_passes(self, x: Any, num_samples: int) -> list[Any]:
        """Samples in several passes, whose noise the next passes repeat.

        None where one pass does: for few samples, and where `call` adds a
        loss of its own, which is of a single pass.
        """
        most = self._options.samples_per_pass
        if num_samples <= most:
            return []
        with self._kept_seeds():
            parts = self._sample_in_passes(x, num_samples, most)
        return [] if _keras.call_losses(self) else parts

    def _loss_without_a_trace(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any
    ) -> Any:
        """`compute_loss`, where no metric moves that is of other batches.

        Keras counts the loss of each output there; so may a user's own.
        """
        with state.kept(self._moved_by_compute_loss):
            return _keras.compute_loss(self, x, y, y_pred, sample_weight)

    @property
    def _moved_by_compute_loss(self) -> list[keras.Variable]:
        """Metrics, and variables of the model itself, that it may assign."""
        if type(self).compute_loss is keras.Model.compute_loss:
            return _keras.variables_of_loss_metrics(self)
        of_layers = {
            id(v) for layer in _keras.all_layers(self) for v in layer.weights
        }
        own = [
            v
            for v in self.non_trainable_weights
            if id(v) not in of_layers and not is_rho(v)
        ]
        return [*own, *self.metrics_variables]

    def _penalty(self) -> Any:
        """What the regularizers of theta add to the loss of any examples."""
        return sum(
            ops.cast(v.regularizer(v), "float32")
            for v in self.theta_variables
            if v.regularizer is not None
        )

    def _training_loss(self, data: Any) -> Any:
        """L_train as a function of theta and of rho, and nothing else.

        The pass of a training step, but that the gradient of rho is let
        through. It leaves no trace: every variable, the state of random
        generators and of BatchNormalization too, keeps its value.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        # The scope has all of theta: Keras asks it for every weight with a
        # regularizer.
        values = {id(v): (v, v.value) for v in self.theta_variables}
        for s in self._level_sets:
            values[id(s.weight)] = s.weight, s.moved()
        with _keras.NestedScope(list(values.values()), collect_losses=True):
            y_pred = self(x, training=True, sampling=True)
            return _keras.compute_loss(self, x, y, y_pred, sample_weight)

    # ---- Checks before a weight moves ----------------------------------------

    def _reached(
        self, gradients: Callable[[Any], list[Any]], batch: Any
    ) -> list[bool]:
        """Whether a gradient reaches each rho; of a backend.

        Traces `gradients(batch)` without moving anything.
        """
        raise NotImplementedError

    def _run_once(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """`step(batch)`, as in a rho step, for a look at what comes out."""
        return step(batch)

    def _gradients_to_check(self, batch: Any) -> Any:
        """`_rho_gradients`, with a training batch where L_train takes part.

        It has the same structure. A gap is one of two gradients of the same
        kind: one of them will do.
        """
        answers = self._options.second_order is not None
        return self._rho_gradients(batch, batch if answers else None)

    def _check_rho_step(self, rho: list[keras.Variable], batch: Any) -> None:
        """Raises a ValueError where a rho step on the batch would fail."""
        y_pred = None

        def gradients(data: Any) -> list[Any]:
            nonlocal y_pred
            _, y_pred, found, _ = self._gradients_to_check(data)
            return list(found)

        try:
            with self._kept_seeds():
                reached = self._reached(gradients, batch)
            if not self._reg_metrics.built:
                _, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
                with self._creation_scope():
                    self._reg_metrics.build(
                        *map(reg_data.symbolic, (y, y_pred, weight))
                    )
        except SecondOrderError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            if self._checked.like is not None:
                # This check says more, where the sizes are the cause.
                reg_data.check_batches_match(
                    self._checked.like, batch, sizes=True
                )
            raise ValueError(
                f"{error}\nThis came up in the regularization pass: "
                "`reg_data` must hold inputs and targets that fit the model "
                "and its loss. "
                f"Received: reg_data={reg_data.describe(batch)}"
            ) from error
        classes = num_classes(self.loss, y_pred)
        if classes is not None:
            self._checked.labels = (0, classes - 1)
        lost = [
            v.path
            for v, is_there in zip(rho, reached, strict=True)
            if not is_there
        ]
        if lost:
            raise ValueError(
                "No gradient of the regularization loss reaches these rho: "
                "they do not take part in a sampling pass (`call(..., "
                "sampling=True)`), or a gradient is stopped on the way. "
                f"Received: rho={lost}"
            )

    def _check_values(self, batch: Any) -> None:
        """Refuses a batch whose numbers fail in a rho step, or spoil rho.

        Numbers that are not finite, and labels beyond those that were fine,
        are tried before theta moves.
        """
        rows = not_finite_rows(batch)
        _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        labels = label_range(y)
        least, most = self._checked.labels
        if not rows and (
            labels is None or (least <= labels[0] and labels[1] <= most)
        ):
            return
        try:
            with self._kept_seeds():
                loss, y_pred, gradients, _ = self._run_once(
                    self._gradients_to_check, batch
                )
        except SecondOrderError:
            raise
        except Exception as error:
            raise ValueError(
                f"{error}\nThis came up in the regularization pass. "
                f"Received: reg_data={reg_data.describe(batch)}, integer "
                f"targets from {labels and labels[0]} to "
                f"{labels and labels[1]}"
            ) from error
        if not self._are_finite(loss, gradients) or are_beyond_classes(
            self.loss, y, y_pred, getattr(self, "output_names", None)
        ):
            raise ValueError(
                "There are NaN or infinities in `reg_data`, or labels that "
                "the loss does not take, and they spoil the regularization "
                "loss. Leave such examples out, or mask them in the "
                "model and in the loss. "
                f"Received: rows of reg_data={rows}, integer targets from "
                f"{labels and labels[0]} to {labels and labels[1]}"
            )
        if labels is not None:
            self._checked.labels = min(least, labels[0]), max(most, labels[1])

    def _are_finite(self, loss: Any, gradients: list[Any]) -> bool:
        """Whether a rho step would take them.

        An optimizer that scales the loss looks for itself: its first scales
        may be too large for sixteen bits.
        """
        scales = isinstance(
            self.rho_optimizer, keras.optimizers.LossScaleOptimizer
        )
        numbers = [loss] if scales else [loss, *gradients]
        return all(np.isfinite(ops.convert_to_numpy(v)).all() for v in numbers)

    def _check_finite(self, rows: list[int], batch: Any) -> None:
        """Refuses examples that would make rho not a number, for good.

        `batch`: the examples of arrays that hold a NaN or an infinity, and
        `rows` their numbers. A model or a loss may know how to mask them.
        """
        if not rows:
            return
        batch = reg_data.with_ranks_of(self._checked.like, batch)
        with self._kept_seeds():
            loss, _, gradients, _ = self._run_once(
                self._gradients_to_check, batch
            )
        if not self._are_finite(loss, gradients):
            raise ValueError(
                "There are NaN or infinities in `reg_data`, and they make the "
                "regularization loss one too. Leave such examples out, or "
                "mask them in the model and in the loss. "
                f"Received: rows of reg_data={rows}"
            )
