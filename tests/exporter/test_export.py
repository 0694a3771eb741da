"""Export: every graph equal to torch, in stock ONNX Runtime, over one weights file; whole or absent."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.external_data_helper import uses_external_data
from torch import Tensor, nn

import exporter.writer
from exporter import ExportError, export
from exporter.bundle import Bundle, BundleError
from exporter.bundle.session import relative_error
from exporter.bundle.verify import self_test
from tests.conftest import DEVICE
from tests.helpers.exports import EVERY_KIND, calibrated, small
from tests.helpers.user_families import Branches, Noisy, TextEncoder
from trainer import Family, NestedModel, SubModel, TrainerError, calibrate
from trainer.data import DataSet


@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_graph_of_every_family_equals_the_extracted_sub_model(name: str, tmp_path: Path) -> None:
    nested = calibrated(small(name))
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    inputs = nested.family.example_inputs(3)
    for sub in nested.submodels:
        session = ort.InferenceSession(str(bundle.graph_path(sub.id)))  # nothing of ours
        got = session.run(None, {n: t.numpy() for n, t in inputs.items()})[0]
        with torch.no_grad():
            wanted = nested.applied(nested.extract(sub), inputs)["logits"].numpy()
        assert relative_error({"logits": got}, {"logits": wanted}) < 1e-5, sub.id
        assert bundle.submodels[sub.id].params == sum(p.numel() for p in nested.extract(sub).parameters())


def test_outputs_equal_a_plain_export_to_the_bit(tmp_path: Path) -> None:
    """A cut is folded when the graph is loaded: the arithmetic is that of a graph that was never cut."""
    nested = calibrated(small("resnet"))
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    inputs = nested.family.example_inputs(2)
    for sub in nested.submodels:
        plain = tmp_path / "plain.onnx"
        training = torch.onnx.TrainingMode.PRESERVE  # otherwise torch folds BatchNorm, in another order of rounding
        module = nested.extract(sub).eval()
        torch.onnx.export(module, tuple(inputs.values()), str(plain), dynamo=False, training=training, input_names=["input"])
        feed = {"input": inputs["input"].numpy()}
        ours, theirs = (ort.InferenceSession(str(p)).run(None, feed)[0] for p in (bundle.graph_path(sub.id), plain))
        np.testing.assert_array_equal(ours, theirs)


def test_the_weights_are_stored_once_and_graphs_hold_next_to_nothing(bundle: Bundle, untrained: NestedModel) -> None:
    full = sum(p.numel() for p in untrained.full.parameters()) * 4
    assert full <= bundle.weights_bytes < full + 64 * len(list(untrained.full.parameters()))
    for entry in bundle.submodels.values():
        model = onnx.load(str(bundle.path / entry.graph), load_external_data=False)
        onnx.checker.check_model(str(bundle.path / entry.graph))
        inline = sum(len(t.raw_data) for t in model.graph.initializer if not uses_external_data(t))
        channels = sum(b.numel() for b in untrained.buffers_of(_sub(untrained, entry.id)).values())
        assert inline <= 2 * channels + 1024, entry.id  # half-precision statistics and a few shapes


@pytest.mark.parametrize("family", [TextEncoder(), Branches()], ids=lambda f: type(f).__name__)
def test_families_with_fused_blocks_ties_buffers_and_width_dependent_constants(family: Family, tmp_path: Path) -> None:
    nested = calibrated(family)
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    inputs = family.example_inputs(5)
    for sub in nested.submodels:
        session = ort.InferenceSession(str(bundle.graph_path(sub.id)))
        got = session.run(None, {n: t.numpy() for n, t in inputs.items()})[0]
        with torch.no_grad():
            wanted = nested.extract(sub)(*inputs.values()).numpy()
        assert relative_error({"logits": got}, {"logits": wanted}) < 1e-5, sub.id
    stored = sum(p.numel() for p in nested.full.parameters()) * 4  # a tied parameter counts once
    assert bundle.weights_bytes < stored + 64 * len(list(nested.full.parameters()))


def test_macs_are_those_of_one_example(bundle: Bundle, untrained: NestedModel) -> None:
    sub = untrained.submodels[0]
    macs = 0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        macs += output[0].numel() * weight[0].numel()

    plain = untrained.extract(sub).eval()
    for module in plain.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    plain(torch.rand(1, 1, 8, 8))
    assert bundle.submodels[sub.id].macs == macs


def test_accuracy_is_that_of_the_graph_on_the_test_split(untrained: NestedModel, digits: DataSet, tmp_path: Path) -> None:
    """The labels are what the largest sub-model says, but for every tenth."""
    inputs, _ = digits.test.batch(torch.arange(len(digits.test)))
    with torch.no_grad():
        predicted = {sub.id: untrained(inputs, sub).argmax(dim=1) for sub in untrained.submodels}
    largest = untrained.family.largest.id
    labels = predicted[largest].clone()
    labels[::10] = (labels[::10] + 1) % 10
    bundle = export(untrained, tmp_path / "bundle", test_data=(inputs, labels), show_progress=False)
    for name, entry in bundle.submodels.items():
        right = float((predicted[name] == labels).float().mean())
        assert entry.accuracy == pytest.approx(right, abs=1.5 / len(labels))
    assert bundle.submodels[largest].accuracy == pytest.approx(0.9, abs=1.5 / len(labels))
    assert len(set(bundle.accuracies.values())) > 2


def test_a_graph_that_differs_from_torch_stops_the_export_with_name_and_figure(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"sub-model w2: the graph differs from torch by \d\.\d+e.* allowed is 1e-04"):
        export(NestedModel(Noisy()), tmp_path / "bundle", show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_uncalibrated_sub_model_is_refused(tmp_path: Path) -> None:
    nested = NestedModel(small("resnet"))
    calibrate(nested, [torch.rand(8, 1, 8, 8)], nested.submodels[:1])
    with pytest.raises(ExportError, match=f"{nested.submodels[1].id}.*not calibrated"):
        export(nested, tmp_path / "bundle", show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_replaced_but_nothing_else(bundle_path: Path, untrained: NestedModel, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_path, bundle)
    export(untrained, bundle, submodels=untrained.submodels[:1], overwrite=True, show_progress=False)
    assert list(Bundle(bundle).submodels) == [untrained.submodels[0].id]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("three years of work")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        export(untrained, other, show_progress=False)
    assert (other / "thesis.txt").read_text() == "three years of work"


def test_profiles_are_kept_when_the_same_networks_are_exported_again(
    bundle_path: Path, untrained: NestedModel, tmp_path: Path
) -> None:
    """Those of the bundle that stood there; trained again, a network is as fast as it was."""
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_path, bundle)
    before = Bundle(bundle).profile(DEVICE)
    assert export(untrained, bundle, show_progress=False).profile(DEVICE) == before
    (bundle / "profiles" / "damaged.json").write_text("{")
    assert export(untrained, bundle, overwrite=True, show_progress=False).devices() == [DEVICE]


def test_a_sub_model_that_is_asked_for_twice_is_written_once(untrained: NestedModel, tmp_path: Path) -> None:
    first = untrained.submodels[0]
    assert list(export(untrained, tmp_path / "bundle", submodels=[first, first], show_progress=False).submodels) == [first.id]


REFUSED = ["../escaped.txt", "models/x", "manifest.json", "/tmp/x", "", "..", "a\\b", "C:x", "a\0b", "\udcff", "x" * 300]
OURS = ["written.json", "Written.JSON", "cascades.json", "profiles", "models", "selftest.npz", "signed.json", "signed.sig"]


@pytest.mark.parametrize("name", [*REFUSED, *OURS])
def test_a_file_that_would_leave_the_bundle_or_replace_one_of_its_own_is_refused(
    name: str, untrained: NestedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.writer.check_target", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(ExportError, match="files: "):
        export(untrained, tmp_path / "b", submodels=untrained.submodels[:1], files={name: b"x"}, show_progress=False)
    assert list(tmp_path.iterdir()) == []


class Slashes(Branches):
    """An input with a name as other frameworks give them."""

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"serving/image:0": super().example_inputs(batch_size)["image"]}


def test_an_input_may_have_a_slash_in_its_name(tmp_path: Path) -> None:
    bundle = export(calibrated(Slashes()), tmp_path / "bundle", show_progress=False)
    assert list(bundle.selftest()[0]) == list(bundle.selftest_inputs) == ["serving/image:0"]
    assert self_test(bundle).submodels == 3


def test_test_data_that_cannot_be_are_refused(untrained: NestedModel, digits: DataSet, tmp_path: Path) -> None:
    images, labels = digits.test.inputs["input"], digits.test.targets
    with pytest.raises(ExportError, match="test data: 1 examples"):
        export(untrained, tmp_path / "b", test_data=(images[:1], labels[:1]), show_progress=False)
    wrong = labels[:5].index_fill(0, torch.tensor(3), 99)
    with pytest.raises(TrainerError, match="test data: label 99 at position 3; allowed are 0 to 9"):
        export(untrained, tmp_path / "b", test_data=(images[:5], wrong), show_progress=False)
    assert list(tmp_path.iterdir()) == []


class FixedBatch(Family):
    """A user's slip: the size of the batch becomes a constant when the module is traced."""

    axes: ClassVar[dict[str, tuple[int, ...]]] = {"width": (4, 8)}

    def build(self, sub: SubModel) -> nn.Module:
        class Network(nn.Module):
            def __init__(self, width: int) -> None:
                super().__init__()
                self.hidden, self.head = nn.Linear(16, width), nn.Linear(width, 3)

            def forward(self, image: Tensor) -> Tensor:
                result: Tensor = self.head(self.hidden(image.reshape(len(image), -1)).relu())
                return result

        return Network(int(sub["width"]))  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"image": torch.rand(batch_size, 1, 4, 4)}


