"""Pictures: what they show, and that they can be read."""

import ast
import pathlib
import sys

import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from scipy.special import softmax
from scipy.stats import binomtest

import keras_crossreg as kcr
from keras_crossreg import visualization as vis

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


class Holder(keras.layers.Layer):
    """Holds rho, `{name: (value, meaning)}`."""

    def __init__(self, rho, **kwargs):
        super().__init__(**kwargs)
        for name, (value, meaning) in rho.items():
            shape = np.shape(value)
            weight = self.add_weight(
                name=name, shape=shape, dtype="float32", autocast=False
            )
            kcr.mark_rho(weight, meaning)

    def call(self, inputs):
        return inputs


def recorded(values, start=None, meanings=None):
    """A `RhoHistory` as `fit` leaves it behind.

    The values start at those of the first epoch where no others are given.
    """
    start = start or {path: epochs[0] for path, epochs in values.items()}
    meanings = meanings or {}
    layers = {}
    for path in values:
        layer, name = path.split("/")
        rho = start[path], meanings.get(path, "noise sigma")
        layers.setdefault(layer, {})[name] = rho
    holders = [Holder(rho, name=layer) for layer, rho in layers.items()]
    model = keras.Sequential([keras.Input((3,)), *holders])
    model.compile()
    weights = {weight.path: weight for weight in model.weights}

    def assign(rho):
        for path, value in rho.items():
            weights[path].assign(value)

    history = kcr.callbacks.RhoHistory()
    history.set_model(model)
    assign(start)
    history.on_train_begin()
    for epoch in range(len(next(iter(values.values())))):
        assign({path: epochs[epoch] for path, epochs in values.items()})
        history.on_epoch_end(epoch)
    return history


def noise_model(scales, axis=None):
    inputs = x = keras.Input((3,))
    for i, scale in enumerate(scales):
        layer = kcr.layers.GaussianNoiseScale
        x = layer(scale, axis=axis, name=f"noise_{i}")(x)
    return kcr.CrossRegModel(inputs, x)


def texts(ax):
    """Every text of a drawn figure that can be seen, with its size."""
    ax.figure.canvas.draw()
    return {
        text.get_text(): text.get_fontsize()
        for text in ax.figure.findobj(matplotlib.text.Text)
        if text.get_text() and text.get_visible()
    }


def draw_all():
    """One of each."""
    y, p = predictions()
    history = recorded({"a/scale": [0.1, 0.2], "b/scale": [0.3, 0.4]})
    return [
        vis.plot_rho_history(history),
        vis.plot_rho_by_layer(noise_model([0.1, 0.2])),
        vis.plot_reliability_diagram(y, p, label="a model"),
        vis.plot_learning_curves({"loss": [2, 1], "reg_loss": [3, 2]}),
    ]


