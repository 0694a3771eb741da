"""The bundles that are measured. Latency does not depend on what the weights are, so that only `trained` is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.device.encoder import Encoder
from benchmarks.training.experiment import Experiment, run
from benchmarks.training.methods import METHODS
from benchmarks.training.setups import SETUPS
from exporter import export
from exporter.bundle import Bundle
from trainer import Family, NestedModel, calibrate
from trainer.calibration import calibration_batches
from trainer.data import DataSet, Samples, load_data
from trainer.families import ResNet
from trainer.run import load_run

WORK = Path("build/device")
TRAINED_EPOCHS = 4


def made(name: str) -> Bundle:
    """`resnet`, `mobilenetv2` (160 sub-models), `encoder` (42, 20 million parameters), `cnn` (40, 17 MB), `demo` (28), or
    `trained` (the ResNet after a short training on Fashion-MNIST, its accuracies measured), each in fp32 and int8."""
    path = WORK / name
    if (path / "manifest.json").exists():
        return Bundle(path)
    data = load_data("fashion-mnist")
    if name == "trained":
        short = Experiment("resnet", "ours", 0, TRAINED_EPOCHS)
        run(short, METHODS["ours"], WORK / "runs", {})
        return export(load_run(WORK / "runs" / short.name).nested, path, test_data=data.test, int8_calibration=data.train)
    torch.manual_seed(0)
    family = _family(name, data)
    nested = NestedModel(family).eval()
    if isinstance(family, Encoder):
        tokens = family.example_inputs(64)["tokens"]
        return export(nested, path, int8_calibration=Samples(tokens, torch.zeros(64, dtype=torch.int64)))
    calibrate(nested, calibration_batches(data.train, 1))
    some = data.train if name != "cnn" else None
    measured = data.test if name == "demo" else None  # `select` asks for accuracies
    return export(nested, path, test_data=measured, int8_calibration=some)


def _family(name: str, data: DataSet) -> Family:
    if name == "encoder":
        return Encoder()
    if name == "cnn":
        widths, depths = [k / 10 for k in range(3, 11)], (1, 2, 3, 4, (1, 2, 3))
        return ResNet.for_data(
            data.spec, channels=[56, 112, 224], blocks=[4, 4, 4], stem_stride=2, widths=widths, depths=depths
        )
    if name == "demo":
        return ResNet.for_data(data.spec, channels=[8, 16], blocks=[4, 4], multiple=1)
    return SETUPS[name].build(data)
