"""Calibration metrics: in `compile` and on arrays, against references."""

import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from scipy.special import log_softmax
from scipy.special import softmax
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss

import keras_crossreg as kcr
from keras_crossreg._keras import set_keras_mask
from keras_crossreg.metrics import BrierScore
from keras_crossreg.metrics import ExpectedCalibrationError
from keras_crossreg.metrics import NegativeLogLikelihood

ALL = [
    lambda **kwargs: ExpectedCalibrationError(**kwargs),
    lambda **kwargs: ExpectedCalibrationError(class_wise=True, **kwargs),
    lambda **kwargs: ExpectedCalibrationError(equal_mass=True, **kwargs),
    lambda **kwargs: ExpectedCalibrationError(
        equal_mass=True, class_wise=True, **kwargs
    ),
    lambda **kwargs: BrierScore(**kwargs),
    lambda **kwargs: NegativeLogLikelihood(**kwargs),
]
NAMES = ["ece", "class-wise", "equal-mass", "both", "brier", "nll"]
every_metric = pytest.mark.parametrize("make", ALL, ids=NAMES)


def predictions(classes=3, rows=200, seed=0, dtype="float64"):
    """Logits, too sure of themselves, probabilities, and labels."""
    rng = np.random.default_rng(seed)
    logits = 2.0 * rng.normal(size=(rows, classes))
    p = softmax(logits / 1.5, axis=-1)
    y = np.array([rng.choice(classes, p=row) for row in p])
    return (
        y,
        softmax(logits, axis=-1).astype(dtype),
        logits.astype(dtype),
    )


def value(metric, *args, **kwargs):
    return float(metric(*args, **kwargs))


def by_definition(hit, confidence, bins=15, edges=None):
    """As `netcal.metrics.ECE` defines it; `test_netcal` compares them."""
    if edges is None:
        edges = np.linspace(0, 1, bins + 1)
    epsilon = np.finfo(confidence.dtype).eps
    confidence = np.clip(confidence, epsilon, 1 - epsilon)
    place = np.digitize(confidence, edges.astype(confidence.dtype)) - 1
    return sum(
        abs((hit - confidence)[place == b].sum()) for b in range(bins)
    ) / len(hit)


def quantiles(confidence, bins=15):
    edges = np.quantile(confidence, np.linspace(0, 1, bins + 1))
    edges[0], edges[-1] = 0, 1
    return edges


def top_label(y, p):
    return (p.argmax(-1) == y).astype("float64"), p.max(-1)


# Against references


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_ece(bins, dtype):
    y, p, _ = predictions(dtype=dtype)
    expected = by_definition(*top_label(y, p), bins)
    assert expected > 0.05
    metric = ExpectedCalibrationError(bins)
    assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bins", [2, 5, 10, 15, 20])
def test_ece_where_confidence_lies_on_an_edge_and_beside_it(bins, dtype):
    edges = np.linspace(0, 1, bins + 1).astype(dtype)
    p = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, 1)])
    p = np.clip(p, 0, 1).astype(dtype)
    for y in (np.zeros(len(p)), np.ones(len(p)), np.arange(len(p)) % 2):
        expected = by_definition(y, p, bins)
        metric = ExpectedCalibrationError(bins)
        assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


@pytest.mark.float64
def test_a_number_just_below_an_edge_in_float64_stays_below():
    # `numpy.linspace(0, 1, 11)[3]` is 0.30000000000000004. In float32 both
    # are the same number, which is in the bin above.
    p = np.array([0.3, 0.25, 0.35])
    y = np.array([1, 0, 0])
    metric = ExpectedCalibrationError(10)
    assert value(metric, y, p) == pytest.approx((0.45 + 0.35) / 3)
    metric = ExpectedCalibrationError(10)
    expected = (0.25 + 0.35) / 3
    assert value(metric, y, p.astype("float32")) == pytest.approx(expected)