def predictions(rows=300, classes=3):
    """Labels, and probabilities that are too sure of them."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(rows, classes))
    true = softmax(logits / 2, axis=-1)
    y = np.array([rng.choice(classes, p=row) for row in true])
    return y, softmax(logits, axis=-1)


# All of them


def test_new_axes_are_readable_at_the_width_of_a_column():
    for ax in draw_all():
        assert isinstance(ax, matplotlib.axes.Axes)
        assert ax.figure.get_size_inches()[0] == pytest.approx(3.3)
        assert ax.get_xlabel() and ax.get_ylabel() or ax.get_yticklabels()
        sizes = texts(ax)
        assert len(sizes) > 5 and min(sizes.values()) >= 7, sizes
        # Nothing is cut off.
        box = ax.figure.get_tightbbox()
        assert box.x0 >= -0.01 and box.x1 <= 3.31, box


@pytest.mark.parametrize("length", [1, 6, 20])
def test_legends_are_not_cut_off(length):
    names = [letter * length for letter in "abcdefg"]
    values = {f"{name}/scale": [0.1, 0.2] for name in names}
    ax = vis.plot_rho_history(recorded(values))
    ax.figure.canvas.draw()
    assert ax.figure.get_tightbbox().x1 <= 3.31
    # Legends leave room for what they explain.
    assert ax.get_window_extent().height / ax.figure.dpi > 1.2


def test_given_axes_are_drawn_into():
    _, axes = plt.subplots(1, 4)
    before = plt.get_fignums()
    y, p = predictions()
    history = recorded({"a/scale": [0.1, 0.2]})
    drawn = [
        vis.plot_rho_history(history, ax=axes[0]),
        vis.plot_rho_by_layer(noise_model([0.1]), ax=axes[1]),
        vis.plot_reliability_diagram(y, p, ax=axes[2]),
        vis.plot_learning_curves({"loss": [1]}, ax=axes[3]),
    ]
    assert all(a is b for a, b in zip(drawn, axes, strict=True))
    assert plt.get_fignums() == before


def test_matplotlib_settings_stay_as_they_were():
    before = dict(matplotlib.rcParams)
    draw_all()
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    message = r"`plot_rho_by_layer` .* 'keras-crossreg\[visualization\]'"
    with pytest.raises(ImportError, match=message):
        vis.plot_rho_by_layer(noise_model([0.1]))


def test_matplotlib_is_imported_only_when_used():
    package = pathlib.Path(kcr.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "matplotlib" not in ast.unparse(node), path


# Learned values over the epochs


def test_rho_history():
    # These numbers have no rounding in float32.
    values = {"a/scale": [0.125, 0.25], "b/scale": [[0.25, 0.5], [0.5, 1.0]]}
    start = {"a/scale": 0.0625, "b/scale": [0.25, 0.25]}
    ax = vis.plot_rho_history(recorded(values, start))
    one, each = ax.get_lines()
    assert one.get_xdata().tolist() == [0, 1, 2]
    assert one.get_ydata().tolist() == [0.0625, 0.125, 0.25]
    np.testing.assert_allclose(each.get_ydata(), [0.25, 0.375, 0.75])
    (band,) = ax.collections
    extents = band.get_paths()[0].get_extents()
    assert (extents.y0, extents.y1) == (0.25, 1.0)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["a", "b (mean, range)"]
    assert ax.get_xlabel() == "Epoch" and ax.get_ylabel() == "Noise sigma"
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0


def test_rho_history_of_a_run():
    model = compile_model(make_model())
    history = kcr.callbacks.RhoHistory()
    fit(model, epochs=2, callbacks=[history])
    (line,) = vis.plot_rho_history(history, "noise").get_lines()
    expected = [0.5, *history.history["noise/scale"]]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)


def test_values_of_several_magnitudes():
    ax = vis.plot_rho_history(recorded({"a/s": [0.3, 1e-4], "b/s": [0.3, 13]}))
    assert ax.get_yscale() == "log"
    # Zero has no place there.
    ax = vis.plot_rho_history(recorded({"a/s": [0.3, 0.0], "b/s": [0.3, 13]}))
    assert ax.get_yscale() == "linear"


def test_many_rho_are_coloured_by_order():
    values = {f"noise_{i}/scale": [0.3, 0.1 * i + 0.1] for i in range(9)}
    ax = vis.plot_rho_history(recorded(values))
    assert ax.get_legend() is None
    assert len({line.get_color().tobytes() for line in ax.get_lines()}) == 9
    found = texts(ax)
    assert {"first", "last", "Order in the network"} <= set(found)
    assert min(found.values()) >= 7
    few = dict(list(values.items())[:7])
    ax = vis.plot_rho_history(recorded(few))
    assert len({line.get_color() for line in ax.get_lines()}) == 7
    assert len(ax.get_legend().get_texts()) == 7


def test_selection_and_names():
    values = {"a/scale": [0.1], "a/shift": [0.2], "b/scale": [0.3]}
    history = recorded(values)

    def names(select):
        ax = vis.plot_rho_history(history, select)
        return [line.get_label() for line in ax.get_lines()]

    # The name of a layer does where it is enough.
    assert names("scale") == ["a", "b"]
    assert names(["b/scale", "a/scale"]) == ["a", "b"]
    assert names(None) == ["a/scale", "a/shift", "b/scale"]
    # Each curve names its unit where there are several.
    history = recorded(values, meanings={"a/shift": "shift (pixels)"})
    assert names(None)[1] == "a: shift (pixels)"
    assert names("a/s")[0] == "a: noise sigma"
    ax = vis.plot_rho_history(history)
    assert ax.get_ylabel() == "Learned value"
    with pytest.raises(ValueError, match="Received: select=x$"):
        names("x")


def test_an_empty_record():
    with pytest.raises(ValueError, match="Received: history=<"):
        vis.plot_rho_history(kcr.callbacks.RhoHistory())


# By layer


def test_rho_by_layer():
    ax = vis.plot_rho_by_layer(noise_model([0.2, 0.1, 0.4]))
    bars = sorted(ax.patches, key=lambda bar: bar.get_y())
    widths = [bar.get_width() for bar in bars]
    np.testing.assert_allclose(widths, [0.2, 0.1, 0.4], rtol=1e-6)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["noise_0", "noise_1", "noise_2"]
    # The input is at the top.
    bottom, top = ax.get_ylim()
    assert bottom > top
    assert ax.get_xlabel() == "Noise sigma"
    assert {"0.2", "0.1", "0.4"} <= set(texts(ax))


def test_rho_by_layer_with_several_values():
    model = noise_model([0.2, 0.1], axis=-1)
    model.set_rho({"noise_1/scale": [0.1, 0.2, 0.6]})
    ax = vis.plot_rho_by_layer(model)
    np.testing.assert_allclose(
        [bar.get_width() for bar in ax.patches], [0.2, 0.3], rtol=1e-6
    )
    (lines,) = ax.collections
    np.testing.assert_allclose(
        lines.get_segments()[1], [[0.1, 1], [0.6, 1]], rtol=1e-6
    )
    assert ax.get_xlabel() == "Noise sigma (mean, range)"


def test_rho_by_layer_over_several_magnitudes():
    ax = vis.plot_rho_by_layer(noise_model([0.05, 13.0]))
    assert ax.get_xscale() == "log" and not ax.patches
    (points,) = ax.get_lines()
    np.testing.assert_allclose(points.get_xdata(), [0.05, 13], rtol=1e-6)


def test_rho_by_layer_without_rho():
    with pytest.raises(ValueError, match="Received: select=None$"):
        vis.plot_rho_by_layer(make_model(rho=False))


# Reliability


@pytest.mark.parametrize("equal_mass", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_reliability_diagram(classes, equal_mass):
    y, p = predictions(classes=classes)
    ax = vis.plot_reliability_diagram(y, p, 5, equal_mass, label="a model")
    if classes == 2:
        hit, confidence = y == 1, p[:, 1]
    else:
        hit, confidence = y == p.argmax(-1), p.max(-1)
    edges = np.linspace(0, 1, 6)
    if equal_mass:
        edges[1:-1] = np.quantile(confidence, edges[1:-1])
    place = np.digitize(confidence, edges) - 1
    some = [b for b in range(5) if (place == b).any()]
    (points,) = ax.containers[-1][:1]
    expected = [confidence[place == b].mean() for b in some]
    np.testing.assert_allclose(points.get_xdata(), expected)
    expected = [hit[place == b].mean() for b in some]
    np.testing.assert_allclose(points.get_ydata(), expected)
    (intervals,) = ax.containers[-1][2]
    for b, segment in zip(some, intervals.get_segments(), strict=True):
        test = binomtest(int(hit[place == b].sum()), int((place == b).sum()))
        interval = test.proportion_ci(method="wilson")
        np.testing.assert_allclose(
            segment[:, 1], [interval.low, interval.high], atol=1e-4
        )
    # Equal shares need no bars.
    heights = [bar.get_height() for bar in ax.patches]
    expected = [] if equal_mass else [(place == b).mean() for b in range(5)]
    np.testing.assert_allclose(heights, expected)
    if not equal_mass:
        metric = kcr.metrics.ExpectedCalibrationError(5)
        ece = f"a model: ECE {float(metric(y, p)):.3f}"
        assert ece in texts(ax)


def test_reliability_of_logits_and_of_one_output():
    y, p = predictions(classes=2)
    expected = set(texts(vis.plot_reliability_diagram(y, p)))
    assert set(texts(vis.plot_reliability_diagram(y, p[:, 1]))) == expected
    ax = vis.plot_reliability_diagram(y, np.log(p), from_logits=True)
    assert set(texts(ax)) == expected


def test_bins_hold_their_lower_edge():
    p, y = np.array([0.2, 0.3, 0.4, 1.0]), np.array([0, 1, 1, 0])
    ax = vis.plot_reliability_diagram(y, p, 5)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, [0, 0.5, 0.25, 0, 0.25])


def test_two_models_in_one_diagram():
    y, p = predictions()
    ax = vis.plot_reliability_diagram(y, p, label="one")
    half = softmax(np.log(p) / 2, axis=-1)
    vis.plot_reliability_diagram(y, half, label="two", ax=ax)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [name.split(":")[0] for name in legend] == ["one", "two"]
    one, two = (
        container[0]
        for container in ax.containers
        if container.get_label() in legend
    )
    assert one.get_color() != two.get_color()
    assert one.get_marker() != two.get_marker()
    assert min(texts(ax).values()) >= 7


def test_reliability_refuses_logits():
    y, p = predictions()
    with pytest.raises(ValueError, match="`plot_reliability_diagram` expects"):
        vis.plot_reliability_diagram(y, np.log(p))
    with pytest.raises(ValueError, match="Received: num_bins=0$"):
        vis.plot_reliability_diagram(y, p, 0)


# Learning curves


def test_learning_curves():
    model = compile_model(make_model(), metrics=["accuracy"])
    validation_data = make_data(12, seed=2)
    history = fit(model, epochs=2, validation_data=validation_data)
    ax = vis.plot_learning_curves(history, "accuracy")
    found = {line.get_label(): line for line in ax.get_lines()}
    names = {"training": "", "regularization": "reg_", "validation": "val_"}
    assert list(found) == list(names)
    for label, prefix in names.items():
        line = found[label]
        assert line.get_xdata().tolist() == [1, 2]
        assert line.get_ydata().tolist() == history.history[prefix + "accuracy"]
    assert len({line.get_color() for line in found.values()}) == 3
    assert len({line.get_linestyle() for line in found.values()}) == 3
    assert ax.get_xlabel() == "Epoch" and ax.get_ylabel() == "Accuracy"


def test_learning_curves_with_gaps():
    nan = float("nan")
    logs = {"loss": [2.0, 1.0, 0.01], "reg_loss": [nan, 1.0, nan]}
    ax = vis.plot_learning_curves(logs)
    assert ax.get_yscale() == "log"
    vis.plot_learning_curves({"loss": [nan]})
    assert vis.plot_learning_curves({"a_b": [-1, 9]}, "a_b").get_ylabel() == (
        "A b"
    )


def test_an_unknown_metric():
    with pytest.raises(ValueError, match=r"\['loss'\]. Received: metric=nll$"):
        vis.plot_learning_curves({"loss": [1.0]}, "nll")
