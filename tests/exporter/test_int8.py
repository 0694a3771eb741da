"""int8 sub-models: near the fp32 ones, over one shared file, candidates like any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import sortednet
from device_profiles import Profile, write_profile
from exporter import export
from exporter.bundle import Bundle, BundleError
from exporter.bundle.session import open_session, run_session
from exporter.bundle.verify import self_test
from selector import Budget, Runtime, Selector
from tests.conftest import DEVICE, exported
from tests.helpers.exports import EVERY_KIND, calibrated, small
from tests.helpers.user_families import Branches, TextEncoder
from trainer import Family, NestedModel, SubModel, calibrate
from trainer.data import DataSet, Samples


def int8_name(identifier: str) -> str:
    return f"{identifier}-int8"


@pytest.fixture(scope="module")
def both_path(trained: NestedModel, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(trained, digits, tmp_path_factory.mktemp("int8") / "digits", int8=True)


@pytest.fixture(scope="module")
def bundle_path(trained: NestedModel, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in fp32 alone."""
    return exported(trained, digits, tmp_path_factory.mktemp("fp32") / "digits")


@pytest.fixture
def both(both_path: Path) -> Bundle:
    return Bundle(both_path)


def test_every_sub_model_is_there_in_both_precisions(both: Bundle, bundle: Bundle) -> None:
    assert list(both.submodels) == [*bundle.submodels, *map(int8_name, bundle.submodels)]
    for name, entry in bundle.submodels.items():
        int8 = both.submodels[int8_name(name)]
        assert (int8.precision, int8.axes, int8.macs) == ("int8", entry.axes, entry.macs)
        assert abs(int8.accuracy - entry.accuracy) < 0.03
        assert (both.path / int8.graph).read_bytes() != (both.path / entry.graph).read_bytes()
        fp32 = both.path / entry.graph
        assert fp32.read_bytes() == (bundle.path / entry.graph).read_bytes()