def test_a_batch_size_that_became_a_constant_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="sub-model w4: the graph does not run"):
        export(NestedModel(FixedBatch()), tmp_path / "bundle", show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_when_a_graph_fails_nobody_waits_for_those_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = calibrated(small("resnet").with_grid({"width": [0.25, 0.5, 0.75], "depth": [(1, 1), (1, 2), (2, 1)]}))
    examined: list[SubModel] = []
    all_drafted, given_up = threading.Event(), threading.Event()
    draft_of = exporter.writer._Writer._draft

    def draft(self: exporter.writer._Writer, sub: SubModel) -> exporter.writer._Draft:
        found = draft_of(self, sub)
        if sub == nested.submodels[-1]:
            all_drafted.set()
        return found

    def examine(self: object, draft: exporter.writer._Draft) -> exporter.writer._Examined:
        assert all_drafted.wait(60)
        examined.append(draft.sub)
        if len(examined) > 1 and threading.current_thread() is not threading.main_thread():
            assert given_up.wait(60)  # the first one's failure must come to the others first
        return exporter.writer._Examined("it is wrong", None)

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            given_up.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr(exporter.writer, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(exporter.writer._Writer, "_draft", draft)
    monkeypatch.setattr(exporter.writer._Writer, "_examine", examine)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # one examines, the others wait
    with pytest.raises(ExportError, match="it is wrong"):
        export(nested, tmp_path / "bundle", show_progress=False)
    assert len(examined) < len(nested.submodels) == 16


class Activation(FixedBatch):
    """A family whose networks differ in an operator alone."""

    def __init__(self, activation: type[nn.Module]) -> None:
        self.activation = activation

    def build(self, sub: SubModel) -> nn.Module:
        width = int(sub["width"])  # type: ignore[arg-type]
        return nn.Sequential(nn.Flatten(), nn.Linear(16, width), self.activation(), nn.Linear(width, 3))


def test_a_profile_is_not_valid_for_networks_with_other_operators(tmp_path: Path) -> None:
    """However many parameters and multiplications they have in common."""
    relu, again, tanh = (
        export(NestedModel(Activation(kind)), tmp_path / str(i), show_progress=False)
        for i, kind in enumerate((nn.ReLU, nn.ReLU, nn.Tanh))
    )
    assert relu.fingerprint == again.fingerprint
    assert relu.fingerprint != tanh.fingerprint


def _sub(nested: NestedModel, identifier: str) -> SubModel:
    return next(sub for sub in nested.submodels if sub.id == identifier)
