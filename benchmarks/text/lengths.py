"""Latency at lengths that were not measured: how far a profile is off there.

What is predicted and what it is compared with are of one measurement, so that both saw the same minutes of this machine. How
well a second measurement repeats the first says what any prediction can reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.text.bundles import of_shape
from benchmarks.text.timing import Figures
from device_profiles import Profile
from device_profiles.lengths import Curve, series
from selector import profile_bundle

LONGEST = 256
KNOWN = series(LONGEST)  # what `sortednet profile` measures by itself
UNKNOWN = (24, 40, 48, 80, 96, 112, 160, 192, 224)
REPEATS = 15

NOTES = {
    "length_within_10pct": "share of the pairs of 48 sub-models of MiniLM's shape and lengths "
    f"{', '.join(map(str, UNKNOWN))} whose predicted median latency is within 10 % of the measured one; known are "
    f"{', '.join(map(str, KNOWN))}; batch 1, 1 thread",
    "length_p95_error": "relative error that 95 % of these pairs stay below",
    "length_measured_again_within_10pct": "share of the same pairs whose median a second measurement repeats within 10 %",
}


def measure() -> Figures:
    bundle = of_shape("minilm").bundle
    first, again = (
        profile_bundle(
            bundle,
            device="lengths",
            threads=1,
            lengths=[*KNOWN, *UNKNOWN],
            repeats=REPEATS,
            cache=False,
            show_progress=False,
        )
        for _ in range(2)
    )
    return errors(first, again, KNOWN, UNKNOWN)


def errors(first: Profile, again: Profile, known: Sequence[int], unknown: Sequence[int]) -> Figures:
    """Of all pairs of a sub-model and an unknown length."""
    predicted, repeated = [], []
    for name, costs in first.submodels.items():
        curve = Curve({length: costs.lengths[length] for length in known})
        for length in unknown:
            measured = costs.lengths[length].p50
            predicted.append(abs(curve.at(length) / measured - 1))
            repeated.append(abs(again.submodels[name].lengths[length].p50 / measured - 1))
    return {
        "length_within_10pct": float((np.array(predicted) <= 0.10).mean()),
        "length_p95_error": float(np.percentile(predicted, 95)),
        "length_measured_again_within_10pct": float((np.array(repeated) <= 0.10).mean()),
    }
