"""`python -m benchmarks.text.accuracy`: everything; with a command (`--help`) one experiment, or the report."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.summary import add_to_summary, commit, environment
from benchmarks.text import report as reports
from benchmarks.text import sorting as sortings
from benchmarks.text.data import TASKS
from benchmarks.text.experiment import METHODS, Experiment, run, setting
from benchmarks.training.report import read_results, write_csv
from trainer.accelerator import find_accelerator

RESULTS = Path(__file__).parent / "results"
SEEDS = 2

Seed = Annotated[int, typer.Option(min=0)]
Threads = Annotated[int, typer.Option(min=0, help="0: torch's default.")]

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Fine-tunes all-MiniLM-L6-v2 in 48 sizes and by what that is compared with. Without a command: everything, in hours."""
    if context.invoked_subcommand is None:
        for seed in range(SEEDS):
            for task in TASKS:
                for method in METHODS:
                    run_experiment(task, method, seed, threads=0)
        for task in TASKS:
            sorting(task, seed=0, threads=0)
        report()


@app.command("run")
def run_experiment(task: str, method: str, seed: Seed = 0, threads: Threads = 0) -> None:
    """Trains TASK (bbc, gloss) by METHOD and measures its sizes on the test split. Goes on where it was stopped."""
    experiment = Experiment(_known(TASKS, task, "task"), _known(METHODS, method, "method"), seed)
    target = RESULTS / "runs" / f"{experiment.name}.json"
    if target.exists():
        print(f"{target} exists: nothing to do")
        return
    _set(threads)
    _write(target, run(experiment, setting(task)))
    found = json.loads(target.read_text(encoding="utf-8"))["accuracy"].values()
    print(f"{experiment.name}: mean {sum(found) / len(found):.4f}, least {min(found):.4f}")


@app.command()
def sorting(task: str, seed: Seed = 0, threads: Threads = 0) -> None:
    """Measures, on the validation split, what the order of units is worth at half of their number before any training."""
    target = RESULTS / "sorting" / f"{_known(TASKS, task, 'task')}-s{seed}.json"
    if target.exists():
        print(f"{target} exists: nothing to do")
        return
    _set(threads)
    _write(target, {"rows": sortings.measure(task, seed, setting(task))})


@app.command()
def report() -> None:
    """Writes the figures, tables and the plot from the results that there are."""
    results = read_results(RESULTS / "runs")
    runs = {task: reports.Runs(results, task) for task in TASKS}
    figures = {f"{task}.{name}": value for task, of in runs.items() for name, value in of.figures().items()}
    write_csv(RESULTS / "accuracy.csv", reports.accuracy_rows(results))
    write_csv(RESULTS / "sorting.csv", reports.sorting_table(read_results(RESULTS / "sorting")))
    reports.plot(runs, RESULTS / "accuracy.png")
    add_to_summary(RESULTS, "make bench-text; python -m benchmarks.text.accuracy", figures, reports.NOTES)
    for name, value in figures.items():
        print(f"{name:45} {value:.4f}")


def _set(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


def _accelerator() -> str:
    return torch.cuda.get_device_name() if find_accelerator().device.type == "cuda" else find_accelerator().device.type


def _known(names: Any, name: str, kind: str) -> str:
    if name not in names:
        raise typer.BadParameter(f"{kind} {name!r}: allowed are {', '.join(names)}")
    return name


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "command": f"python -m benchmarks.text.accuracy {shlex.join(sys.argv[1:])}".strip(),
        "environment": {**environment(), "threads": torch.get_num_threads(), "accelerator": _accelerator()},
        "commit": commit(),
    }
    path.write_text(json.dumps({**document, **about}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
