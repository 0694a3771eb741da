"""What a bundle takes: inputs by name, of the right dtype and shape, finite. Everything else is an `InputError`."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Bundle
from exporter.bundle.manifest import TensorSpec

Array = NDArray[Any]


class InputError(ValueError):
    """An input of the wrong name, shape or type, or with values that are no numbers."""

    exit_code = 2


class InputCheck:
    """`check_inputs` for one bundle; arrays of the dtypes and shapes of the latest call take a tenth of the time."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._accepted: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []

    def __call__(self, inputs: Mapping[str, Array] | Array) -> dict[str, Array]:
        """The feed for a program. Raises InputError naming the input, what it is and what it must be."""
        accepted = self._accepted  # once: another thread may put its own in place
        if accepted and type(inputs) is dict and len(inputs) == len(accepted):
            for name, dtype, shape in accepted:
                value = inputs.get(name)
                if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != shape:
                    break
                if dtype.kind == "f" and not _has_finite_sum(value):  # or the sum is too large: looked at below
                    break
            else:
                return inputs
        feed = check_inputs(self.bundle, inputs)
        self._accepted = [(name, value.dtype, value.shape) for name, value in feed.items()]
        return feed


def check_inputs(bundle: Bundle, inputs: Mapping[str, Array] | Array) -> dict[str, Array]:
    """Inputs by name, as the graphs of this bundle want them. Raises InputError."""
    refuse_decoder(bundle)
    specs = bundle.manifest.inputs
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InputError(f"input: one array given; this bundle takes {len(specs)}: {', '.join(s.name for s in specs)}")
        inputs = {specs[0].name: inputs}
    if len(inputs) != len(specs) or any(spec.name not in inputs for spec in specs):
        raise InputError(
            f"input: {', '.join(map(repr, inputs)) or 'nothing'} given; allowed is {', '.join(repr(s.name) for s in specs)}"
        )
    sizes: dict[str, int] = {}
    return {spec.name: _checked(spec, inputs[spec.name], sizes) for spec in specs}


def refuse_decoder(bundle: Bundle) -> None:
    """Raises InputError for a bundle whose graphs have a cache to be kept between their calls."""
    if bundle.decoder is not None:
        raise InputError("input: this bundle generates text; allowed are `sortednet generate` and a Generator")


def examples_in(bundle: Bundle, feed: Mapping[str, Array]) -> int:
    """The size of the batch: of the first input's first axis, where that is free."""
    first = bundle.manifest.inputs[0]
    return feed[first.name].shape[0] if first.shape and isinstance(first.shape[0], str) else 1


def _checked(spec: TensorSpec, value: Array, sizes: dict[str, int]) -> Array:
    """`sizes`: of the free axes by name, as the inputs before this one have them."""
    if not isinstance(value, np.ndarray) or value.dtype.name != spec.dtype:
        kind = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"input {spec.name!r}: dtype {kind}; allowed is {spec.dtype}")
    shape, before = value.shape, dict(sizes)
    if len(shape) != len(spec.shape) or any(
        size < 1 or size != (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size))
        for size, wanted in zip(shape, spec.shape, strict=True)
    ):
        wanted_shape = ", ".join(f"{size} = {before[size]}" if size in before else str(size) for size in spec.shape)
        raise InputError(f"input {spec.name!r}: shape {shape}; allowed is ({wanted_shape})")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise InputError(f"input {spec.name!r}: holds NaN or infinite values; allowed are finite numbers")
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def _has_finite_sum(value: Array) -> bool:
    try:
        return isfinite(np.add.reduce(value, None))
    except (RuntimeWarning, FloatingPointError):  # numpy's of what is too large, where these are errors
        return False
