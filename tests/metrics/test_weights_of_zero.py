"""What has no weight is not looked at, by any metric."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_crossreg import metrics
from keras_crossreg._keras import set_keras_mask

METRICS = [
    metrics.BrierScore,
    metrics.ExpectedCalibrationError,
    metrics.NegativeLogLikelihood,
]
P = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], "float32")
Y = np.array([1, 0, 2])


def result(cls, y, p, weight=None, **arguments):
    metric = cls(**arguments)
    metric.update_state(y, p, weight)
    return float(metric.result())


@pytest.mark.parametrize("cls", METRICS)
@pytest.mark.parametrize("label", [-1, 255])
def test_labels_to_ignore(cls, label):
    y, p = np.append(Y, label), np.concatenate([P, P[:1]])
    found = result(cls, y, p, np.array([1.0, 1, 1, 0]))
    assert found == pytest.approx(result(cls, Y, P), rel=1e-6)


@pytest.mark.parametrize("cls", METRICS)
def test_one_hot_rows_of_zeros_under_a_mask(cls):
    one_hot = np.eye(3, dtype="float32")[Y]
    y = np.stack([one_hot, np.zeros((3, 3), "float32")])
    p = ops.convert_to_tensor(np.stack([P, P]))
    mask = np.array([[True] * 3, [False] * 3])
    set_keras_mask(p, ops.convert_to_tensor(mask))
    found = result(cls, y, p)
    assert found == pytest.approx(result(cls, one_hot, P), rel=1e-6)


@pytest.mark.parametrize("cls", METRICS)
@pytest.mark.parametrize("from_logits", [False, True])
def test_predictions_that_are_no_numbers(cls, from_logits):
    p = np.log(P) if from_logits else P
    more = np.concatenate([p, np.full((1, 3), np.nan, "float32")])
    found = result(
        cls,
        np.append(Y, 0),
        more,
        np.array([1.0, 1, 1, 0]),
        from_logits=from_logits,
    )
    expected = result(cls, Y, p, from_logits=from_logits)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cls", METRICS)
def test_compiled(cls):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile(
        loss="mse", weighted_metrics=[cls(name="metric")], run_eagerly=False
    )
    y = np.concatenate([np.eye(3)[Y], np.zeros((1, 3))])
    found = model.evaluate(
        np.concatenate([P, P[:1]]),
        y,
        sample_weight=np.array([1.0, 1, 1, 0]),
        verbose=0,
        return_dict=True,
    )["metric"]
    assert found == pytest.approx(result(cls, Y, P), rel=1e-5)


@pytest.mark.parametrize("cls", METRICS)
def test_a_label_that_counts_is_still_refused(cls):
    with pytest.raises(ValueError, match="expects labels from 0 to 2"):
        result(cls, np.array([1, 0, 3]), P, np.array([1.0, 0, 1]))
