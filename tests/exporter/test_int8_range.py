"""int8 weights of 7 bits, which no processor's kernels saturate with; of 8, where they do not; int8 beside fp32."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from zlib import decompress

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import sortednet
from exporter import ExportError, export
from exporter.bundle import Bundle, BundleError
from exporter.bundle.manifest import sealed
from exporter.bundle.saturation import _PROBE, saturates
from exporter.bundle.session import open_session, rms_error, run_session
from exporter.bundle.verify import self_test
from exporter.subset import subset
from trainer import Family, NestedModel, SubModel
from trainer.data import DataSet, Samples


def int8_of(bundle: Bundle) -> list[str]:
    return [entry.id for entry in bundle.manifest.submodels if entry.precision == "int8"]


def largest_weight(bundle: Bundle) -> int:
    """Of the shared file: -127 to 127."""
    return int(np.abs(np.fromfile(bundle.path / "models" / "weights.int8.bin", np.int8).astype(int)).max())


def on_a_processor(monkeypatch: pytest.MonkeyPatch, *, that_saturates: bool) -> None:
    for module in ("exporter.int8", "exporter.bundle.verify"):
        monkeypatch.setattr(f"{module}.saturates", lambda: that_saturates)


@pytest.fixture
def both(untrained_path: Path) -> Bundle:
    return Bundle(untrained_path)


def full_range(nested: NestedModel, digits: DataSet, path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Wherever the tests run."""
    on_a_processor(monkeypatch, that_saturates=False)
    one = [SubModel(width=0.5, depth=1)]
    return export(nested, path, submodels=one, int8_calibration=digits.train, int8_range="full", show_progress=False)


