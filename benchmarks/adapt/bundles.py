"""The bundle of the scenarios: 160 sub-models whose accuracies differ enough for a choice to matter."""

from __future__ import annotations

from pathlib import Path

from benchmarks.training.setups import DEPTHS
from exporter.bundle import Bundle
from exporter.run import export_run
from trainer.making import train_run

WORK = Path("build/adapt")
WIDTHS = tuple(round(k / 12, 4) for k in (1, 2, 3, 4, 6, 8, 10, 12))
EPOCHS = 6


def trained() -> Bundle:
    """A ResNet on whole Fashion-MNIST from 2, 4, 8 channels to 24, 48, 96, at full resolution; trained if need be."""
    path = WORK / "bundle"
    if not (path / "manifest.json").exists():
        run = WORK / "run"
        train_run(
            "resnet",
            "fashion-mnist",
            run,
            grid={"width": WIDTHS, "depth": DEPTHS},
            settings={"channels": (24, 48, 96), "multiple": 2},
            options={"epochs": EPOCHS},
            resume=run.exists(),
        )
        export_run(run, path)
    return Bundle(path)