@pytest.mark.parametrize("outputs", [1, 2])
def test_ece_of_two_classes_is_of_the_second(outputs):
    y, p, _ = predictions(2)
    expected = by_definition(y, p[:, 1])
    given = p if outputs == 2 else p[:, 1:]
    metric = ExpectedCalibrationError()
    assert value(metric, y, given) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_class_wise_ece(classes):
    y, p, _ = predictions(classes)
    expected = np.mean([by_definition(y == c, p[:, c]) for c in range(classes)])
    metric = ExpectedCalibrationError(class_wise=True)
    assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


def test_class_wise_ece_of_a_single_output():
    y, p, _ = predictions(2)
    metrics = [ExpectedCalibrationError(class_wise=True) for _ in range(2)]
    one = value(metrics[0], y, p[:, 1:])
    assert one == pytest.approx(value(metrics[1], y, p), abs=1e-6)


def distinct(rows, seed=0):
    """Probabilities of class 1, no two in one cell, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.permutation(np.linspace(-9, 12, rows))
    p = 1 / (1 + np.exp(-logits))
    return (rng.random(rows) < p**2).astype(int), p


# Over these rows, 15 bins are all of one size, of two sizes, and partly empty.
@pytest.mark.parametrize("rows", [300, 203, 45, 16, 7, 2, 1])
def test_equal_mass_where_cells_hold_one_example(rows):
    y, p = distinct(rows)
    expected = by_definition(y, p, edges=quantiles(p))
    metric = ExpectedCalibrationError(equal_mass=True)
    assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)
    y, p = distinct(900)
    y, p = y[:rows], p[:rows]
    metric = ExpectedCalibrationError(equal_mass=True)
    expected = by_definition(y, p, edges=quantiles(p))
    assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


def test_equal_mass_otherwise():
    y, p, _ = predictions(rows=5000)
    hit, confidence = top_label(y, p)
    expected = by_definition(hit, confidence, edges=quantiles(confidence))
    metric = ExpectedCalibrationError(equal_mass=True)
    found = value(metric, y, p)
    # An example on the wrong side of a cut takes at most 1 from one bin's sum
    # and gives it to another's.
    logit = np.log(confidence) - np.log1p(-confidence)
    width = 34 / (2**14 - 2)
    cell = np.floor((logit + 17) / width)
    cuts = np.quantile(confidence, np.arange(1, 15) / 15)
    cuts = np.floor((np.log(cuts) - np.log1p(-cuts) + 17) / width)
    wrong = sum((cell == cut).sum() for cut in cuts)
    assert abs(found - expected) < 2 * wrong / len(y) < 0.03
    # In truth the two differ far less.
    assert found == pytest.approx(expected, abs=1e-3)


def test_equal_mass_with_many_ties():
    # Nine in ten are sure: they share one bin, whatever quantiles say.
    p = np.array([1.0] * 90 + [0.5] * 10)
    y = np.array([1] * 80 + [0] * 10 + [1] * 10)
    metric = ExpectedCalibrationError(equal_mass=True)
    assert value(metric, y, p) == pytest.approx((10 + 5) / 100)


def test_a_cell_goes_where_its_middle_goes():
    # The cut between the two bins is nearer to the first cell's end than to its
    # start.
    p = np.array([0.3] * 4 + [0.6] * 6)
    y = np.array([1] * 4 + [0] * 6)
    metric = ExpectedCalibrationError(2, equal_mass=True)
    assert value(metric, y, p) == pytest.approx((4 * 0.7 + 6 * 0.6) / 10)


def test_equal_mass_and_class_wise():
    y, p = distinct(203)
    expected = np.mean(
        [
            by_definition(y == c, q, edges=quantiles(q))
            for c, q in enumerate((1 - p, p))
        ]
    )
    metric = ExpectedCalibrationError(equal_mass=True, class_wise=True)
    assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_brier_score(classes):
    y, p, _ = predictions(classes)
    expected = brier_score_loss(y, p, labels=range(classes))
    assert value(BrierScore(), y, p) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_negative_log_likelihood(classes):
    y, p, logits = predictions(classes)
    expected = log_loss(y, p, labels=range(classes))
    metric = NegativeLogLikelihood()
    assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)
    metric = NegativeLogLikelihood(from_logits=True)
    assert value(metric, y, logits) == pytest.approx(expected, abs=1e-6)


def test_scores_of_one_output():
    y, p, _ = predictions(2)
    p = p[:, 1]
    expected = brier_score_loss(y, p)
    assert value(BrierScore(), y, p) == pytest.approx(expected, abs=1e-6)
    expected = log_loss(y, p)
    metric = NegativeLogLikelihood()
    assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_certainties(dtype):
    y = np.array([0, 1, 0, 1])
    p = np.array([0.0, 1.0, 1.0, 0.0], dtype)
    assert value(ExpectedCalibrationError(), y, p) == pytest.approx(
        by_definition(y, p), abs=1e-6
    )
    assert value(BrierScore(), y, p) == brier_score_loss(y, p) == 0.5
    expected = log_loss(y, p)
    metric = NegativeLogLikelihood()
    assert value(metric, y, p) == pytest.approx(expected, rel=1e-6)


def test_logits_have_no_limit():
    metric = NegativeLogLikelihood(from_logits=True)
    assert value(metric, [1], [[80.0, -80.0]]) == 160.0
    # A logit of minus infinity does no harm where p must be 0.
    assert value(metric, [0], [[0.0, -np.inf]]) == 80.0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_netcal(classes, dtype):
    netcal = pytest.importorskip("netcal.metrics")
    for seed in range(5):
        y, p, _ = predictions(classes, seed=seed, dtype=dtype)
        for bins in (2, 10, 15):
            expected = netcal.ECE(bins).measure(p, y)
            metric = ExpectedCalibrationError(bins)
            assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)
            pair = (y, p[:, 1]) if classes == 2 else top_label(y, p)
            assert by_definition(*pair, bins) == pytest.approx(
                expected, abs=1e-6
            )
        expected = np.mean(
            [netcal.ECE(15).measure(p[:, c], y == c) for c in range(classes)]
        )
        metric = ExpectedCalibrationError(class_wise=True)
        assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_netcal_on_edges():
    # The two agree in float64 alone: in float32 netcal counts the examples of a
    # bin with edges of float64, and averages over others, with edges of
    # float32.
    netcal = pytest.importorskip("netcal.metrics")
    for bins in (2, 5, 10, 15, 20):
        edges = np.linspace(0, 1, bins + 1)
        p = np.concatenate(
            [edges, np.nextafter(edges, 0), np.nextafter(edges, 1)]
        ).clip(0, 1)
        y = np.arange(len(p)) % 2
        expected = netcal.ECE(bins).measure(p, y)
        assert by_definition(y, p, bins) == pytest.approx(expected)
        metric = ExpectedCalibrationError(bins)
        assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_netcal_equal_mass():
    netcal = pytest.importorskip("netcal.metrics")
    for rows in (300, 203, 45):
        y, p = distinct(rows)
        expected = netcal.ECE(15, equal_intervals=False).measure(p, y)
        edges = quantiles(p)
        assert by_definition(y, p, edges=edges) == pytest.approx(expected)
        metric = ExpectedCalibrationError(equal_mass=True)
        assert value(metric, y, p) == pytest.approx(expected, abs=1e-6)


# Every form of labels, predictions and weights


@every_metric
def test_forms_of_labels(make):
    y, p, _ = predictions()
    expected = value(make(), y, p)
    for same in (y[:, None], np.eye(3)[y], y.astype("float32"), list(y)):
        assert value(make(), same, p) == expected


@every_metric
def test_forms_of_a_single_output(make):
    y, p, _ = predictions(2)
    expected = value(make(), y, p)
    pairs = [
        (labels, given)
        for labels in (y, y[:, None], y.astype("bool"))
        for given in (p[:, 1], p[:, 1:])
    ]
    for labels, given in pairs:
        assert value(make(), labels, given) == pytest.approx(expected)


@every_metric
@pytest.mark.parametrize("classes", [2, 3])
def test_logits(make, classes):
    y, p, logits = predictions(classes)
    expected = value(make(), y, p)
    found = value(make(from_logits=True), y, logits)
    assert found == pytest.approx(expected, abs=1e-6)
    if classes == 2:
        single = logits[:, 1:] - logits[:, :1]
        found = value(make(from_logits=True), y, single)
        assert found == pytest.approx(expected, abs=1e-6)


@every_metric
def test_sequences(make):
    y, p, _ = predictions()
    expected = value(make(), y, p)
    p, y = p.reshape(20, 10, 3), y.reshape(20, 10)
    assert value(make(), y, p) == expected
    assert value(make(), y[..., None], p) == expected
    # A weight is of each sequence, or of each of its steps.
    weight = np.arange(20) % 3
    each = np.repeat(weight[:, None], 10, axis=1)
    expected = value(make(), y, p, each)
    assert value(make(), y, p, weight) == expected
    assert value(make(), y, p, weight[:, None]) == expected


@every_metric
def test_masks(make):
    layer = keras.layers.Masking(-1.0)
    y, p, _ = predictions()
    p = p.astype("float32")
    p[50:] = -1.0
    p, y = p.reshape(20, 10, 3), y.reshape(20, 10)
    masked = layer(p)
    # Masking sets what it leaves out to zero, which are no probabilities.
    masked = keras.ops.where(masked == 0, 1 / 3, masked)
    set_keras_mask(masked, layer.compute_mask(p))
    expected = value(make(), y[:5], p[:5])
    assert value(make(), y, masked) == pytest.approx(expected, abs=1e-6)
    weight = np.arange(20) % 3
    expected = value(make(), y[:5], p[:5], weight[:5])
    found = value(make(), y, masked, weight)
    assert found == pytest.approx(expected, abs=1e-6)


@every_metric
def test_weights_stand_for_copies(make):
    y, p, _ = predictions()
    weight = np.arange(200) % 3
    expected = value(make(), np.repeat(y, weight), np.repeat(p, weight, axis=0))
    found = value(make(), y, p, weight)
    # A cut between cells of several examples may fall elsewhere.
    equal_mass = getattr(make(), "equal_mass", False)
    tolerance = 0.03 if equal_mass else 1e-6
    assert found == pytest.approx(expected, abs=tolerance)
    assert value(make(), y, p, weight / 7) == pytest.approx(found, abs=1e-5)
    assert value(make(), y, p, 3.0) == pytest.approx(value(make(), y, p))


@every_metric
def test_batches(make):
    y, p, _ = predictions()
    weight = np.random.default_rng(0).random(200)
    metric = make()
    # The metric has seen something to forget.
    metric(y[:3], p[:3])
    metric.reset_state()
    for part in (slice(0, 64), slice(64, 199), slice(199, 200)):
        metric.update_state(y[part], p[part], weight[part])
    expected = value(make(), y, p, weight)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


@every_metric
def test_nothing_seen(make):
    assert float(make().result()) == 0.0
    y, p, _ = predictions()
    assert value(make(), y, p, np.zeros(200)) == 0.0


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(make, dtype):
    y, p, _ = predictions(10)
    p = keras.ops.cast(p, dtype)
    expected = value(make(), y, keras.ops.cast(p, "float32"))
    assert value(make(), y, p) == expected


def test_soft_labels():
    y = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3]])
    _, p, logits = predictions(rows=2)
    assert value(BrierScore(), y, p) == pytest.approx(
        ((y - p) ** 2).sum() / 2, abs=1e-6
    )
    assert value(NegativeLogLikelihood(), y, p) == pytest.approx(
        -(y * log_softmax(logits, axis=-1)).sum() / 2, abs=1e-6
    )


# What is refused


@every_metric
def test_logits_are_not_probabilities(make):
    y, _, logits = predictions()
    message = r"from_logits=True.* Received: y_pred with values from -.* to \d"
    with pytest.raises(ValueError, match=message):
        make()(y, logits)
    with pytest.raises(ValueError, match=message):
        make()(y % 2, logits[:, :1])


@every_metric
def test_outputs_that_do_not_sum_to_one(make):
    y, p, _ = predictions()
    with pytest.raises(ValueError, match="Received: y_pred with values from"):
        make()(y, p / 2)
    # Rounding is no harm.
    rounded = value(make(), y, np.round(p, 3))
    assert rounded == pytest.approx(value(make(), y, p), abs=0.02)


@every_metric
@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_out_of_range(make, wrong):
    y, p, _ = predictions()
    y[7] = wrong
    with pytest.raises(ValueError, match="from 0 to 2.*Received: y_true with"):
        make()(y, p)


@every_metric
def test_shapes_that_do_not_fit(make):
    y, p, _ = predictions()
    with pytest.raises(ValueError, match=r"y_pred of shape \(200, 3\)$"):
        make()(np.zeros((200, 4)), p)


def test_predictions_that_are_not_numbers_show():
    y, p, _ = predictions()
    p[0] = np.nan
    for make in ALL:
        assert np.isnan(value(make(), y, p))


@pytest.mark.parametrize("num_bins", [0, -1, 1.5])
def test_no_bins(num_bins):
    with pytest.raises(ValueError, match=f"Received: num_bins={num_bins}$"):
        ExpectedCalibrationError(num_bins)


# In `compile`


def all_metrics(**kwargs):
    return [
        make(name=name, **kwargs) for make, name in zip(ALL, NAMES, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_compiled_training(jit_compile):
    model = compile_model(
        make_model(),
        metrics=all_metrics(),
        weighted_metrics=[BrierScore(name="weighted")],
        run_eagerly=False,
        jit_compile=jit_compile,
    )
    x, y = make_data(20, seed=3)
    weight = np.arange(20) % 3
    history = fit(
        model, validation_data=(x, y, weight), validation_batch_size=20
    ).history
    p = model.predict(x, batch_size=20, verbose=0)
    for metric in all_metrics():
        found = history[f"val_{metric.name}"][0]
        assert found == pytest.approx(value(metric, y, p), abs=1e-6)
        assert np.isfinite(history[f"reg_{metric.name}"][0])
    expected = value(BrierScore(), y, p, weight)
    assert history["val_weighted"][0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)]
)
@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="Keras compiles nothing here, and it is refused",
)
def test_compiled_code_says_so_with_nan(jit_compile):
    x, y = make_data()
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        loss=loss,
        metrics=all_metrics(),
        weighted_metrics=[BrierScore(from_logits=True, name="right")],
        jit_compile=jit_compile,
    )
    if keras.backend.backend() == "jax" and not jit_compile:
        # What Keras does not compile runs eagerly there, and can say more.
        with pytest.raises(ValueError, match="expects probabilities"):
            model.evaluate(x, y, verbose=0)
        return
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert all(np.isnan(logs[name]) for name in NAMES)
    p = softmax(model.predict(x, verbose=0), axis=-1)
    expected = brier_score_loss(y, p)
    assert logs["right"] == pytest.approx(expected, abs=1e-6)
    # The next data have another chance.
    kernel = np.zeros((3, 2))
    kernel[0] = -0.1, 0.1
    model.layers[-1].set_weights([kernel, np.full(2, 0.5)])
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    p = model.predict(x, verbose=0)
    for metric in all_metrics():
        expected = value(metric, y, p)
        assert logs[metric.name] == pytest.approx(expected, abs=1e-6)


@pytest.mark.float64
@every_metric
def test_config(make):
    kwargs = dict(from_logits=True, name="mine", dtype="float64")
    if isinstance(make(), ExpectedCalibrationError):
        kwargs["num_bins"] = 7
    metric = make(**kwargs)
    config = keras.metrics.serialize(metric)
    assert config["registered_name"].startswith("keras_crossreg>")
    copy = keras.metrics.deserialize(config)
    assert type(copy) is type(metric)
    assert copy.get_config() == metric.get_config()
    y, _, logits = predictions()
    assert value(copy, y, logits) == value(metric, y, logits)
    if keras.backend.backend() != "torch":
        # There Keras divides, and takes means, in float32.
        dtype = keras.backend.standardize_dtype(copy.result().dtype)
        assert dtype == "float64"


def test_saved_in_a_model(tmp_path):
    model = compile_model(make_model(), metrics=all_metrics())
    x, y = make_data()
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    found = loaded.evaluate(x, y, verbose=0, return_dict=True)
    assert found == pytest.approx(expected, abs=1e-6)
    assert set(NAMES) < set(found)


def test_names():
    names = [make().name for make in ALL]
    assert names == ["ece"] * 4 + ["brier_score", "nll"]
    assert kcr.metrics.BrierScore is BrierScore
