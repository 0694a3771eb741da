"""Reads inputs from .npy and .npz files and writes outputs, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector.run.inputs import InputError


def read_inputs(path: Path) -> dict[str, NDArray[Any]] | NDArray[Any]:
    """One array (.npy) or arrays by name (.npz). Raises InputError when the file is neither."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged file raises whatever numpy, zipfile and zlib each have, MemoryError included
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"input {str(path)!r}: cannot be read as .npy or .npz: {why}") from None


def write_outputs(path: Path, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Raises InputError when the file cannot be written."""
    try:
        with path.open("wb") as file:
            np.savez(file, **outputs)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"output {str(path)!r}: cannot be written: {error.strerror}") from None
