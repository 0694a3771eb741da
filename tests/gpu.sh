#!/bin/sh
# One GPU against the CPU: trains a small ResNet on digits in every precision, stops and resumes one of the trainings, exports
# all (each graph is compared with torch), verifies the bundles, and prints a table. Fails where torch finds no GPU.
#
#   tests/gpu.sh [FOLDER]                      CUDA
#   ACCELERATOR=mps tests/gpu.sh [FOLDER]      Apple's; with cpu this script itself can be tried where there is none
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$here/build/gpu}
python=${PYTHON:-$here/.venv/bin/python}
gpu=${ACCELERATOR:-cuda}
cd "$here"
"$python" - "$gpu" <<'PYTHON'
import sys
from trainer.accelerator import find_accelerator
from trainer.submodel import TrainerError
try:
    device = find_accelerator(sys.argv[1]).device
except TrainerError as error:
    sys.exit(f"tests/gpu.sh: {error}")
import torch
print(torch.__version__, device, torch.cuda.get_device_name(device) if device.type == "cuda" else "")
PYTHON
rm -rf "$work"
mkdir -p "$work"
trap '[ $? = 0 ] || tail -n 3 "$work/messages.txt" >&2' EXIT

train() { # RUN DEVICE PRECISION …
    run=$1 device=$2 precision=$3
    shift 3
    "$python" -m sortednet train --family resnet --data digits --set 'channels=[16,24,32]' --set 'blocks=[2,2,2]' --epochs 30 \
        --batch-size 64 --out "$work/$run" --accelerator "$device" --precision "$precision" --json "$@" >"$work/$run.json" 2>>"$work/messages.txt"
}

train cpu cpu fp32
halves="bf16 fp16"
[ "$gpu" = cpu ] && halves=bf16
for precision in fp32 $halves; do train "$gpu-$precision" "$gpu" "$precision"; done

# Stopped within an epoch, after its first checkpoint, and resumed.
train resumed "$gpu" fp32 & trained=$!
while [ ! -e "$work/resumed/checkpoint.safetensors" ] && kill -0 $trained; do sleep 0.1; done
stopped=$(pgrep -P $trained || echo $trained)
kill -INT $stopped
if wait $trained; then
    echo "tests/gpu.sh: the training was done before it could be stopped" | tee -a "$work/messages.txt"
    exit 1
fi
grep -- --resume "$work/messages.txt"
train resumed "$gpu" fp32 --resume

for run in cpu "$gpu-fp32" $(for p in $halves; do echo "$gpu-$p"; done) resumed; do
    "$python" -m sortednet export "$work/$run" --out "$work/$run.bundle" --json >"$work/$run.bundle.json" 2>>"$work/messages.txt"
    "$python" -m sortednet verify "$work/$run.bundle" >/dev/null
done

"$python" - "$work" "$gpu" <<'PYTHON'
import json, sys
from pathlib import Path
from safetensors.torch import load_file
work, gpu = Path(sys.argv[1]), sys.argv[2]
runs = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json")) if ".bundle" not in path.name}
reference, wrong = runs.pop("cpu"), []
def quality(name):  # of the exported graphs
    return {sub["id"]: sub["quality"] for sub in json.loads((work / f"{name}.bundle.json").read_text())["submodels"]}
def row(name, run):
    found = list(quality(name).values())
    mean = sum(found) / len(found)
    print(f"{name:12} {run['seconds']:8.1f} {run['loss']:8.4f} {min(found):8.3f} {mean:8.3f} {max(found):8.3f}")
    return mean
print(f"{'run':12} {'seconds':>8} {'loss':>8} {'worst':>8} {'mean':>8} {'best':>8}   test quality of the exported sub-models")
mean = row("cpu", reference)
for name, run in runs.items():
    # 360 test images: half a point is two of them. Trainings that differ in the last bits drift apart.
    if abs(row(name, run) - mean) > 0.02 or abs(run["loss"] - reference["loss"]) > 0.15 * reference["loss"] + 0.01:
        wrong.append(f"{name} is not close to cpu")
whole, resumed = (load_file(work / name / "model.safetensors") for name in (f"{gpu}-fp32", "resumed"))
apart = max(float((whole[key] - resumed[key]).norm() / whole[key].norm()) for key in whole)
print(f"resumed and uninterrupted weights differ by {apart:.1e} at most (relative norm)")
if apart > (0.05 if gpu != "cpu" else 0):
    wrong.append("the resumed training ended elsewhere")
sys.exit(f"tests/gpu.sh: {'; '.join(wrong)}" if wrong else 0)
PYTHON
