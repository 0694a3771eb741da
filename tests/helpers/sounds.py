"""Folders of short sounds, as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 8000


def tone(hertz: float, seconds: float = 0.1, rate: int = RATE) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_sounds(
    folder: Path, *, per_class: int = 10, seconds: float = 0.1, suffix: str = ".wav", classes: tuple[str, ...] = ("high", "low")
) -> list[Path]:
    """A folder per class; sounds of the same class differ in their pitch."""
    paths = []
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            paths.append(folder / name / f"{i}{suffix}")
            soundfile.write(paths[-1], tone(100 + 500 * label + 10 * i, seconds), RATE)
    return paths
