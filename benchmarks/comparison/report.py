"""Tables and a picture of the runs that are there."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

# A search of twenty trials is a rival of its own.
MOST_TRAININGS = 5
TUNER = "tuner"
Row = dict[str, Any]
# Key, title, factor and digits, of classification and regression.
SCORES = {
    False: (
        ("accuracy", "accuracy, %", 100, 1),
        ("nll", "NLL", 1, 3),
        ("ece", "ECE", 1, 3),
    ),
    True: (
        ("rmse", "RMSE", 1, 3),
        ("nll", "NLL", 1, 3),
        ("interval_score", "interval score", 1, 2),
    ),
}
COSTS = ("cost", "cost", 1, 2), ("seconds", "seconds", 1, 1)


@dataclasses.dataclass
class Results:
    """Finished runs.

    Args:
        rows: One for each task, run and seed.
        tasks: Which to show, in this order.
        runs: Which to show, in this order.
        seeds: Which to show.
        ours: The run of ours in the summary and the picture.
    """

    rows: list[Row]
    tasks: list[str]
    runs: list[str]
    seeds: list[int]
    ours: str

    def __post_init__(self) -> None:
        self._values = {
            (row["task"], row["run"], row["seed"]): row for row in self.rows
        }

    def of(self, task: str, run: str) -> dict[int, Row]:
        """Its rows by seed."""
        found = {s: self._values.get((task, run, s)) for s in self.seeds}
        return {seed: row for seed, row in found.items() if row}

    def is_regression(self, task: str) -> bool:
        return any("rmse" in r for r in self.rows if r["task"] == task)

    def nll(self, task: str, run: str) -> float:
        """The mean over the seeds; not a number without any."""
        rows = self.of(task, run)
        return float(np.mean([r["nll"] for r in rows.values()] or [np.nan]))

    def best(self, task: str, runs: Iterable[str]) -> str | None:
        """The run with the lowest mean NLL on the test rows."""
        scores = {run: self.nll(task, run) for run in runs}
        known = {run: nll for run, nll in scores.items() if np.isfinite(nll)}
        return min(known, key=lambda run: known[run], default=None)

    def best_rival(self, task: str) -> str | None:
        rivals = [
            run
            for run in self.runs
            if not run.startswith("ours")
            and run != TUNER
            and all(
                row["cost"] < MOST_TRAININGS
                for row in self.of(task, run).values()
            )
        ]
        return self.best(task, rivals)

    def best_dropout(self, task: str) -> str | None:
        rates = [run for run in self.runs if run.startswith("dropout=")]
        return self.best(task, [run for run in rates if "+" not in run])

    def difference(
        self, task: str, run: str, other: str | None
    ) -> np.ndarray | None:
        """Of the NLL, for each seed that both have."""
        first = self.of(task, run)
        second = self.of(task, other) if other else {}
        common = [seed for seed in first if seed in second]
        if not common:
            return None
        return np.array(
            [first[seed]["nll"] - second[seed]["nll"] for seed in common]
        )

    def ratio(self, task: str, run: str, other: str | None) -> float:
        """The NLL in that of another run.

        That of a density depends on the units of its targets, which its
        difference does not: there it is the exponential of the difference,
        which is about the ratio of the standard deviations.
        """
        difference = self.difference(task, run, other)
        if difference is None or other is None:
            return float("nan")
        if self.is_regression(task):
            return float(np.exp(difference.mean()))
        rows = self.of(task, run), self.of(task, other)
        common = [seed for seed in rows[0] if seed in rows[1]]
        nll = [np.mean([r[seed]["nll"] for seed in common]) for r in rows]
        return float(nll[0] / nll[1])

    # Tables

    def markdown(self) -> str:
        parts = [self.table_of(task) for task in self.tasks]
        parts += [self.summary(), self.counts(), self.one_for_all()]
        return "\n\n".join(part for part in parts if part)

    def table_of(self, task: str) -> str:
        columns = (*SCORES[self.is_regression(task)], *COSTS)
        lines = []
        for run in self.runs:
            rows = self.of(task, run)
            if not rows:
                continue
            cells = [run, str(len(rows))]
            for key, _, factor, digits in columns:
                values = factor * np.array([r[key] for r in rows.values()])
                if key in ("cost", "seconds"):
                    values = values.mean(keepdims=True)
                cells.append(formatted(values, digits))
            lines.append(cells)
        titles = ["run", "seeds", *(column[1] for column in columns)]
        return table(f"### {task}", titles, lines)

    def summary(self) -> str:
        """Of each task: ours, and the best of all rivals in hindsight."""
        lines = []
        for task in self.tasks:
            rival = self.best_rival(task)
            ours = self.difference(task, self.ours, rival)
            if ours is None:
                continue
            tuner = self.difference(task, self.ours, TUNER)
            line = [task, f"{self.nll(task, 'plain'):.3f}"]
            line += [f"{rival}: {self.nll(task, rival or ''):.3f}"]
            line += [f"{self.nll(task, TUNER):.3f}"]
            line += [f"{self.nll(task, self.ours):.3f}"]
            line += [formatted(ours, 3, sign=True)]
            line += [f"{100 * self.ratio(task, self.ours, rival) - 100:+.1f}"]
            line += ["" if tuner is None else formatted(tuner, 3, sign=True)]
            lines.append([cell.replace("nan", "") for cell in line])
        titles = [
            "task",
            "plain",
            f"best rival of less than {MOST_TRAININGS} trainings",
            TUNER,
            self.ours,
            "ours - rival, nats",
            "%",
            "ours - tuner, nats",
        ]
        return table("### Summary: test NLL", titles, lines)

    def counts(self) -> str:
        """Of each run of ours: on how many tasks it is no worse."""
        lines = []
        for run in self.runs:
            if not run.startswith("ours"):
                continue
            cells = [run]
            for of in (self.best_rival, lambda task: TUNER):
                found = [
                    (t, self.difference(t, run, of(t))) for t in self.tasks
                ]
                known = [(t, d.mean()) for t, d in found if d is not None]
                if not known:
                    cells += ["", "", ""]
                    continue
                at_or_below = sum(d <= 0 for _, d in known)
                ratios = [np.log(self.ratio(t, run, of(t))) for t, _ in known]
                percent = 100 * np.exp(np.mean(ratios)) - 100
                cells += [f"{at_or_below} of {len(known)}"]
                cells += [f"{np.mean([d for _, d in known]):+.3f}"]
                cells += [f"{percent:+.1f}"]
            if any(cells[1:]):
                lines.append(cells)
        titles = ["run"]
        for other in ("best rival", TUNER):
            titles += [f"at or below {other}", "mean, nats", "mean, %"]
        return table("### Tasks where ours is at or below", titles, lines)

    def one_for_all(self) -> str:
        """Each run as the choice for every task, before any is seen.

        Of those that all tasks have; NLL in that of the best of them.
        """
        runs = [r for r in self.runs if all(self.of(t, r) for t in self.tasks)]
        lines = []
        for run in runs:
            ratios = {
                task: self.ratio(task, run, self.best(task, runs))
                for task in self.tasks
            }
            worst = max(ratios, key=lambda task: ratios[task])
            mean = float(np.exp(np.mean(np.log([*ratios.values()]))))
            lines.append((mean, run, f"{ratios[worst]:.2f}, {worst}"))
        rows = [
            [run, f"{mean:.3f}", worst] for mean, run, worst in sorted(lines)
        ]
        titles = ["run", "geometric mean", "worst"]
        heading = "### One run for all tasks: NLL in that of the best"
        return table(heading, titles, rows)

    # The picture

    def draw(self, path: pathlib.Path) -> None:
        """Test NLL in that of the plain network, a row a task."""
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        tasks = [task for task in self.tasks if self.of(task, "plain")]
        if not tasks:
            raise SystemExit("A picture needs `plain` of one task at least.")
        figure, ax = plt.subplots(
            figsize=(7, 1.4 + 0.36 * len(tasks)), layout="constrained"
        )
        series = (
            ("nothing", "|", "0.35", lambda task: "plain"),
            ("dropout, the best of three", "o", "C1", self.best_dropout),
            ("KerasTuner, 20 trials", "s", "C2", lambda task: TUNER),
            (f"{self.ours}, one run", "D", "C0", lambda task: self.ours),
        )
        for label, marker, color, run_of in series:
            values = [
                self.ratio(task, run_of(task) or "", "plain") for task in tasks
            ]
            if np.isfinite(values).any():
                places = range(len(tasks))
                ax.plot(values, places, marker, color=color, ms=8, label=label)
        names = [task.replace("_", " ") for task in tasks]
        for i, task in enumerate(tasks):
            names[i] += " *" if self.is_regression(task) else ""
        ax.set_yticks(range(len(tasks)), names)
        ax.invert_yaxis()
        ax.axvline(1, color="0.35", lw=0.8)
        ax.set_xlabel("test NLL / that of the plain network (* exp of nats)")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        figure.savefig(path)
        plt.close(figure)


def formatted(values: np.ndarray, digits: int, sign: bool = False) -> str:
    """The mean and, of more than one value, its standard error."""
    text = f"{values.mean():{'+' if sign else ''}.{digits}f}"
    if len(values) > 1:
        error = values.std(ddof=1) / len(values) ** 0.5
        text += f" ± {error:.{digits}f}"
    return text


def table(heading: str, titles: list[str], lines: list[list[str]]) -> str:
    if not lines:
        return ""
    rows = [titles, ["---"] * len(titles), *lines]
    marks = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([heading, "", *marks])
