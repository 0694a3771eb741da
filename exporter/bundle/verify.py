"""The self-test: every sub-model gives, on this device, the numbers that it gave when it was exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exporter.bundle.bundle import Bundle, BundleError
from exporter.bundle.session import open_session, relative_error, run_session


@dataclass(frozen=True)
class SelfTestResult:
    """What a self-test that passed has seen."""

    submodels: int
    largest_error: float  # relative to the largest output
    largest_int8_error: float


def self_test(bundle: Bundle, *, advance: Callable[[], None] = lambda: None) -> SelfTestResult:
    """Runs every sub-model on the shipped inputs. `advance` is called after each.

    Raises BundleError naming the graph whose outputs differ by more than the manifest's tolerance, or do not load.
    """
    inputs, expected = bundle.selftest()
    largest = dict.fromkeys(("fp32", "int8"), 0.0)
    for name, entry in bundle.submodels.items():
        if name not in expected:
            raise BundleError(f"{bundle.manifest.selftest.file}: holds no outputs of sub-model {name}")
        try:
            outputs = run_session(open_session(bundle.graph_path(name)), inputs)
        except Exception as error:  # ONNX Runtime raises its own types, one per status code
            raise BundleError(f"{entry.graph}: does not run: {error}") from error
        error_found = relative_error(outputs, expected[name])
        tolerance = bundle.manifest.selftest.tolerance_of(entry.precision)
        if not error_found <= tolerance:
            raise BundleError(
                f"{entry.graph}: its outputs on this device are off by {error_found:.2e}, allowed is {tolerance:.0e}"
            )
        largest[entry.precision] = max(largest[entry.precision], error_found)
        advance()
    return SelfTestResult(len(bundle.submodels), largest["fp32"], largest["int8"])
