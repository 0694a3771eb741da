"""The path that every example goes: train, export, verify, profile, run. The commands of the same names do the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from exporter.bundle import Bundle
from exporter.bundle.verify import self_test
from exporter.run import export_run
from selector import Budget, Runtime, profile_bundle
from sortednet.console import guard
from trainer.making import train_run
from trainer.start import Start


def whole_path(
    family: str,
    data: str,
    out: Path | None = None,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    data_options: Mapping[str, Any] | None = None,
    start: Start | None = None,
    **options: Any,
) -> Bundle:
    """Trains `module:Family` on a data source into `out` (default: a new temporary folder), and prints what came of it.

    `grid`: other sizes than the family's. `start`: a trained model to begin with. `options` are those of the training (see
    `trainer.FitOptions`). Returns the bundle, measured on this machine.
    """
    out = out or Path(tempfile.mkdtemp(prefix="sortednet-"))
    trained = train_run(
        family,
        data,
        out / "run",
        grid=grid or {},
        settings={},
        data_options=data_options,
        start=start,
        options=options,
        say=print,
    )
    bundle = export_run(out / "run", out / "bundle")
    error = self_test(bundle).largest_error
    print(f"trained {len(bundle.submodels)} sub-models in {trained['seconds']:.0f} s; graphs and torch differ by {error:.0e}")
    profile = profile_bundle(bundle, device="here", threads=1, repeats=20)
    bundle.save_profile(profile)
    for name, entry in bundle.submodels.items():
        metrics = "  ".join(f"{metric} {value:.3f}" for metric, value in entry.metrics.items())
        print(f"{name:12}  {entry.params:8,} parameters  {profile.submodels[name].latency_ms.p50:7.3f} ms  {metrics}")
    runtime = Runtime(bundle, threads=1)
    inputs = {name: array[:1] for name, array in bundle.selftest_inputs.items()}
    took = [costs.latency_ms.p50 for costs in profile.submodels.values()]
    limit = (min(took) + max(took)) / 2
    ran = runtime.run(inputs, Budget(latency_ms=limit))
    shapes = ", ".join(f"{name} {array.shape}" for name, array in ran.outputs.items())
    print(f"within {limit:.3f} ms: {ran.selection.submodel} ({ran.selection.reason}) gives {shapes}")
    print(f"the bundle: {bundle.path}, {bundle.bytes_total / 1e6:.2f} MB")
    runtime.close()
    return bundle


def as_script(main: Callable[..., None]) -> None:
    """Runs a script with the arguments that `main` takes: like the commands it has `--help`, and one line for wrong input."""
    typer.run(guard(main))
