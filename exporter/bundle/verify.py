"""What `verify` checks once every file has the right hash: the documents that were written later, and the self-test, whether
every sub-model gives, on this device, the numbers that it gave when it was exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from exporter.bundle.bundle import Bundle, BundleError
from exporter.bundle.decoding import padded_outputs, rows_problem, selftest_outputs
from exporter.bundle.manifest import SubModelEntry
from exporter.bundle.saturation import saturates
from exporter.bundle.session import open_session, relative_error, rms_error, run_session
from exporter.bundle.written import WRITTEN_FILE, Written, check_written, record_all

Answers = dict[str, NDArray[Any]]
ROUNDING = 0.05
"""RMS, that a graph's answers may be off those of the same graph with padding: in 8 bits roundings then fall otherwise."""


@dataclass(frozen=True)
class SelfTestResult:
    """What a self-test that passed has seen. Errors are relative to the largest output."""

    submodels: int
    largest_error: float  # of fp32 sub-models
    largest_int8_error: float  # of int8 ones, from their own answers where they were exported
    largest_int8_to_fp32: float | None = None  # the same from the fp32 sub-models' answers, RMS; None where there are none
    int8_saturates: bool = False  # 8-bit weights on kernels that cannot add them: of a bundle from before that was refused
    speculation: Mapping[str, str] = field(default_factory=dict)  # by sub-model that could verify drafts: why it cannot here


def check_documents(bundle: Bundle, *, accept: bool = False) -> list[Written]:
    """The bundle's profiles and cascades, and what is wrong with them: missing, damaged, under another device's name, or
    another document than was written here. With `accept` those that are whole are taken for what was written, first.

    Raises BundleError where the index cannot be read or written.
    """
    try:
        if accept:
            record_all(bundle.path)
        return check_written(bundle.path)
    except OSError as error:
        raise BundleError(f"{WRITTEN_FILE}: {error.strerror}") from None


def self_test(bundle: Bundle, *, advance: Callable[[], None] = lambda: None) -> SelfTestResult:
    """Runs every sub-model on the shipped inputs. `advance` is called after each.

    Raises BundleError naming the graph whose outputs differ by more than the manifest's tolerance, or do not load; and the
    weights, where they have 8 bits and this device's kernels saturate with them.
    """
    int8_saturates = _saturates(bundle)
    if int8_saturates and bundle.manifest.int8_range == "full":
        raise BundleError(
            f"{bundle.manifest.int8_weights}: its weights use all 8 bits, and with them this device's kernels saturate; "
            "export with --int8-range reduced (7 bits)"
        )
    inputs, expected = bundle.selftest()
    largest = {True: 0.0, False: 0.0}  # of fp32 sub-models, and of the others
    from_fp32 = []
    speculation = {}
    for name, entry in bundle.submodels.items():
        if name not in expected:
            raise BundleError(f"{bundle.manifest.selftest.file}: holds no outputs of sub-model {name}")
        try:
            outputs = _answers(bundle, entry, inputs, expected[name])
            if (problem := verifies(bundle, entry)) is not None:
                speculation[name] = problem
        except Exception as error:  # ONNX Runtime raises its own types, one per status code
            raise BundleError(f"{entry.graph}: does not run: {error}") from error
        error_found = relative_error(outputs, expected[name])
        tolerance = bundle.manifest.selftest.tolerance_of(entry.precision)
        fp32 = expected.get(entry.fp32_id) if entry.precision != "fp32" else None
        if fp32 is not None:
            from_fp32.append(rms_error(outputs, fp32))
        if not (error_found <= tolerance or (fp32 is not None and _as_near_as_there(entry, from_fp32[-1], tolerance))):
            raise BundleError(
                f"{entry.graph}: its outputs on this device are off by {error_found:.2e}, allowed is {tolerance:.0e}"
            )
        is_fp32 = entry.precision == "fp32"
        largest[is_fp32] = max(largest[is_fp32], error_found)
        advance()
    nearest = max(from_fp32) if from_fp32 else None
    return SelfTestResult(len(bundle.submodels), largest[True], largest[False], nearest, int8_saturates, speculation)


def _answers(bundle: Bundle, entry: SubModelEntry, inputs: Answers, expected: Answers) -> Answers:
    """To the self-test's inputs; of a decoder that is here in two parts as well, these answers where they are others."""
    session = open_session(bundle.graph_path(entry.id))
    if bundle.decoder is None:
        return run_session(session, inputs)
    most = max(array.shape[-1] for array in expected.values())  # bundles of earlier versions kept all logits
    found = selftest_outputs(session, inputs, most=most)
    for segment in entry.segments:
        parts = [open_session(bundle.path / path) for path in (segment.lower, segment.upper)]
        own = selftest_outputs(parts[0], inputs, parts[1], most=most)
        if not relative_error(own, found) <= bundle.manifest.selftest.tolerance_of(entry.precision):
            return own
    if entry.speculation is not None:
        parts = [bundle.path / part.graph for part in entry.speculation.parts]
        for graphs in ([bundle.path / entry.speculation.graph], parts):
            if graphs:
                own = padded_outputs([open_session(path) for path in graphs], inputs, most)
                if not rms_error(own, found) <= max(bundle.manifest.selftest.tolerance_of(entry.precision), ROUNDING):
                    return own
    return found


def verifies(bundle: Bundle, entry: SubModelEntry) -> str | None:
    """Why drafts cannot be verified with this sub-model on this device, in words; empty where they can, None where it has no
    graph that does. Raises what ONNX Runtime raises."""
    if entry.speculation is None or bundle.decoder is None:
        return None
    vocabulary, context = bundle.decoder.vocabulary, bundle.decoder.context
    problem = rows_problem([open_session(bundle.path / entry.speculation.graph)], vocabulary, context)
    if not problem and entry.speculation.parts:
        parts = [open_session(bundle.path / part.graph) for part in entry.speculation.parts]
        problem = rows_problem(parts, vocabulary, context)
    return problem


def _as_near_as_there(entry: SubModelEntry, error: float, tolerance: float) -> bool:
    """Whether int8 answers are no farther off fp32 here than where they were exported.

    They may be others. Between processors, floats differ in the last digit (normalisation, softmax), rounding to 8 bits then
    sometimes takes the next integer, and a deep network goes on from there: the answers of a transformer encoder of six
    layers differ by 2 % between x86-64 and ARM, and are 5 % off fp32 on either.
    """
    return entry.int8_error is not None and error <= entry.int8_error + tolerance


def _saturates(bundle: Bundle) -> bool:
    """Whether int8 weights are here that use all 8 bits, and this device's kernels cannot add them."""
    full = (
        bundle.decoder is None
        and any(entry.precision == "int8" for entry in bundle.manifest.submodels)
        and bundle.manifest.int8_range != "reduced"
    )
    return full and saturates()
