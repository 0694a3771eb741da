"""Arrays over HTTP: .npy and .npz bodies and nested lists, never pickle.

Nothing is allocated because a body says so: dtype and shape are compared with what the bundle takes first, and the bytes that
are there with what the shape needs.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from exporter.bundle.manifest import TensorSpec

Array = NDArray[Any]
NPY, NPZ = "application/x-npy", "application/x-npz"
_HEADER_BYTES = 10_000  # as numpy's own limit
_END = struct.Struct("<4s4H2LH")  # of a zip file's end-of-central-directory record, without a comment
_ENTRY_BYTES = 2_000  # of the directory; a name may be long, 65,536 of them may not


class ArrayError(ValueError):
    """An input that is damaged, or not what the bundle takes. `name` is the input's, where it is known."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


def from_npy(data: bytes, spec: TensorSpec, limits: ShapeLimits) -> Array:
    """The array in the body of a .npy file. Raises ArrayError."""
    shape, fortran_order, dtype, at = _header(data, spec.name)
    if dtype.hasobject or dtype.name != spec.dtype:
        raise ArrayError(f"input {spec.name!r}: dtype {dtype.name}; allowed is {spec.dtype}", spec.name)
    limits.check(spec, shape)
    needed, there = math.prod(shape) * dtype.itemsize, len(data) - at
    if needed != there:
        raise ArrayError(f"input {spec.name!r}: its shape {shape} needs {needed} bytes, {there} follow the header", spec.name)
    flat = np.frombuffer(data, dtype, offset=at)
    array = flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)
    return np.ascontiguousarray(array)


def from_npz(data: bytes, specs: Sequence[TensorSpec], limits: ShapeLimits) -> dict[str, Array]:
    """The arrays of a .npz file by name, one for each input. Raises ArrayError."""
    wanted = {f"{spec.name}.npy": spec for spec in specs}
    _check_directory(data, len(wanted))
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.filename not in wanted or wanted[entry.filename].name in found:
                    allowed = ", ".join(wanted)
                    raise ArrayError(f"inputs: .npz holds {entry.filename[:80]!r}; allowed are {allowed}, once each")
                spec = wanted[entry.filename]
                found[spec.name] = from_npy(_unpacked(archive, entry, spec.name, limits), spec, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, UnicodeError) as error:
        raise ArrayError(f"inputs: cannot be read as .npz: {error}") from None
    return found


def from_lists(value: Any, spec: TensorSpec, limits: ShapeLimits) -> Array:
    """The array that nested lists of numbers are. Raises ArrayError."""
    name = spec.name
    dtype = np.dtype(spec.dtype)
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError) as error:
        why = " ".join(str(error).split())
        raise ArrayError(f"input {name!r}: lists of equal length are allowed, down to numbers: {why}", name) from None
    allowed = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}.get(dtype.kind, "")
    if array.dtype.kind not in allowed or array.dtype == object:
        raise ArrayError(f"input {name!r}: holds {_kind(array)}; allowed are numbers for {spec.dtype}", name)
    if dtype.kind in "iu" and array.size and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max:
        raise ArrayError(f"input {name!r}: a number is out of the range of {spec.dtype}", name)
    limits.check(spec, array.shape)
    with np.errstate(over="ignore"):  # infinite then, which is refused where inputs are checked
        return np.ascontiguousarray(array.astype(dtype))


def finite_lists(name: str, array: Array) -> Any:
    """The array as nested lists for JSON, which has no number for NaN and infinity. Raises ArrayError naming the output."""
    wrong = array.size - np.count_nonzero(np.isfinite(array)) if array.dtype.kind == "f" else 0
    if wrong:
        raise ArrayError(f"output {name!r}: {wrong} of {array.size} values are NaN or infinite for these inputs", name)
    return array.tolist()


def to_npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def to_npz(arrays: Mapping[str, Array]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


class ShapeLimits:
    """`examples`: the largest batch; `free`: the largest size of any other free axis; `bytes`: of one array."""

    def __init__(self, examples: int, free: int, bytes: int) -> None:
        self.examples, self.free, self.bytes = examples, free, bytes

    def check(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        """Raises ArrayError naming the input."""
        if len(shape) != len(spec.shape) or any(
            size < 1 or (isinstance(wanted, int) and size != wanted) for size, wanted in zip(shape, spec.shape, strict=True)
        ):
            wanted_shape = ", ".join(map(str, spec.shape))
            raise ArrayError(f"input {spec.name!r}: shape {shape}; allowed is ({wanted_shape})", spec.name)
        for place, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
            most = self.examples if place == 0 else self.free
            if isinstance(wanted, str) and size > most:
                raise ArrayError(f"input {spec.name!r}: {wanted} = {size}; allowed are 1 to {most} per request", spec.name)


def _header(data: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran's order, dtype, and where the values begin."""
    file = io.BytesIO(data[: 2 * _HEADER_BYTES])
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"version {version}; allowed are (1, 0) and (2, 0)")
        shape, fortran_order, dtype = read(file, max_header_size=_HEADER_BYTES)
    except Exception as error:  # numpy's reader evaluates a literal, which fails in many ways
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArrayError(f"input {name!r}: cannot be read as .npy: {why}", name) from None
    if any(type(size) is not int or size < 0 for size in shape):  # True is an int to Python, and to numpy's reader
        raise ArrayError(f"input {name!r}: shape {shape}; allowed are positive sizes", name)
    return shape, fortran_order, dtype, file.tell()


def _check_directory(data: bytes, most: int) -> None:
    """The zip file's directory is small, before it is read: one of megabytes would become objects of many more."""
    if len(data) < _END.size:
        raise ArrayError("inputs: cannot be read as .npz: too short")
    mark, disk, _, here, entries, size, _, comment = _END.unpack_from(data, len(data) - _END.size)
    if mark != b"PK\x05\x06" or comment or disk:
        raise ArrayError("inputs: cannot be read as .npz: no zip file, or one with a comment or of several parts")
    if here != entries or entries > most or size > most * _ENTRY_BYTES:
        raise ArrayError(f"inputs: .npz with {entries} arrays in a directory of {size} bytes; allowed are {most} arrays")


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, limits: ShapeLimits) -> bytes:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArrayError(f"input {name!r}: compressed by method {entry.compress_type}; allowed are stored and deflated", name)
    if entry.file_size > limits.bytes:
        raise ArrayError(f"input {name!r}: {entry.file_size} bytes unpacked; allowed are {limits.bytes}", name)
    with archive.open(entry) as file:
        return file.read(limits.bytes + 1)  # never more than the directory says, which was checked


def _kind(array: Array) -> str:
    return {"U": "text", "O": "null, objects or mixed values", "b": "true or false", "f": "fractions"}.get(
        array.dtype.kind, array.dtype.name
    )
