"""`make bench-training`, or one command per experiment: `python -m benchmarks.training --help`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.summary import commit, environment, write_summary
from benchmarks.training import cost as costs
from benchmarks.training import report as reports
from benchmarks.training import sorting as sortings
from benchmarks.training.experiment import Experiment, run
from benchmarks.training.methods import CONVERTING, METHODS, SORT, VARIANTS, Method
from benchmarks.training.setups import SETUPS
from trainer.data import load_data

RESULTS = Path(__file__).parent / "results"
WORK = Path("build/training")
EPOCHS = 16
ABLATION_EPOCHS = 8
MAIN = ("ours", "sandwich", "sorted-1", "separate", "convert", "sorted-total")  # with two seeds
ONE_SETUP = ("convert-1", "convert-4")  # the sweep over the budget, on the first

Data = Annotated[str, typer.Option(help="A data set as for `sortednet train`, cifar10 for example.")]
Seed = Annotated[int, typer.Option(min=0)]
Epochs = Annotated[int, typer.Option(min=1, help="Of a method with one sub-model per step; the others' follow from it.")]
Threads = Annotated[int, typer.Option(min=0, help="0: torch's default.")]

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Trains 160 sub-models by every method and compares them. Without a command: everything, which takes hours."""
    if context.invoked_subcommand is None:
        everything()


@app.command("run")
def run_experiment(
    setup: str,
    method: str,
    seed: Seed = 0,
    epochs: Epochs = EPOCHS,
    threads: Threads = 0,
    data: Data = "fashion-mnist",
    again: Annotated[bool, typer.Option("--again", help="Also where results are there: trains the model once more.")] = False,
) -> None:
    """Trains SETUP by METHOD and measures every sub-model on the test split. Goes on where it was stopped."""
    experiment = Experiment(_known_setup(setup), method, seed, epochs, data)
    known = _known(METHODS | CONVERTING, method, "method")
    _experiment(experiment, known, "runs", {"validation": 32, "test": 0}, threads, again)


@app.command()
def ablate(
    variant: str,
    setup: str = "resnet",
    seed: Seed = 0,
    epochs: Epochs = ABLATION_EPOCHS,
    threads: Threads = 0,
    data: Data = "fashion-mnist",
) -> None:
    """Trains a VARIANT of our recipe and measures 32 sub-models on the validation split."""
    experiment = Experiment(_known_setup(setup), variant, seed, epochs, data)
    _experiment(experiment, _known(VARIANTS, variant, "variant"), "ablation", {"validation": 32}, threads)


@app.command()
def sorting(setup: str, seed: Seed = 0, epochs: Epochs = EPOCHS, threads: Threads = 0, data: Data = "fashion-mnist") -> None:
    """Measures what the order of units is worth at half width before any training, and which blocks to keep."""
    if threads:
        torch.set_num_threads(threads)
    rows = sortings.measure(_known_setup(setup), seed, epochs, load_data(data), WORK / "runs")
    _write(RESULTS / "sorting" / f"{setup}-s{seed}.json", {"rows": rows, "environment": environment(), "commit": commit()})
    for row in rows:
        print(row)


@app.command()
def cost(
    threads: Threads = 2,
    data: Data = "fashion-mnist",
    part: Annotated[list[str] | None, typer.Option(help=f"Only these again: {', '.join(costs.PARTS)}.")] = None,
) -> None:
    """Measures where a step's time goes, the trainer's overhead, and every method's time and memory. Wants a quiet machine."""
    torch.set_num_threads(threads)
    target = RESULTS / "cost.json"
    document = json.loads(target.read_text(encoding="utf-8")) if part and target.exists() else {}
    for setup in SETUPS:
        document[setup] = document.get(setup, {}) | costs.measure(setup, METHODS, data, threads, part or costs.PARTS)
    _write(target, {**document, "environment": {**environment(), "threads": threads}, "commit": commit()})


@app.command()
def report(epochs: Epochs = EPOCHS, data: Data = "fashion-mnist") -> None:
    """Writes the figures, tables and plots from the results of that length and data set that there are."""
    results = [r for r in reports.read_results(RESULTS / "runs") if (r["epochs"], r["data"]) == (epochs, data)]
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for setup in SETUPS:
        runs = reports.Runs(results, setup)
        if not runs.complete:
            continue
        figures |= {f"{setup}.{name}": value for name, value in runs.figures().items()}
        rows += runs.table()
        reports.plot(runs, RESULTS / f"{setup}.png", f"{reports.NAMES[setup]} on {data}: 160 sub-models of one training")
        if runs.seeds("convert", "separate"):
            reports.plot_sweep(runs, RESULTS / f"{setup}-budget.png", f"{reports.NAMES[setup]} on {data}")
    sorted_rows = reports.sorting_table(reports.read_results(RESULTS / "sorting"))
    figures |= reports.sorting_figures(sorted_rows, SORT)
    reports.write_csv(RESULTS / "sorting.csv", sorted_rows)
    for setup, found in reports.overheads(RESULTS / "cost.json").items():
        figures[f"{setup}.trainer_overhead"] = found
    reports.write_csv(RESULTS / "methods.csv", rows)
    reports.write_csv(RESULTS / "accuracy.csv", reports.accuracy_rows(results))
    reports.write_csv(RESULTS / "ablation.csv", reports.ablation_table(reports.read_results(RESULTS / "ablation")))
    write_summary(RESULTS, "make bench-training", figures, reports.NOTES)
    for name, value in figures.items():
        print(f"{name:40} {value:.4f}")


def everything() -> None:
    """Two experiments at a time, each on one thread, then the costs, then the report."""
    first = [["ablate", variant] for variant in VARIANTS]
    then: list[list[str]] = []
    for setup in SETUPS:
        for method in METHODS | CONVERTING:
            if method in ONE_SETUP and setup != next(iter(SETUPS)):
                continue
            commands = first if method in METHODS else then  # which begin with what `separate` has trained
            commands += [["run", setup, method, "--seed", str(seed)] for seed in range(2 if method in MAIN else 1)]

    def start(command: list[str]) -> None:
        subprocess.run([sys.executable, "-m", "benchmarks.training", *command, "--threads", "1"], check=True)

    for commands in (first, then):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(start, commands))
    cost()
    report()


def _experiment(
    experiment: Experiment, method: Method, folder: str, splits: dict[str, int], threads: int, again: bool = False
) -> None:
    target = RESULTS / folder / f"{experiment.name}.json"
    if target.exists() and not again:
        print(f"{target} exists: nothing to do; --again trains the model once more")
        return
    if threads:
        torch.set_num_threads(threads)
    result = run(experiment, method, WORK / folder, splits)
    _write(target, {"command": f"python -m benchmarks.training {shlex.join(sys.argv[1:])}", **result})
    found = list(result["accuracy"][next(reversed(splits))].values())
    print(f"{experiment.name}: mean {sum(found) / len(found):.4f}, least {min(found):.4f}, {result['cost']['seconds']:.0f} s")


def _known(methods: dict[str, Method], name: str, kind: str) -> Method:
    if name not in methods:
        raise typer.BadParameter(f"{kind} {name!r}: allowed are {', '.join(methods)}")
    return methods[name]


def _known_setup(setup: str) -> str:
    if setup not in SETUPS:
        raise typer.BadParameter(f"setup {setup!r}: allowed are {', '.join(SETUPS)}")
    return setup


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