def test_weights_have_seven_bits_unless_asked(
    both: Bundle, untrained: NestedModel, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (both.manifest.int8_range, largest_weight(both)) == ("reduced", 63)
    full = full_range(untrained, digits, tmp_path / "full", monkeypatch)
    assert (full.manifest.int8_range, largest_weight(full)) == ("full", 127)
    assert self_test(full).int8_saturates is False


class _Computed(nn.Module):
    """A matrix that sub-models do not share: it is no parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(width, 64))
        self.classifier = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(F.linear(x, torch.sin(self.matrix)))
        return logits


class _Family(Family):
    axes: ClassVar[dict[str, Sequence[int]]] = {"width": (8, 16)}

    def build(self, sub: SubModel) -> nn.Module:
        return _Computed(int(sub["width"]))  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"x": torch.rand(batch_size, 64)}


@pytest.mark.parametrize("weights", ["reduced", "full"])
def test_weights_of_a_graph_alone_have_so_many_bits_too(weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_processor(monkeypatch, that_saturates=False)
    torch.manual_seed(0)
    nested = NestedModel(_Family()).eval()
    examples = Samples(nested.family.example_inputs(64), torch.zeros(64, dtype=torch.int64))
    bundle = export(nested, tmp_path / "b", int8_calibration=examples, int8_range=weights, show_progress=False)
    for name in int8_of(bundle):
        graph = onnx.load(bundle.graph_path(name), load_external_data=False).graph
        inline = [t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL and t.data_type == TensorProto.INT8]
        (own,) = (numpy_helper.to_array(t).astype(int) for t in inline if len(t.dims) > 1)
        assert np.abs(own).max() == {"reduced": 64, "full": 127}[weights]


def test_full_range_is_refused_where_it_saturates(
    untrained: NestedModel, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_processor(monkeypatch, that_saturates=True)
    with pytest.raises(ExportError, match=r"int8_range = 'full'.* saturate .*'reduced'"):
        export(untrained, tmp_path / "b", int8_calibration=digits.train, int8_range="full", show_progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match="no int8 sub-models are asked for"):
        export(untrained, tmp_path / "b", int8_range="full", show_progress=False)
    with pytest.raises(ExportError, match="int8_range = '9 bits'; allowed are reduced, full"):
        export(untrained, tmp_path / "b", int8_calibration=digits.train, int8_range="9 bits", show_progress=False)  # type: ignore[arg-type]


def test_a_device_that_saturates_fails_the_self_test(
    both: Bundle, untrained: NestedModel, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = full_range(untrained, digits, tmp_path / "full", monkeypatch)
    on_a_processor(monkeypatch, that_saturates=True)
    with pytest.raises(BundleError, match=r"models/weights\.int8\.bin: .* 8 bits.* saturate; export with"):
        self_test(full)
    fp32 = subset(full, ["w0.50-d1"], tmp_path / "fp32")
    assert self_test(fp32).submodels == 1
    assert self_test(both).int8_saturates is False


def test_the_probe_is_a_convolution_and_a_product_of_large_integers() -> None:
    """What `saturates` runs, as it was made; and it says of this machine what its kernels do."""
    large, m = np.full((16, 4, 3, 3), 127, np.int8), np.full((4, 16), 127, np.int8)
    scales = {"a": np.float32(1 / 255), "b": np.float32(1 / 127), "c": np.float32(36 / 200)}
    arrays: dict[str, Any] = {"w": large, "m": m, **scales, "z": np.uint8(0), "s": np.int8(0)}
    nodes = [
        ("DequantizeLinear", ["x", "a", "z"], "f"),
        ("DequantizeLinear", ["w", "b", "s"], "g"),
        ("DequantizeLinear", ["m", "b", "s"], "h"),
        ("Conv", ["f", "g"], "i"),
        ("QuantizeLinear", ["i", "c", "z"], "j"),
        ("DequantizeLinear", ["j", "c", "z"], "conv"),
        ("MatMul", ["f", "h"], "matmul"),
    ]
    made = helper.make_graph(
        [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        "p",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4, 4, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("conv", "matmul")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    assert onnx.load_model_from_string(decompress(b64decode(_PROBE))).graph == made

    x, w = np.full((2, 64), 255, np.uint8), np.full((64, 8), 127, np.int8)
    product = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(product, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    sums = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    assert saturates() == bool((sums != x.astype(int) @ w.astype(int)).any())


def test_answers_are_those_of_exact_arithmetic(both: Bundle, digits: DataSet) -> None:
    """ONNX Runtime's own kernels against floats, in which no sum saturates."""
    feed = {"input": digits.test.batch(torch.arange(64)).inputs["input"].numpy()}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name in int8_of(both):
        exact = run_session(ort.InferenceSession(str(both.graph_path(name)), options), feed)
        assert rms_error(run_session(open_session(both.graph_path(name)), feed), exact) < 0.01, name


def test_each_is_compared_with_its_fp32_graph(both: Bundle) -> None:
    inputs = both.selftest_inputs
    assert len(next(iter(inputs.values()))) == 8
    for name in int8_of(both):
        entry, fp32 = both.submodels[name], both.submodels[name.removesuffix("-int8")]
        answers, wanted = (run_session(open_session(both.graph_path(one.id)), inputs)["logits"] for one in (entry, fp32))
        assert entry.int8_error == pytest.approx(np.sqrt(((answers - wanted) ** 2).mean() / (wanted**2).mean()), rel=0.05)
        assert 0 < entry.int8_error < 0.2
        assert fp32.int8_error is None
    result = self_test(both)
    assert result.largest_int8_to_fp32 == pytest.approx(max(both.submodels[n].int8_error or 0 for n in int8_of(both)), rel=0.05)


def test_an_int8_network_that_is_another_one_is_refused(untrained: NestedModel, digits: DataSet, tmp_path: Path) -> None:
    black = Samples(torch.zeros(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64))
    with pytest.raises(ExportError, match=r"sub-model w\S+-int8: .* \d+% off those of the fp32 graph .*allowed is 50%"):
        export(untrained, tmp_path / "b", test_data=digits.test, int8_calibration=black, show_progress=False)
    assert not list(tmp_path.iterdir())


def with_selftest(bundle: Bundle, path: Path, change: Any) -> Bundle:
    """A copy in which `change` has been made to the expected outputs, by name."""
    shutil.copytree(bundle.path, path)
    target = path / bundle.manifest.selftest.file
    with np.load(target) as held:
        arrays = {key: change(key, held[key]) for key in held.files}
    np.savez(target, **arrays)
    return Bundle(path, verify=False)


def rounded_otherwise(bundle: Bundle, by: float) -> Any:
    """What a device whose floats differ in the last digit answers: other noise of rounding, as far from fp32."""
    random = np.random.default_rng(0)

    def change(key: str, array: NDArray[Any]) -> NDArray[Any]:
        if not key.startswith("output/") or "-int8/" not in key:
            return array
        noise = random.standard_normal(array.shape).astype(array.dtype)
        return array + by * noise * np.sqrt((array**2).mean())

    return change


def test_other_rounding_passes_the_self_test_where_it_is_as_near_to_fp32(both: Bundle, tmp_path: Path) -> None:
    other = with_selftest(both, tmp_path / "other", rounded_otherwise(both, 0.03))
    result = self_test(other)
    assert result.largest_int8_error > 0.01
    part = subset(other, ["w1.00-d2-int8"], tmp_path / "part")  # has its fp32 sub-model's answers, not the sub-model
    assert self_test(part).largest_int8_to_fp32 is not None
    worse = json.loads((other.path / "manifest.json").read_bytes())
    for entry in worse["submodels"]:
        if "int8_error" in entry:
            entry["int8_error"] = max(0, entry["int8_error"] - 0.02)  # it was nearer where it was exported
    (other.path / "manifest.json").write_text(json.dumps(sealed(worse)))
    with pytest.raises(BundleError, match=r"-int8\.onnx: its outputs on this device are off by .*, allowed is 1e-02"):
        self_test(Bundle(other.path, verify=False))


def test_a_bundle_from_before_is_read_as_it_is(both: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights have 8 bits, its self-test allows a tenth."""
    old = with_selftest(both, tmp_path / "old", rounded_otherwise(both, 0.02))
    document = json.loads((old.path / "manifest.json").read_bytes())
    del document["int8_range"], document["selftest"]["int8_tolerance"]
    for entry in document["submodels"]:
        entry.pop("int8_error", None)
    (old.path / "manifest.json").write_text(json.dumps(sealed(document)))
    read = Bundle(old.path, verify=False)
    assert (read.manifest.int8_range, read.manifest.selftest.int8_tolerance) == (None, 0.1)
    on_a_processor(monkeypatch, that_saturates=False)
    assert not self_test(read).int8_saturates
    on_a_processor(monkeypatch, that_saturates=True)
    assert self_test(read).int8_saturates  # a notice


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*arguments: Any) -> Any:
        return CliRunner().invoke(sortednet.app, [str(a) for a in arguments])

    options = ["--family", "resnet", "--data", "digits", "--epochs", 1, "--set", "channels=[8,16]", "--set", "blocks=[1,1]"]
    assert call("train", *options, "--grid", "width=0.5,1.0", "--out", tmp_path / "run").exit_code == 0
    export = ["export", tmp_path / "run", "--out", tmp_path / "bundle", "--submodels", "w0.50-d1", "--int8-range"]
    for arguments, problem in ((["full"], "--int8"), (["9", "--int8"], "'9'")):
        result = call(*export, *arguments)
        assert (result.exit_code, problem in result.stderr) == (2, True)
    on_a_processor(monkeypatch, that_saturates=True)
    refused = call(*export, "full", "--int8")
    assert (refused.exit_code, "saturate" in refused.stderr) == (2, True)
    on_a_processor(monkeypatch, that_saturates=False)
    assert call(*export, "full", "--int8").exit_code == 0
    assert "from fp32" in call("verify", tmp_path / "bundle").stdout
    found = json.loads(call("verify", tmp_path / "bundle", "--json").stdout)
    assert found["largest_int8_to_fp32"] > 0
    assert found["int8_saturates"] is False
    on_a_processor(monkeypatch, that_saturates=True)
    damaged = call("verify", tmp_path / "bundle", "--json")
    assert (damaged.exit_code, "weights.int8.bin" in json.loads(damaged.stdout)["error"]) == (1, True)
