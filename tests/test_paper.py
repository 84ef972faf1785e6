"""The scripts of the paper's tables, at the scale of seconds."""

import importlib
import json
import pathlib
import re
import sys

import keras
import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

pytestmark = pytest.mark.slow

PAPER = pathlib.Path(__file__).parents[1] / "examples" / "paper"


def random_images(name, split):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (400, 32, 32, 3), "uint8")
    return x, rng.integers(0, 10, 400).astype("int32")


@pytest.fixture
def script(monkeypatch):
    """Imports a script."""
    monkeypatch.syspath_prepend(PAPER)
    return importlib.import_module


@pytest.fixture
def run(script, monkeypatch, tmp_path):
    """Runs some rows of a script on random images, and returns them."""
    monkeypatch.setattr(script("common"), "images", random_images)

    def run(name, *runs):
        module = script(name)
        # What the scale "paper" has, at that of seconds.
        every = {**getattr(module, "PAPER_RUNS", {}), **module.RUNS}
        assert set(runs) <= set(every)
        monkeypatch.setattr(module, "RUNS", {r: every[r] for r in runs})
        module.command(["--scale", "smoke", "--out", str(tmp_path)])
        page = (tmp_path / f"{name}-smoke.md").read_text()
        assert "not with published" in page
        pictures = re.findall(r"!\[\]\((.*)\)", page)
        assert pictures
        for picture in pictures:
            assert (tmp_path / picture).stat().st_size > 1000
        stored = getattr(module, "STORED", name)
        lines = (tmp_path / f"{stored}-smoke.jsonl").read_text().splitlines()
        rows = {row["run"]: row for row in map(json.loads, lines)}
        assert list(rows) == list(runs)
        for run in runs:
            assert f"| {run} " in page
            for score in ("accuracy", "nll", "brier", "ece", "gap"):
                assert np.isfinite(rows[run][score])
        return [rows[run] for run in runs]

    return run


def test_calibration_makes_a_table_and_resumes(
    script, monkeypatch, tmp_path, capsys
):
    if not tfds.builder("cifar10").data_path.exists():
        monkeypatch.setattr(script("common"), "images", random_images)
    calibration = script("calibration")
    runs = {
        name: calibration.RUNS[name]
        for name in ("uncalibrated", "temperature scaling", "cross-regularized")
    }
    arguments = ["--scale", "smoke", "--out", str(tmp_path)]

    def run():
        calibration.main("Title.", "calibration", runs, arguments)
        lines = (tmp_path / "calibration-smoke.jsonl").read_text()
        return [json.loads(line) for line in lines.splitlines()]

    rows = run()
    assert [row["run"] for row in rows] == list(runs)
    # A run that was interrupted goes on with what is missing.
    (tmp_path / "calibration-smoke.jsonl").write_text(
        json.dumps(rows[0]) + "\n"
    )
    capsys.readouterr()
    again = run()
    assert "uncalibrated\n" not in capsys.readouterr().out.split("| run")[0]
    assert again[0] == rows[0] and len(again) == 3
    for first, second in zip(rows, again, strict=True):
        for score in ("accuracy", "nll", "brier", "ece"):
            assert np.isfinite(first[score])
            assert second[score] == pytest.approx(first[score], rel=1e-4)
    page = (tmp_path / "calibration-smoke.md").read_text()
    assert "| cross-regularized" in page and "not with published" in page
    assert (tmp_path / "calibration-smoke.png").stat().st_size > 1000


# They are there to show what the library warns of.
ignore_warnings = pytest.mark.filterwarnings("ignore::UserWarning")


@ignore_warnings
def test_noise_and_what_it_costs(run, script, monkeypatch, capsys):
    pytest.importorskip("keras_tuner")
    noise = script("noise")
    monkeypatch.setattr(noise, "TRIALS", 1)
    names = "fixed sigma, best of 5", "cross-regularized"
    searched, learned = run("noise", *names)
    # 192 images for two epochs, and with 64 more in the training at the end.
    assert searched["passes"] == 2 * 192 + 2 * 256
    assert len(set(searched["rho"])) == 1 and 0.03 <= searched["rho"][0] <= 3
    # A rho step, of K samples of an example, in each of 48 steps, after the
    # quarter of them in which rho wait: so few are they.
    assert learned["passes"] == 2 * 192 + 36 * 16
    curves = learned["history"].values()
    assert len(learned["rho"]) == 3 and all(len(c) == 2 for c in curves)
    assert any(name.startswith("rho/") for name in learned["history"])
    # Nothing is trained again.
    capsys.readouterr()
    assert run("cost", *names) == [searched, learned]
    assert "Seed" not in capsys.readouterr().out


@ignore_warnings
def test_noise_breeds_a_population(run):
    pytest.importorskip("keras_tuner")
    pytest.importorskip("ray.tune")
    plain, bred = run("noise", "no regularization", "PBT, population 4")
    assert bred["passes"] == 4 * 2 * 192
    assert bred["seconds"] > bred["training"] > 0
    assert len(set(bred["rho"])) == 3
    assert all(0.03 <= sigma <= 3 for sigma in bred["rho"])


@ignore_warnings
def test_noise_of_the_scale_paper(run):
    pytest.importorskip("keras_tuner")
    dropped, finished = run(
        "noise", "dropout, usual places", "cross-regularized, finished"
    )
    assert dropped["rho"] == [] and dropped["passes"] == 2 * 256
    # An epoch in which rho learn, and one with all data.
    assert finished["passes"] == 192 + 256
    assert len(finished["rho"]) == 3


