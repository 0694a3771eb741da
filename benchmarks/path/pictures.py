"""What reading pictures from files costs a training: an image folder against the same pixels as one array."""

from __future__ import annotations

import resource
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.path.found import Found
from trainer import FitOptions, NestedModel, Samples
from trainer.data import DataSet, Examples, load_data
from trainer.families import ResNet
from trainer.training import _Training

PICTURES, SIDE, BATCH = 2_000, 64, 64
PAIRS = 3


def measure() -> Found:
    """Both train for an epoch in turn, from the same weights, over the same batches and sub-models."""
    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name))
        data = load_data(f"image-folder:{name}")
        pixels = data.train.batch(torch.arange(len(data.train)))
        images = next(iter(pixels.inputs.values())).mul(255).round().to(torch.uint8).contiguous()  # as data in memory are kept
        variants = [("folder", data.train), ("array", Samples(images, pixels.targets))]
        rows: list[dict[str, object]] = []
        for pair in range(PAIRS):
            for kind, examples in variants[:: 1 if pair % 2 else -1]:  # neither always comes first
                rows.append({"part": "pictures", "pair": pair, "kind": kind, **_epoch(data, examples)})
    rates, cpu = (
        {kind: np.array([row[field] for row in rows if row["kind"] == kind], dtype=float) for kind, _ in variants}
        for field in ("steps_per_second", "cpu_seconds")
    )
    figures = {
        "image_folder_speed_ratio": float(np.median(rates["folder"] / rates["array"])),
        "image_folder_cpu_ratio": float(np.median(cpu["folder"] / cpu["array"])),
    }
    note = (
        f"steps per second over those with the same {PICTURES} PNGs of {SIDE} x {SIDE} in colour as one array: median of "
        f"{PAIRS} pairs of epochs in turn, the demo's family, batch {BATCH}, with worker processes"
    )
    notes = {
        "image_folder_speed_ratio": note,
        "image_folder_cpu_ratio": "processor time of the same epochs, that of the workers included",
    }
    return Found(figures, notes, rows)


def write_folder(root: Path) -> None:
    """Parts of the two photos that come with scikit-learn, a class each, at random places and scales."""
    values = np.random.default_rng(0)
    for part, count in {"train": PICTURES, "validation": 20, "test": 20}.items():
        for label, photo in enumerate(load_sample_images().images):
            folder = root / part / ("china", "flower")[label]
            folder.mkdir(parents=True)
            picture = Image.fromarray(photo)
            for i in range(count // 2):
                side = int(values.integers(SIDE, 4 * SIDE))
                left, top = (int(values.integers(0, whole - side)) for whole in picture.size)
                box = (left, top, left + side, top + side)
                picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box).save(folder / f"{i}.png")


def _epoch(data: DataSet, examples: Examples) -> dict[str, object]:
    """Without what `fit` does before and after: it is the steps that are compared, the start of the workers among them."""
    torch.manual_seed(0)
    nested = NestedModel(ResNet.for_data(data.spec, channels=(8, 16), blocks=(4, 4), multiple=1))
    training = _Training(nested, examples, None, FitOptions(epochs=1, batch_size=BATCH), data.augment, None)
    before = _cpu_seconds()
    result = training.run(threading.Event(), False)
    return {"steps_per_second": result.steps / result.seconds, "cpu_seconds": _cpu_seconds() - before}


def _cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(
        used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