def test_the_weights_of_all_lie_once_in_one_file(both: Bundle) -> None:
    assert both.manifest.int8_weights is not None
    files = both.manifest.files
    assert files[both.manifest.int8_weights].bytes <= 0.3 * files[both.manifest.weights].bytes
    offsets = set()
    for name in map(int8_name, list(both.submodels)[:6]):
        graph = onnx.load(both.graph_path(name), load_external_data=False).graph
        external = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        assert {entry.value for t in external for entry in t.external_data if entry.key == "location"} == {"weights.int8.bin"}
        offsets |= {entry.value for t in external for entry in t.external_data if entry.key == "offset"}
        inline = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        assert not [t for t in inline if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    weights = {layer for entry in both.manifest.submodels[:6] for layer, _ in entry.layers}
    assert 5 < len(offsets) <= len(weights)  # less than there are layers in all sizes: sizes share


def test_integers_are_used_in_every_convolution_and_product(both: Bundle) -> None:
    for name in map(int8_name, list(both.submodels)[:6]):
        session = open_session(both.graph_path(name))
        assert session.get_inputs()[0].type == "tensor(float)"
        graph = onnx.load(both.graph_path(name), load_external_data=False).graph
        made_by = {output: node for node in graph.node for output in node.output}
        products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        assert len(products) > 3
        assert all(made_by[node.input[i]].op_type == "DequantizeLinear" for node in products for i in (0, 1))
        assert made_by[graph.output[0].name].op_type != "DequantizeLinear"  # scores are not rounded to 256 levels


def test_they_pass_the_self_test_and_a_changed_weight_does_not(both_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(both_path, path)
    result = self_test(Bundle(path))
    assert result.submodels == 12
    assert result.largest_int8_error < 0.01
    weights = path / "models" / "weights.int8.bin"
    content = bytearray(weights.read_bytes())
    content[5] ^= 0x40
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.int8\.bin: its content differs"):
        Bundle(path)
    weights.write_bytes(bytes(len(content)))
    with pytest.raises(BundleError, match=r"-int8\.onnx: its outputs on this device are off"):
        self_test(Bundle(path, verify=False))


def made_up(profile: Profile, int8_factor: float) -> Profile:
    """A profile in which an int8 sub-model takes so much of its fp32 one's time."""
    measured = {}
    for name, m in profile.submodels.items():
        base = profile.submodels[name.removesuffix("-int8")].latency_ms
        factor = int8_factor if name.endswith("-int8") else 1.0
        figures = {key: getattr(base, key) * factor for key in ("p50", "p90", "p99", "mean")}
        measured[name] = m.model_copy(update={"latency_ms": base.model_copy(update=figures), "memory_mb": None})
        measured[name].source.pop("memory_mb", None)
    return profile.model_copy(update={"submodels": measured})


def test_they_are_candidates_like_any_other(both: Bundle) -> None:
    accuracies = {name: both.submodels[name.removesuffix("-int8")].accuracy for name in both.submodels}
    profile = both.profile(DEVICE)
    slower = Selector(made_up(profile, 1.2), accuracies)
    faster = Selector(made_up(profile, 0.5), accuracies)
    for limit in (m.latency_ms.p50 for m in profile.submodels.values()):
        assert not slower.select(Budget(latency_ms=limit)).submodel.endswith("-int8")
        assert faster.select(Budget(latency_ms=limit)).submodel.endswith("-int8")


def test_the_runtime_runs_them(both_path: Path, tmp_path: Path, digits: DataSet) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(both_path, path)
    opened = Bundle(path)
    write_profile(made_up(opened.profile(DEVICE), 0.1), path / "profiles" / f"{DEVICE}.json")
    runtime = Runtime(path, battery=lambda: None, load_ahead=False)
    inputs = digits.test.batch(torch.arange(64)).inputs["input"].numpy()
    result = runtime.run(inputs, Budget(min_accuracy=0.5, objective="latency"))
    assert result.selection.submodel.endswith("-int8")
    direct = run_session(open_session(opened.graph_path(result.selection.submodel)), {"input": inputs})
    np.testing.assert_allclose(result.outputs["logits"], direct["logits"], rtol=1e-5, atol=1e-5)
    runtime.close()


def family_of(name: str) -> Family:
    return {"text": TextEncoder, "branches": Branches}[name]() if name in ("text", "branches") else small(name)


@pytest.mark.parametrize("name", [*EVERY_KIND, "text", "branches"])
def test_every_family_can_be_quantized(name: str, tmp_path: Path) -> None:
    """With BatchNorm scales of both signs and some that switch a channel off, fused projections and tied weights."""
    nested = calibrated(family_of(name))
    torch.manual_seed(2)
    with torch.no_grad():
        for module in nested.full.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.weight.add_(torch.randn_like(module.weight) * 0.8)
                module.weight[::7] = 0.0
    inputs = nested.family.example_inputs(256)
    calibrate(nested, [inputs])
    examples = Samples(inputs, torch.zeros(256, dtype=torch.int64))
    bundle = export(nested, tmp_path / "bundle", int8_calibration=examples, show_progress=False)
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    for sub in nested.submodels:
        fp32, int8 = (run_session(open_session(bundle.graph_path(i)), feed)["logits"] for i in (sub.id, int8_name(sub.id)))
        noise = (int8 - fp32) - (int8 - fp32).mean(axis=0)
        assert np.abs(int8 - fp32).max() < 0.25 * np.abs(fp32).max(), sub.id
        assert noise.std() < 0.1 * np.abs(fp32).max(), sub.id
    int8_bytes, fp32_bytes = ((bundle.path / "models" / f).stat().st_size for f in ("weights.int8.bin", "weights.bin"))
    assert 0.1 * fp32_bytes < int8_bytes < 0.35 * fp32_bytes


def test_a_part_of_the_grid_without_a_largest_one(trained: NestedModel, digits: DataSet, tmp_path: Path) -> None:
    some = [SubModel(width=0.5, depth=2), SubModel(width=1.0, depth=1), SubModel(width=0.5, depth=1)]
    bundle = export(
        trained, tmp_path / "bundle", submodels=some, int8_calibration=digits.train, test_data=digits.test, show_progress=False
    )
    for sub in some:
        assert bundle.submodels[int8_name(sub.id)].accuracy > bundle.submodels[sub.id].accuracy - 0.03


def test_from_the_command_line(trained: NestedModel, digits: DataSet, tmp_path: Path) -> None:
    def call(*arguments: Any) -> Any:
        return CliRunner().invoke(sortednet.app, [str(a) for a in arguments])

    options = ["--family", "resnet", "--data", "digits", "--epochs", 1, "--set", "channels=[8,16]", "--set", "blocks=[1,1]"]
    assert call("train", *options, "--grid", "width=0.5,1.0", "--out", tmp_path / "run").exit_code == 0
    result = call("export", tmp_path / "run", "--out", tmp_path / "bundle", "--int8", "--submodels", "w0.50-d1")
    assert result.exit_code == 0
    error = Bundle(tmp_path / "bundle").submodels["w0.50-d1-int8"].int8_error
    assert f"fp32 equal to torch; int8 at most {error:.1%} off fp32 (RMS)." in " ".join(result.stdout.split())
    assert list(Bundle(tmp_path / "bundle").submodels) == ["w0.50-d1", "w0.50-d1-int8"]
    assert call("verify", tmp_path / "bundle").exit_code == 0