@ignore_warnings
def test_an_ensemble_goes_on_at_its_next_member(script, monkeypatch, tmp_path):
    calibration, common = script("calibration"), script("common")
    tiny = {"paper": common.SCALES["smoke"]}
    monkeypatch.setattr(calibration, "MEMBERS", 2)
    runs = {"ensemble of 5": calibration.PAPER_RUNS["ensemble of 5"]}
    trained = []

    def uncalibrated(experiment):
        trained.append(len(trained))
        if len(trained) == 2:
            raise KeyboardInterrupt
        experiment.spent["elsewhere"] += 1.0
        return np.full((100, 10), 0.1)

    monkeypatch.setattr(calibration, "uncalibrated", uncalibrated)
    data = {}
    for split in ("train", "test"):
        data[f"{split}_x"], data[f"{split}_y"] = random_images("", split)
    np.savez(tmp_path / "images.npz", **data)

    def start():
        calibration.main(
            "Title.",
            "calibration",
            runs,
            ["--scale", "paper", "--out", str(tmp_path)]
            + ["--images", str(tmp_path / "images.npz")],
            scales=tiny,
        )

    with pytest.raises(KeyboardInterrupt):
        start()
    start()
    # The first member was not trained again.
    assert len(trained) == 3
    assert len((tmp_path / "calibration-paper.jsonl").read_text()) > 10


def test_every_script_has_its_rows_of_the_scale_paper(script):
    pytest.importorskip("keras_tuner")
    scale = script("common").SCALES["paper"]
    assert scale.epochs == 30 and scale.steps_per_execution > 1
    for name, some in (
        ("noise", {"dropout, usual places", "cross-regularized, finished"}),
        ("calibration", {"ensemble of 5", "cross-regularized, finished"}),
        ("augmentation", {"no augmentation", "cross-regularized, finished"}),
    ):
        runs = script(name).PAPER_RUNS
        assert some <= set(runs)
        assert not any("best of" in run or "PBT" in run for run in runs)


@pytest.mark.parametrize("missing", ["keras_tuner", "ray"])
def test_noise_says_what_is_missing(script, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "noise", raising=False)
    with pytest.raises(SystemExit, match=r"keras-crossreg\[search\]"):
        script("noise").command(["--scale", "smoke"])


@ignore_warnings
def test_architecture_removes_the_noise(run):
    (row,) = run("architecture", "WRN, cross-regularized")
    # Behind the first layer, two in each of three blocks, and at the end.
    assert len(row["rho"]) == 8
    assert row["largest"] == max(row["rho"])
    assert row["silent_nll"] != row["nll"]


@ignore_warnings
def test_augmentation_learns_widths(run):
    images, digits = run(
        "augmentation",
        "cross-regularized",
        "turned digits, rotation learned from 10",
    )
    widths = "translation", "rotation", "shear", "zoom", "brightness"
    assert [images[name] for name in widths] == images["rho"]
    assert images["rotation"] != pytest.approx(3.0)
    assert digits["rho"] == [digits["rotation"]]
    assert digits["rotation"] != pytest.approx(10.0)
    assert 0 <= digits["six_nine"] <= 1


@ignore_warnings
def test_widths_wait_or_not(run):
    at_once, later, fixed = run(
        "warmup",
        "learned from 1 px, at once, momentum 0.9",
        "learned from 2 px",
        "0.5 px, fixed",
    )
    assert at_once["translation"] != pytest.approx(1)
    assert later["translation"] != pytest.approx(2)
    assert fixed["translation"] == pytest.approx(0.5)


def test_turned_digits_are_the_digits_turned(script):
    augmentation, common = script("augmentation"), script("common")
    like = common.Experiment.__new__(common.Experiment)
    like.scale, like.seed = common.SCALES["smoke"], 0
    plain, turned = (augmentation.Digits(like, t) for t in (False, True))
    x, y = plain.test
    z, same = turned.test
    np.testing.assert_array_equal(y, same)
    matches = np.array(
        [
            [np.array_equal(np.rot90(a, n), b) for n in range(4)]
            for a, b in zip(x, z, strict=True)
        ]
    )
    assert matches.any(axis=1).all() and (matches.mean(axis=0) > 0.1).all()


@ignore_warnings
def test_regularization_set_takes_its_part(run):
    (row,) = run("regularization_set_size", "20 %, a sigma per unit")
    assert (row["reg"], row["number"]) == (51, 8 * (32**2 + 16**2) + 16)


@ignore_warnings
def test_ablation_takes_parts_away(run):
    (one_sample,) = run("ablation", "K = 1")
    assert len(one_sample["rho"]) == 3


# Of which one is to be seen here: that nothing moves them.
@pytest.mark.filterwarnings("ignore:These rho have not moved")
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="steps of their own"
)
def test_ablation_has_models_with_steps_of_their_own(run):
    deterministic, joint = run("ablation", "deterministic validation", "joint")
    # No gradient, no learning.
    assert deterministic["rho"] == pytest.approx([0.3] * 3, rel=1e-5)
    # Of every step of the training.
    assert joint["examples"] == 2 * 256
    assert joint["least"] == min(joint["rho"])
    assert joint["most"] == max(joint["rho"])
    assert np.abs(np.array(joint["rho"]) - 0.3).max() > 0.01
