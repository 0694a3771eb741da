"""`audio-folder:PATH`: one folder of WAV or FLAC files per class. Waveforms of one length and rate, read as they are needed.

Shapes: N examples, T samples. Input `input` (N, T) float32, full scale 1; targets (N,), the class.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from trainer.data.augment import Augmentation, of_first
from trainer.data.dataset import INPUT, Batch, DataSet
from trainer.data.folders import class_files, has_class_files
from trainer.data.sources import Source, register_source
from trainer.family import DataSpec
from trainer.submodel import TrainerError

if TYPE_CHECKING:
    from exporter.bundle.sounds import SoundHeader

SUFFIXES = (".wav", ".flac")
USUAL_SHARE = 0.95
LONGEST_USUAL_SECONDS = 10.0
SHIFT_SECONDS = 0.1


class SoundFiles:
    """Examples that are files, decoded when their turn comes."""

    reads_files: ClassVar[bool] = True

    def __init__(self, paths: Sequence[Path], targets: Tensor, spec: Mapping[str, Any]) -> None:
        # As one array: of many Python strings every worker process would soon have a copy, made by counting references.
        self._names = np.array([os.fsencode(path) for path in paths])
        self.targets, self.spec = targets, spec

    def __len__(self) -> int:
        return len(self.targets)

    def path(self, index: int) -> str:
        return os.fsdecode(bytes(self._names[index]))

    def batch(self, indices: Tensor) -> Batch:
        """Raises TrainerError naming a file that cannot be read."""
        from exporter.bundle.sounds import SoundError, read_sound

        try:
            waves = [read_sound(self.path(i), self.spec) for i in indices.tolist()]
        except SoundError as error:
            raise TrainerError(f"data: {error}") from None
        return Batch({INPUT: torch.from_numpy(np.concatenate(waves))}, self.targets[indices])


def shift_in_time(samples: int) -> Augmentation:
    """Moves every waveform by up to that many samples in either direction; zeros come in. (N, T)"""

    def apply(waves: Tensor, generator: Generator) -> Tensor:
        n, t = waves.shape
        places = torch.randint(0, 2 * samples + 1, (n,), generator=generator)
        return F.pad(waves, (samples, samples)).unfold(1, t, 1)[torch.arange(n), places]  # unfold: a view (N, places, T)

    return of_first(apply)


def _audio_folder(
    name: str,
    path: str,
    *,
    seconds: float | None = None,
    sample_rate: int | None = None,
    shift_seconds: float = SHIFT_SECONDS,
) -> DataSet:
    """`seconds`: the length of every example; without it the one that 95 % of the training files do not exceed.
    `sample_rate`: files of another rate are resampled to it; without it all must have the same."""
    _check_options(seconds, sample_rate, shift_seconds)
    files = class_files(Path(path), what="sound", suffixes=SUFFIXES)
    headers = _headers(files.paths)
    rate = sample_rate or _common_rate(files.paths, headers)
    usual = float(np.quantile([headers[i].seconds for i in files.parts["train"]], USUAL_SHARE, method="higher"))
    if seconds is None and usual > LONGEST_USUAL_SECONDS:
        raise TrainerError(
            f"data {name!r}: its sounds take up to {usual:.1f} s; say how much of each is used, for example seconds=2"
        )
    length = seconds or usual
    samples = max(1, ceil(length * rate - 1e-6))
    preprocessing = {"kind": "audio", "sample_rate": rate, "samples": samples, "channels": 1}
    targets = torch.from_numpy(files.labels)
    split = {
        part: SoundFiles([files.paths[i] for i in indices], targets[torch.from_numpy(indices)], preprocessing)
        for part, indices in files.parts.items()
    }
    record = {
        **files.record(name),
        "sample_rate": rate,
        "samples": samples,
        "cut": sum(ceil(h.seconds * rate - 1e-6) > samples for h in headers),
        "resampled": sum(h.sample_rate != rate for h in headers),
        "mixed_down_to_mono": sum(h.channels > 1 for h in headers),
    }
    moved = min(round(shift_seconds * rate), samples - 1)
    return DataSet(
        name,
        DataSpec((samples,), len(files.classes)),
        split["train"],
        split["validation"],
        split["test"],
        shift_in_time(moved) if moved else None,
        record,
        labels=files.classes,
        preprocessing={INPUT: preprocessing},
    )


def _check_options(seconds: Any, sample_rate: Any, shift_seconds: Any) -> None:
    if seconds is not None and (not _is_number(seconds) or not 0 < seconds < float("inf")):
        raise TrainerError(f"seconds = {seconds!r}: allowed are numbers above 0")
    if sample_rate is not None and (type(sample_rate) is not int or sample_rate < 1):
        raise TrainerError(f"sample_rate = {sample_rate!r}: allowed are whole numbers from 1, in Hz, for example 16000")
    if not _is_number(shift_seconds) or not 0 <= shift_seconds < float("inf"):
        raise TrainerError(f"shift_seconds = {shift_seconds!r}: allowed are 0, none, and numbers above it")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _headers(paths: Sequence[Path]) -> list[SoundHeader]:
    """Of every file. A file that cannot be read or is cut off is named before the training begins."""
    from exporter.bundle.sounds import SoundError, read_header

    try:
        return [read_header(path) for path in paths]
    except SoundError as error:
        raise TrainerError(f"data: {error}") from None


def _common_rate(paths: Sequence[Path], headers: Sequence[SoundHeader]) -> int:
    rate = headers[0].sample_rate
    for path, header in zip(paths, headers, strict=True):
        if header.sample_rate != rate:
            raise TrainerError(
                f"data: {str(path)!r} has {header.sample_rate} samples per second, {str(paths[0])!r} {rate}; "
                f"allowed is one rate, or the option sample_rate={rate} to have the others resampled"
            )
    return rate


def _is_sound(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


register_source(Source("audio-folder", _audio_folder, "PATH", lambda path: has_class_files(path, _is_sound)))
