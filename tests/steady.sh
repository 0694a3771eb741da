#!/bin/sh
# The suite under three conditions that must not matter: without the processor's newer instructions, on one thread, and beside
# two busy processes. The instructions of ONNX Runtime's kernels cannot be chosen: that takes another processor.
#
#   tests/steady.sh [ARGUMENTS OF PYTEST]
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
suite() { "$python" -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder "$@"; }

echo "1. torch's plain kernels, oneDNN and MKL with AVX2 at most"
(
    export ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
    suite "$@"
)
echo "2. one thread"
(
    export SORTEDNET_TEST_THREADS=1
    suite "$@"
)
echo "3. beside two busy processes"
"$python" -c "while True: pass" & one=$!
"$python" -c "while True: pass" & two=$!
trap 'kill $one $two' EXIT
suite "$@"
