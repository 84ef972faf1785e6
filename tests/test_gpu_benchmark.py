"""The benchmark of a GPU, on the device at hand, at the scale of seconds."""

import importlib
import json
import pathlib

import keras
import pytest

pytestmark = pytest.mark.backend

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
QUICK = [
    "fit: transformer, 128, float32: keras",
    "fit: transformer, 128, float32: learning",
]
NOT_TORCH = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="it has no XLA"
)


@pytest.fixture
def script(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def run(script, tmp_path, capsys):
    """Runs the command; returns the rows in its file and what it printed."""
    out = tmp_path / "gpu.jsonl"

    def run(*arguments):
        script("gpu").main(["--smoke", "--out", str(out), *arguments])
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return rows, capsys.readouterr().out

    run.out = out
    return run


def check(row):
    assert "error" not in row, row["error"]
    assert 0 < row["low"] <= row["ms"] <= row["high"]
    assert row["backend"] == keras.backend.backend()
    assert keras.__version__ == row["versions"]["keras"]
    assert row["device"] and row["smoke"]


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(run):
    rows, printed = run("--only", *QUICK)
    assert [row["case"] for row in rows] == QUICK
    for row in rows:
        check(row)
    assert "learning / keras" in printed
    # An interrupted run has lost one case.
    run.out.write_text(json.dumps(rows[0]) + "\n")
    again, printed = run("--only", *QUICK)
    assert again[0] == rows[0] and [r["case"] for r in again] == QUICK
    assert f"{QUICK[0]}\n" not in printed and f"{QUICK[1]}\n" in printed


def test_rows_of_another_device_do_not_count(run, script):
    rows = [{"case": case, "ms": 1.0, "device": "other"} for case in QUICK]
    run.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, printed = run("--list", "--only", *QUICK)
    assert printed.splitlines() == QUICK
    row = rows[0] | script("gpu").setup(smoke=True)
    run.out.write_text(json.dumps(row) + "\n")
    _, printed = run("--list", "--only", *QUICK)
    assert printed.splitlines() == [f"{QUICK[0]} (is there)", QUICK[1]]


def test_no_case_begins_when_the_time_is_over(run):
    run.out.touch()
    rows, printed = run("--only", *QUICK, "--minutes", "-1")
    assert not rows
    assert "No time is left for 2 cases" in printed


def test_a_case_that_fails_is_a_row(run, script, monkeypatch):
    def fails(case, size):
        raise MemoryError("of the device")

    monkeypatch.setitem(script("gpu_cases").WHAT, "fit", fails)
    rows, printed = run("--only", QUICK[0])
    assert rows[0]["error"] == "MemoryError: of the device"
    assert "MemoryError" in printed
    # It is tried again.
    monkeypatch.undo()
    _, printed = run("--list", "--only", QUICK[0])
    assert "is there" not in printed


def test_the_grid_has_what_was_asked_for(script):
    cases = script("gpu_cases").cases()
    fits = {c for c in cases if c.what == "fit"}
    steps = {1} if keras.backend.backend() == "torch" else {1, 8}
    assert len(cases) == len(set(cases))
    assert len(fits) == 3 * 2 * 3 * len(steps) * 4
    assert {c.network for c in fits} == {"VGG-16", "WRN-16-4", "transformer"}
    assert {c.batch_size for c in fits} == {128, 1024}
    assert {c.steps_per_execution for c in fits} == steps
    assert {c.kind for c in fits} == {"none", "keras", "frozen", "learning"}
    # First what the goals are about.
    first = [c.kind for c in cases[:4]]
    assert sorted(first) == ["frozen", "keras", "learning", "none"]


def test_ratios(script):
    rows = [
        dict(case="fit: a: keras", ms=2.0, first_s=10.0, peak_mib=100.0),
        dict(case="fit: a: frozen", ms=1.5, first_s=12.0, peak_mib=None),
        dict(case="fit: a: learning", ms=2.2, first_s=15.0, peak_mib=110.0),
        dict(case="predict: a: K=16", ms=3.0),
        dict(case="predict: b: plain", ms=3.0),
    ]
    found = {
        (r["setting"], r["ratio"]): (r["value"], r["limit"])
        for r in script("gpu").ratios(rows)
    }
    assert found == {
        ("fit: a", "frozen / keras, a step"): (0.75, 1.0),
        ("fit: a", "learning / keras, a step"): (1.1, 1.12),
        ("fit: a", "frozen / keras, to the first step"): (1.2, 1.3),
        ("fit: a", "learning / keras, to the first step"): (1.5, 2.0),
        ("fit: a", "learning / keras, memory"): (1.1, 1.2),
    }


@pytest.mark.slow
def test_smoke(run, script):
    rows, _ = run()
    assert len(rows) == len(script("gpu").chosen(None, smoke=True)) >= 9
    for row in rows:
        if "F16_F16_F32' is not supported by dot_general" in row.get(
            "error", ""
        ):
            # JAX on a CPU cannot, with layers of Keras alone neither.
            assert keras.backend.backend() == "jax"
            continue
        check(row)
    assert {row["what"] for row in rows} == {"fit", "predict", "augment"}


@pytest.mark.slow
def test_a_case_in_a_process_of_its_own(run):
    rows, _ = run(
        "--only", "fit: WRN-16-4, 1024, mixed_bfloat16: learning", "--fresh"
    )
    (row,) = rows
    check(row)


def test_instructions_are_counted(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script("hlo"), "LEAST", 3)
    text = (
        "HloModule jit_step\n\n%add (a: f32[]) -> f32[] {\n"
        "  %a = f32[] parameter(0)\n  ROOT %b = f32[] add(%a, %a)\n}\n\n"
        "ENTRY %main () -> f32[] {\n  ROOT %c = f32[] constant(0)\n}\n"
    )
    for name, content in (
        ("module_0001.jit_small.before_optimizations.txt", text[:80]),
        ("module_0002.jit_step.before_optimizations.txt", text),
        ("module_0002.jit_step.cpu_after_optimizations.txt", text[:120]),
    ):
        (tmp_path / name).write_text(content)
    found = script("hlo").counted(tmp_path)
    assert found == [{"given": 3, "optimized": 2}]


@pytest.mark.slow
@NOT_TORCH
def test_noise_of_an_accelerator_is_as_much_as_that_of_keras(script):
    # Of a transformer of six blocks: the rest of a step is the same.
    measure = script("hlo").measure
    keras_noise, ours = (
        measure("transformer", kind, "accelerator")["theta"]["optimized"]
        for kind in ("keras", "frozen")
    )
    assert ours < 1.05 * keras_noise
