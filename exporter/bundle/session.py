"""Opens a sub-model in ONNX Runtime: the one place that decides how, for export, verification, profiling and running."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from device_profiles.host import MOST_THREADS, physical_cores

Feed = Mapping[str, NDArray[Any]]

CPU = "CPUExecutionProvider"
_INITIALIZER_BYTES = "256"
"""In an optimized copy initializers from this size on lie beside the graph, where they are memory-mapped."""

_LEAST_MASK, _FAR = 1e4, 100.0
"""The magnitude of what masks an output, at least, and how many times that is the largest one of the rest."""


class SessionError(ValueError):
    """A session that this ONNX Runtime cannot give: an execution provider that is not here, a wrong number of threads."""

    exit_code = 2


SPIN_US = 500
"""Longer than threads wait within a run, shorter than between runs that are not one after the other: at 27 runs a second two
threads that wait actively without an end take a fifth of a core and more, with this end 4 %, and runs are as fast."""
_THREADS_OF = {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}
"""Execution providers that run on threads of their own, and the option that says on how many."""


@dataclass(frozen=True)
class SessionOptions:
    """How an inference uses the device. Raises SessionError naming the field and what is allowed."""

    threads: int = 0  # 0: one per physical core
    provider: str = CPU  # an execution provider of this ONNX Runtime: its name, with or without "ExecutionProvider"
    spinning: bool = True  # idle threads wait actively for SPIN_US: faster by some microseconds per operator

    def __post_init__(self) -> None:
        if type(self.threads) is not int or not 0 <= self.threads <= MOST_THREADS:
            raise SessionError(f"threads = {self.threads!r}: allowed are whole numbers from 0 to {MOST_THREADS}")
        object.__setattr__(self, "provider", provider_named(self.provider))

    @property
    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """As ONNX Runtime wants them, each with its options: first the chosen one, then the CPU for what that does not take."""
        own_threads = _THREADS_OF.get(self.provider)
        chosen = {own_threads: str(self.threads)} if own_threads and self.threads else {}
        return [(self.provider, chosen), *([] if self.provider == CPU else [(CPU, {})])]


def provider_named(name: str) -> str:
    """ONNX Runtime's name of an execution provider that is here: `cuda` → `CUDAExecutionProvider`. Raises SessionError."""
    present = ort.get_available_providers()
    wanted = name.lower().removesuffix("executionprovider")
    for provider in present:
        if provider.lower().removesuffix("executionprovider") == wanted:
            return str(provider)
    short = ", ".join(provider.removesuffix("ExecutionProvider") for provider in present)
    raise SessionError(f"provider = {name!r}: this ONNX Runtime ({ort.__version__}) has {short}")


def open_session(
    graph: str | Path, options: SessionOptions | None = None, *, save_optimized: Path | None = None, optimized: bool = False
) -> ort.InferenceSession:
    """A session with all graph optimizations; what an execution provider does not take runs on the CPU.

    `save_optimized` also writes the optimized graph there, its weights beside it. `optimized` says that the graph is such
    a copy: it is opened as it is, its weights memory-mapped. Raises SessionError where the system lets this process have no
    such number of threads.
    """
    chosen = options or SessionOptions()
    ort_options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    ort_options.graph_optimization_level = level.ORT_DISABLE_ALL if optimized else level.ORT_ENABLE_ALL
    ort_options.intra_op_num_threads = chosen.threads
    ort_options.log_severity_level = 3
    if chosen.spinning:
        ort_options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    else:
        ort_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if save_optimized is not None:
        ort_options.optimized_model_filepath = str(save_optimized)
        weights = save_optimized.with_suffix(".bin").name
        ort_options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        ort_options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", _INITIALIZER_BYTES
        )
    _check_threads(chosen.threads or physical_cores())
    fallback = int(chosen.provider != CPU)  # from the CPU to the CPU it only prints on stdout and tries the same again
    try:
        return ort.InferenceSession(str(graph), ort_options, providers=chosen.providers, enable_fallback=fallback)
    except RuntimeError as error:
        if "pthread_create" not in str(error):
            raise
        raise _too_many(chosen.threads or physical_cores()) from None


def _check_threads(count: int) -> None:
    """Raises SessionError where the system does not let this process start so many. ONNX Runtime says so of the first one that
    it starts, but of a later one it waits for the others for ever. Tried with twice as many, because those that were here count
    for a while after they have ended."""
    if count < 3:
        return
    done, begun = threading.Event(), []
    try:
        for _ in range(2 * (count - 1)):  # whoever runs the session is one
            thread = threading.Thread(target=done.wait)
            thread.start()
            begun.append(thread)
    except RuntimeError:
        raise _too_many(count) from None
    finally:
        done.set()
        for thread in begun:
            thread.join()


def _too_many(threads: int) -> SessionError:
    return SessionError(f"threads = {threads}: the system does not let this process start so many; 1 needs no further one")


@cache
def shrinking() -> ort.RunOptions:
    """For a run on the CPU after which its arena gives back what it does not hold now."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def give_back_memory() -> None:
    """Gives the system what this process has freed: glibc keeps what lies below something in use. Elsewhere does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def run_session(session: ort.InferenceSession, inputs: Feed) -> dict[str, NDArray[Any]]:
    """Outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def rms_error(outputs: Feed, expected: Feed) -> float:
    """The root mean square of an output's differences, relative to that of the output, of the worst output; inf when shapes
    differ. What masks an output (`_masks`) is compared by itself."""
    return _worst(outputs, expected, lambda array: float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0)


def relative_error(outputs: Feed, expected: Feed) -> float:
    """The largest difference of any output, relative to the largest magnitude of that output; inf when shapes differ. What
    masks an output (`_masks`) is compared by itself."""
    return _worst(outputs, expected, lambda array: float(np.abs(array).max(initial=0.0)))


def _worst(outputs: Feed, expected: Feed, size: Callable[[NDArray[Any]], float]) -> float:
    """The largest of the outputs' errors: the size of the differences by that of what was expected."""
    errors = [0.0]
    for name, wanted in expected.items():
        got = outputs.get(name)
        if got is None or got.shape != wanted.shape:
            return float("inf")
        exact, masks = wanted.astype(np.float64), _masks(wanted)
        with np.errstate(invalid="ignore"):  # of two infinities
            difference = got.astype(np.float64) - exact
        if masks is not None:
            alike = got[masks] == wanted[masks]
            with np.errstate(invalid="ignore"):
                errors.append(size(np.where(alike, 0.0, difference[masks] / exact[masks])))
            difference, exact = difference[~masks], exact[~masks]
        scale = size(exact)
        errors.append(size(difference) / scale if scale else size(difference))
    return max(error if np.isfinite(error) else float("inf") for error in errors)


def _masks(wanted: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where an output says that something is not to be had, beside whose magnitude that of the rest is nothing: infinities, and
    values as large as -1e9 that occur more than once, far beyond all others. None where there are none."""
    sizes = np.abs(wanted.astype(np.float64))
    if not sizes.max(initial=0.0) >= _LEAST_MASK:
        return None  # NaN too, which equals nothing
    distinct, counts = np.unique(sizes[(sizes > 0) & np.isfinite(sizes)], return_counts=True)
    gaps = (distinct[1:] >= _LEAST_MASK) & (distinct[1:] >= _FAR * distinct[:-1])
    once = np.flatnonzero(counts == 1)
    places = np.flatnonzero(gaps & (np.arange(len(gaps)) >= once.max(initial=-1)))
    masks: NDArray[np.bool_] = sizes >= (distinct[places[0] + 1] if len(places) else np.inf)
    return masks if masks.any() else None
