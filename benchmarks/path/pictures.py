"""What reading pictures from files costs a training: an image folder against the same pixels as one array."""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.path.found import Found
from trainer import FitOptions, NestedModel
from trainer.data import DataSet, Examples, load_data
from trainer.data.loading import held
from trainer.families import ResNet
from trainer.training import _Training

PICTURES, SIDE, BATCH = 2_000, 64, 64
PAIRS, EPOCHS = 3, 2
KINDS = ("array", "folder", "streamed")


def measure() -> Found:
    """Each trains for two epochs in turn, from the same weights, over the same batches and sub-models."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name))
        data = load_data(f"image-folder:{name}")
        array = held(data.train)
        for turn in range(PAIRS):
            for kind in KINDS[:: 1 if turn % 2 else -1]:  # none always comes first
                rows.append({"part": "pictures", "pair": turn, "kind": kind, **_epoch(data, kind, array)})
    rates, cpu = (
        {kind: np.array([row[field] for row in rows if row["kind"] == kind], dtype=float) for kind in KINDS}
        for field in ("steps_per_second", "cpu_seconds")
    )
    note = (
        f"steps per second over those with the same {PICTURES} PNGs of {SIDE} x {SIDE} in colour as one array: median of "
        f"{PAIRS} trainings of {EPOCHS} epochs in turn, the demo's family, batch {BATCH}"
    )
    streamed = "the same where they are more than is held in memory: worker processes read them in every epoch"
    return Found(
        {
            "image_folder_speed_ratio": float(np.median(rates["folder"] / rates["array"])),
            "image_folder_cpu_ratio": float(np.median(cpu["folder"] / cpu["array"])),
            "image_folder_streamed_speed_ratio": float(np.median(rates["streamed"] / rates["array"])),
            "image_folder_streamed_cpu_ratio": float(np.median(cpu["streamed"] / cpu["array"])),
        },
        {
            "image_folder_speed_ratio": f"{note}; decoding all of them once is a part",
            "image_folder_cpu_ratio": "processor time of the same trainings, that of the workers included",
            "image_folder_streamed_speed_ratio": streamed,
            "image_folder_streamed_cpu_ratio": "processor time of these",
        },
        rows,
    )


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


def _epoch(data: DataSet, kind: str, array: Examples) -> dict[str, object]:
    """Without what `fit` does afterwards; the start of the workers and the decoding of what is held are parts."""
    torch.manual_seed(0)
    nested = NestedModel(ResNet.for_data(data.spec, channels=(8, 16), blocks=(4, 4), multiple=1))
    cpu, begun = _cpu_seconds(), time.perf_counter()
    examples = {"array": lambda: array, "folder": lambda: held(data.train), "streamed": lambda: data.train}[kind]()
    training = _Training(nested, examples, None, FitOptions(epochs=EPOCHS, batch_size=BATCH), data.augment, None)
    steps = training.run(threading.Event(), False).steps
    return {"steps_per_second": steps / (time.perf_counter() - begun), "cpu_seconds": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(
        used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
