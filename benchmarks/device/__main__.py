"""`make bench-device`: measures the device runtime and writes `results/`. `python -m benchmarks.device PART…` for some."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.device import conditions, forms, idle, install, predicted, quantized, sessions
from benchmarks.summary import run_parts

RESULTS = Path(__file__).parent / "results"
PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "sessions": sessions.measure,
    "quantized": quantized.measure,
    "forms": forms.measure,
    "predicted": predicted.measure,
    "install": install.measure,
    "idle": idle.measure,
    "conditions": lambda: conditions.measure(RESULTS / "conditions.png"),
}
NOTES = {
    "cold_switch_ratio.resnet": "open and first run less a usual run, cached copy over plain bundle; sum of medians of 8 sizes",
    "warm_switch_us": "choosing among 20 measured sub-models and fetching an open session, the size changing every time",
    "run_overhead_us": "Runtime.run less session.run on the same session and input, median of pairs",
    "pool_private_ratio": "private memory of 40 sizes of a 17 MB CNN opened from copies, over one plain session's",
    "pool_measured_ratio": "most private memory added during the random switching, over the pool's budget",
    "p99_ratio_while_loading": "runs of one size while others are opened in the background without a pause, over runs without",
    "int8_bytes_ratio": "weights.int8.bin over weights.bin, the worst of the three bundles",
    "int8_latency_ratio.resnet": "largest size, processor time of 1 thread, batch 1, the two take turns",
    "int8_latency_ratio.resnet.avx2": "the same with ONNX Runtime's kernels for processors without AVX-512 and VNNI",
    "int8_form.points_lost.resnet.reduced": "of 100, by int8 to fp32 on 1,000 MNIST digits: weights of 7 bits (reduced), of 8 "
    "(full), with signed activations, with unsigned weights; .avx2: kernels as above",
    "int8_form.inexact.resnet.reduced": "RMS of the kernels' answers less those of floats (ORT_DISABLE_ALL), relative",
    "int8_form.latency.resnet.reduced": "over fp32, processor time of 1 thread, batch 1, all in turns",
    "int8_worst_error": "largest RMS distance of an int8 sub-model of the trained bundle from its fp32 one",
    "int8_within_half_point": "share of 160 sub-models of the shortly trained ResNet that lose at most half a point in int8",
    "predict_within_10pct.resnet.1": "share of the 148 predicted within 10 % of their measured p50, from 12 of the same "
    "measurement; 1 thread",
    "measured_again_within_10pct.resnet.1": "share of the 148 whose p50 a second measurement of all repeats within 10 %",
    "predict_apart_within_10pct.resnet.1": "the same as the first, but the 12 measured by themselves some minutes later",
    "profile_speedup": "measuring all over measuring 12 and predicting; the least of two bundles, 1 and 2 threads",
    "install_mb": "site-packages of a fresh environment with the base install",
    "idle_cpu_share": "processor time over wall time, work included, 27 runs a second of the largest size, two threads",
    "idle_cpu_share_endless": "the same with ONNX Runtime's default: idle threads wait actively without an end",
    "idle_p50_ratio": "the median latency of those runs over that with the default; the two take turns",
    "connections": "of verify, profile, select and run, each under a kernel that ends a process which opens a socket: those "
    "that were ended, and identifiers of the device that they left in the user's folder",
    "import_s": "python -c 'import selector' less python -c pass, median",
    "cli_select_s": "sortednet select on a bundle of 320 candidates, median; verifying its hashes is a part",
}


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    run_parts(RESULTS, "make bench-device", PARTS, NOTES, sys.argv[1:])


if __name__ == "__main__":
    main()
