"""Reads a sound file as a network takes it: the same for training and on a device. Needs no torch.

Shapes: T samples of one channel.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

SUFFIXES = (".wav", ".flac")
_FILTER_SECONDS = 0.1
"""What is read beyond a cut: the resampling filter reaches over it."""


class SoundError(ValueError):
    """A sound file that cannot be read."""

    exit_code = 2


class SoundHeader(NamedTuple):
    """What a file says of itself."""

    sample_rate: int
    frames: int  # samples of each channel
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def read_header(path: Path) -> SoundHeader:
    """Raises SoundError naming a file that is no sound, holds nothing, or is shorter than its header says."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise SoundError(f"{str(path)!r}: cannot be read as a sound: {_reason(error)}") from None
    if path.suffix.lower() == ".wav":
        _check_length(path)
    if not info.frames:
        raise SoundError(f"{str(path)!r}: holds no samples")
    return SoundHeader(info.samplerate, info.frames, info.channels)


def read_sound(path: str | Path, spec: Mapping[str, Any]) -> NDArray[np.float32]:
    """A batch of one, (1, T) float32; full scale is 1.

    `spec`: `sample_rate` in Hz and `samples` (T). Channels are averaged, another rate is resampled, what is longer is cut at
    its end and what is shorter is filled with zeros there. Raises SoundError naming a file that cannot be read.
    """
    path, rate, samples = Path(path), int(spec["sample_rate"]), int(spec["samples"])
    header = read_header(path)
    needed = samples if header.sample_rate == rate else ceil((samples / rate + _FILTER_SECONDS) * header.sample_rate)
    try:
        channels, _ = soundfile.read(str(path), frames=min(needed, header.frames), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise SoundError(f"{str(path)!r}: cannot be read to its end: {_reason(error)}") from None
    if len(channels) < min(needed, header.frames):
        raise SoundError(f"{str(path)!r}: truncated: {len(channels)} samples, its header promises {header.frames}")
    wave = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
    if not np.isfinite(wave).all():
        raise SoundError(f"{str(path)!r}: sample {int(np.flatnonzero(~np.isfinite(wave))[0])} is no finite number")
    if header.sample_rate != rate:
        import soxr

        wave = soxr.resample(wave, header.sample_rate, rate)
    fitted = np.zeros((1, samples), dtype=np.float32)
    fitted[0, : len(wave)] = wave[:samples]
    return fitted


def _check_length(path: Path) -> None:
    """libsndfile reads a WAV that was cut off as a shorter one, without a word."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                there = path.stat().st_size - file.tell()
                if there < size and size < 0xFFFFFF00:  # about the largest: written to a pipe, length unknown
                    raise SoundError(f"{str(path)!r}: truncated: {there} bytes of samples, its header promises {size}")
                return
            file.seek(size + size % 2, 1)


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
