"""Folders of small pictures, as people have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def write_pictures(
    folder: Path,
    *,
    classes: Sequence[str] = CLASSES,
    per_class: int = 10,
    size: tuple[int, int] = (12, 16),
    mode: str = "RGB",
    suffix: str = ".png",
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """Random pixels, (H, W, C) or (H, W), by the files' paths below the folder. Each class has a shade of its own."""
    values = np.random.default_rng(seed)
    written = {}
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            shape = size if mode == "L" else (*size, len(mode))
            pixels = (values.integers(0, 60, shape) + 80 * label).astype(np.uint8)
            path = folder / name / f"{i}{suffix}"
            Image.fromarray(pixels).save(path)
            written[path.relative_to(folder).as_posix()] = pixels
    return written


def shorten(path: Path) -> None:
    """A file whose last third is missing, as after an interrupted copy."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
