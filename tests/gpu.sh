#!/bin/sh
# One GPU against the CPU: gradients of one step in every precision; a small ResNet trained on digits in each, one of the trainings
# stopped, resumed and compared to the bit; all exported (each graph is compared with torch) and verified. Prints two tables.
# Fails where torch finds no GPU.
#
#   tests/gpu.sh [FOLDER]                      CUDA
#   ACCELERATOR=mps tests/gpu.sh [FOLDER]      Apple's; with cpu this script itself can be tried where there is none
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$here/build/gpu}
python=${PYTHON:-$here/.venv/bin/python}
gpu=${ACCELERATOR:-cuda}
cd "$here"
rm -rf "$work"
mkdir -p "$work"
trap '[ $? = 0 ] || tail -n 3 "$work/messages.txt" >&2' EXIT
: >"$work/messages.txt"

"$python" - "$gpu" <<'PYTHON'
import sys
import torch
from trainer import NestedModel, TrainerError
from trainer.accelerator import available, find_accelerator, single_precision
from trainer.data import load_data
from trainer.families import ResNet
try:
    device = find_accelerator(sys.argv[1]).device
except TrainerError as error:
    sys.exit(f"tests/gpu.sh: {error}")
print(torch.__version__, device, torch.cuda.get_device_name(device) if device.type == "cuda" else "")
torch.backends.cudnn.allow_tf32 = False  # its ten bits are no single precision
data = load_data("digits")
torch.manual_seed(0)
nested = NestedModel(ResNet.for_data(data.spec, channels=(16, 24, 32), blocks=(2, 2, 2)))
batch = data.train.batch(torch.arange(256))

def gradient(kind, precision, sub):  # of all parameters, as one vector
    accelerator = find_accelerator(kind, precision)
    nested.full.to(accelerator.device).zero_grad(set_to_none=True)
    targets, scale = batch.targets.to(accelerator.device), 1024.0 if precision == "fp16" else 1.0
    def loss_of(outputs):
        return nested.family.task.loss(single_precision(outputs), targets) * scale
    inputs = {name: tensor.to(accelerator.device) for name, tensor in batch.inputs.items()}
    nested.accumulate_gradients(sub, inputs, loss_of, accelerator.autocast())
    return torch.cat([p.grad.flatten().cpu() / scale for p in nested.full.parameters() if p.grad is not None])

print("\ngradients of one step: relative distance from the CPU's in fp32")
wrong = []
# Not 1e-6: a ReLU whose input is zero but for the rounding falls on the other side. Inputs changed by 1e-6, 1e-5, 1e-4 on the CPU
# move the largest net's gradient by up to 2e-3, 9e-3, 4e-2.
for precision, allowed in (("fp32", 0.01), ("bf16", 0.3), ("fp16", 0.12)):
    if precision == "fp16" and device.type == "cpu":
        continue
    for sub in (nested.submodels[0], nested.submodels[-1]):
        exact, found = gradient("cpu", "fp32", sub), gradient(sys.argv[1], precision, sub)
        apart = float((found - exact).norm() / exact.norm())
        print(f"{precision:5} {sub.id:12} {apart:.1e}   (at most {allowed:.0e})")
        if not apart <= allowed:
            wrong.append(f"{precision} {sub.id}")
sys.exit(f"tests/gpu.sh: gradients of {', '.join(wrong)} are not the CPU's" if wrong else 0)
PYTHON

train() { # RUN DEVICE PRECISION …
    run=$1 device=$2 precision=$3
    shift 3
    "$python" -m sortednet train --family resnet --data digits --set 'channels=[16,24,32]' --set 'blocks=[2,2,2]' --epochs 30 \
        --batch-size 64 --out "$work/$run" --accelerator "$device" --precision "$precision" --deterministic --json "$@" \
        >"$work/$run.json" 2>>"$work/messages.txt"
}

all() { # COMMAND …: for each process, whether it went well
    for process; do wait "$process"; done
}

halves="bf16 fp16"
[ "$gpu" = cpu ] && halves=bf16
train cpu cpu fp32 & trained=$!
train another-seed cpu fp32 --seed 1 & trained="$trained $!"
for precision in fp32 $halves; do
    train "$gpu-$precision" "$gpu" "$precision" & trained="$trained $!"
done
all $trained

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

exported=
for run in cpu another-seed "$gpu-fp32" $(for p in $halves; do echo "$gpu-$p"; done) resumed; do
    {
        "$python" -m sortednet export "$work/$run" --out "$work/$run.bundle" --json >"$work/$run.bundle.json" 2>>"$work/messages.txt"
        "$python" -m sortednet verify "$work/$run.bundle" >/dev/null 2>>"$work/messages.txt"
    } & exported="$exported $!"
done
all $exported

"$python" - "$work" "$gpu" <<'PYTHON'
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
work, gpu = Path(sys.argv[1]), sys.argv[2]
runs = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json")) if ".bundle" not in path.name}
wrong = []
def quality(name):  # of the exported graphs
    return [sub["quality"] for sub in json.loads((work / f"{name}.bundle.json").read_text())["submodels"]]
print("\ntest accuracy of the exported sub-models, 360 images: two points are seven of them")
print(f"{'run':14} {'loss':>8} {'worst':>8} {'mean':>8} {'best':>8}")
mean = {name: sum(quality(name)) / len(quality(name)) for name in runs}
for name, run in runs.items():
    print(f"{name:14} {run['loss']:8.4f} {min(quality(name)):8.3f} {mean[name]:8.3f} {max(quality(name)):8.3f}")
    if abs(mean[name] - mean["cpu"]) > 0.02:
        wrong.append(f"{name} is not close to cpu")
whole, resumed = (load_file(work / name / "model.safetensors") for name in (f"{gpu}-fp32", "resumed"))
differing = [key for key in whole if not torch.equal(whole[key], resumed[key])]
print(f"of {len(whole)} tensors of the uninterrupted training, {len(differing)} differ from those of the resumed one")
if differing:
    wrong.append(f"resumed and uninterrupted differ in {', '.join(differing[:3])}")
sys.exit(f"tests/gpu.sh: {'; '.join(wrong)}" if wrong else 0)
PYTHON
