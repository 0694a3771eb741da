"""Training examples per second of every device and precision that is here: `python -m benchmarks.training.accelerators`.

Two nets on the same data in memory (Fashion-MNIST, where it is; else the 5,000 images of MNIST): a small one, whose steps a GPU
spends waiting for Python, and a large one. Prints a table; the documentation has what it printed on a named machine.
"""

from __future__ import annotations

import time
from itertools import product

import torch

from trainer import FitOptions, NestedModel, TrainerError
from trainer.accelerator import PRECISIONS, available, find_accelerator
from trainer.data import DataSet, load_data
from trainer.data.loading import read
from trainer.families import ResNet
from trainer.training import _Training

NETS = {
    "small": {"channels": (8, 16), "blocks": (4, 4), "multiple": 1},
    "large": {"channels": (64, 128, 256), "blocks": (4, 4, 4), "multiple": 8},
}
BATCHES = {"small": 64, "large": 256}
SECONDS = 6.0


def main() -> None:
    try:
        data = load_data("fashion-mnist")
    except TrainerError:
        data = load_data("mnist-5k")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA"
    print(f"torch {torch.__version__}, {gpu}, {torch.get_num_threads()} threads on the CPU; {data.name}")
    print(f"{'net':6} {'batch':>5} {'device':6} {'precision':9} {'images/s':>9} {'ms a step':>9}")
    for net, device, precision in product(NETS, available(), PRECISIONS):
        if device == "cpu" and precision == "fp16":
            continue
        steps, seconds = _steps(data, net, device, precision)
        rate = steps * BATCHES[net] / seconds
        print(f"{net:6} {BATCHES[net]:5} {device:6} {precision:9} {rate:9.0f} {1000 * seconds / steps:9.1f}", flush=True)


def _steps(data: DataSet, net: str, device: str, precision: str) -> tuple[int, float]:
    """How many there were in how many seconds, after as many to warm up as take a third of that."""
    torch.manual_seed(0)
    nested = NestedModel(ResNet.for_data(data.spec, **NETS[net]))
    options = FitOptions(epochs=10_000, batch_size=BATCHES[net], accelerator=device, precision=precision)
    training = _Training(nested, data.train, None, options, data.augment, None)
    accelerator = find_accelerator(device, precision)
    batches = read(data.train, training._order(), -1, accelerator.pins_memory, data.augment)
    steps, begun = 0, time.perf_counter()
    for seconds in (SECONDS / 3, SECONDS):
        _wait(accelerator.device)
        steps, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            training._one_step(next(batches))
            training.step += 1
            steps += 1
    _wait(accelerator.device)
    batches.close()
    return steps, time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
