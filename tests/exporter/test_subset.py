"""A part of a bundle: the same answers to the bit, over weights that hold no more than is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from device_profiles import read_profile
from exporter import export
from exporter.bundle import Bundle, BundleError
from exporter.bundle.session import open_session, run_session
from exporter.bundle.verify import self_test
from exporter.ranges import described
from exporter.subset import subset
from selector import Budget, selector_for
from selector.ship.signed import read_signed
from tests.conftest import DEVICE
from tests.helpers.exports import EVERY_KIND, calibrated, small
from tests.helpers.user_families import Branches, TextEncoder
from trainer import Family, NestedModel, SubModel


@pytest.fixture
def both(untrained_path: Path) -> Bundle:
    """In both precisions, measured."""
    return Bundle(untrained_path)


def assert_answers_are_the_same(part: Bundle, whole: Bundle) -> None:
    inputs = whole.selftest_inputs
    for name in part.submodels:
        ours, theirs = (run_session(open_session(b.graph_path(name)), inputs) for b in (part, whole))
        assert all(np.array_equal(ours[output], theirs[output]) for output in theirs), name


def contents(bundle: Bundle) -> dict[str, bytes]:
    files = (path for path in bundle.path.rglob("*") if path.is_file())
    return {path.relative_to(bundle.path).as_posix(): path.read_bytes() for path in files}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_part_answers_as_the_whole_and_has_its_profile(both: Bundle, tmp_path: Path, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(list(both.submodels)), min_size=1, max_size=5, unique=True))
    part = subset(both, names, tmp_path / "part")
    assert set(part.submodels) == set(names)
    assert_answers_are_the_same(part, both)
    assert self_test(part).submodels == len(names)
    assert part.profile(DEVICE).submodels == {name: both.profile(DEVICE).submodels[name] for name in part.submodels}
    assert selector_for(part, DEVICE).select(Budget()).submodel in names
    assert part.bytes_total < both.bytes_total


class WithNothing(Branches):
    """Parameters without elements among the others."""

    def build(self, sub: SubModel) -> nn.Module:
        return nn.Sequential(_Nothing(), super().build(sub), _Nothing())


class _Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.none, self.no_rows = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.none.sum() + self.no_rows.sum()


def test_parameters_without_elements_are_cut_too(tmp_path: Path) -> None:
    whole = export(calibrated(WithNothing()), tmp_path / "whole", show_progress=False)
    for names in (["w2"], ["w4", "w8"]):
        part = subset(whole, names, tmp_path / "part")
        assert_answers_are_the_same(part, whole)
        read_signed(json.dumps(described(part, 1)).encode())
        shutil.rmtree(part.path)


def test_what_is_signed_of_weights_that_no_graph_reads_is_nothing(both: Bundle, tmp_path: Path) -> None:
    part = subset(both, [name for name in both.submodels if name.endswith("-int8")][:1], tmp_path / "part")
    signed = read_signed(json.dumps(described(part, 1)).encode())
    assert signed.ranges[part.manifest.weights] == ()
    assert len(signed.ranges[part.manifest.weights_files[1]]) > 0


@pytest.mark.parametrize("family", [*EVERY_KIND, "TextEncoder", "Branches"])
def test_every_family_can_be_cut(family: str, tmp_path: Path) -> None:
    """Fused and concatenated blocks, tied parameters, depthwise convolutions."""
    users = {"TextEncoder": TextEncoder, "Branches": Branches}
    made: Family = users[family]() if family in users else small(family)
    whole = export(calibrated(made), tmp_path / "whole", show_progress=False)
    names = list(whole.submodels)
    for number, chosen in enumerate(([names[0]], [names[0], names[-1]], names[1:3])):
        part = subset(whole, chosen, tmp_path / str(number))
        assert_answers_are_the_same(part, whole)
        assert (part.weights_bytes < whole.weights_bytes) or names[-1] in chosen


def test_one_submodel_alone_is_cut_nowhere_any_more(both: Bundle, tmp_path: Path) -> None:
    part = subset(both, ["w0.50-d1"], tmp_path / "part")
    graph = onnx.load(part.graph_path("w0.50-d1"), load_external_data=False).graph
    assert "Slice" not in {node.op_type for node in graph.node}
    whole = onnx.load(both.graph_path("w0.50-d1"), load_external_data=False).graph
    assert "Slice" in {node.op_type for node in whole.node}
    padding = 64 * len(graph.initializer)
    assert part.weights_bytes <= part.submodels["w0.50-d1"].params * 4 + padding


def test_what_another_submodel_needs_is_kept_and_cut_by_the_graph(both: Bundle, tmp_path: Path) -> None:
    part = subset(both, ["w0.50-d1", "w0.75-d1"], tmp_path / "part")
    kinds = {
        name: {node.op_type for node in onnx.load(part.graph_path(name), load_external_data=False).graph.node}
        for name in part.submodels
    }
    assert "Slice" in kinds["w0.50-d1"]
    assert "Slice" not in kinds["w0.75-d1"]


def test_all_of_them_are_the_same_weights(both: Bundle, tmp_path: Path) -> None:
    part = subset(both, both.submodels, tmp_path / "part")
    for name in (both.manifest.weights, both.manifest.int8_weights):
        assert name is not None
        assert part.manifest.files[name] == both.manifest.files[name]
    assert part.fingerprint == both.fingerprint


def test_int8_alone_leaves_the_other_weights_out(both: Bundle, tmp_path: Path) -> None:
    part = subset(both, ["w0.50-d1-int8"], tmp_path / "part")
    assert part.manifest.files["models/weights.bin"].bytes == 0
    assert_answers_are_the_same(part, both)
    fp32 = subset(both, ["w0.50-d1"], tmp_path / "fp32")
    assert fp32.manifest.int8_weights is None


def test_the_same_request_gives_the_same_bytes(both: Bundle, tmp_path: Path) -> None:
    names = ["w0.50-d2", "w1.00-d1-int8", "w0.50-d1"]
    one = subset(both, names, tmp_path / "one")
    other = subset(both, reversed(names), tmp_path / "elsewhere" / "other")
    assert contents(one) == contents(other)


def test_a_part_of_a_part_is_the_part(both: Bundle, tmp_path: Path) -> None:
    between = subset(both, ["w0.50-d1", "w0.75-d2", "w1.00-d1"], tmp_path / "between")
    twice = subset(between, ["w0.50-d1"], tmp_path / "twice")
    assert_answers_are_the_same(twice, both)
    assert twice.weights_bytes == subset(both, ["w0.50-d1"], tmp_path / "once").weights_bytes


def test_it_has_the_fingerprint_of_an_export_of_the_same(untrained: NestedModel, both: Bundle, tmp_path: Path) -> None:
    alone = export(untrained, tmp_path / "alone", submodels=untrained.submodels[:1], show_progress=False)
    assert subset(both, alone.submodels, tmp_path / "part").fingerprint == alone.fingerprint


def test_files_beside_the_graphs_come_along(untrained: NestedModel, tmp_path: Path) -> None:
    whole = export(untrained, tmp_path / "whole", files={"tokenizer.json": b"{}"}, show_progress=False)
    part = subset(whole, [next(iter(whole.submodels))], tmp_path / "part")
    assert (part.path / "tokenizer.json").read_bytes() == b"{}"


@pytest.mark.parametrize(("names", "named"), [(["w9"], "'w9'"), ([], "none")])
def test_what_cannot_be_cut_is_refused_and_leaves_nothing(both: Bundle, tmp_path: Path, names: list[str], named: str) -> None:
    with pytest.raises(BundleError, match=named):
        subset(both, names, tmp_path / "part")
    assert list(tmp_path.iterdir()) == []


def test_truncated_weights_are_refused_and_leave_nothing(both: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(both.path, damaged)
    weights = damaged / "models" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BundleError, match=r"weights\.bin: 100 bytes"):
        subset(Bundle(damaged, verify=False), ["w1.00-d2"], tmp_path / "part")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_damaged_profile_is_left_behind(both: Bundle, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(both.path, tmp_path / "copied"))
    (copied / "profiles" / "broken.json").write_text("{")
    part = subset(Bundle(copied), ["w0.50-d1"], tmp_path / "part")
    assert part.devices() == [DEVICE]
    assert read_profile(part.path / "profiles" / f"{DEVICE}.json").bundle == part.fingerprint
    assert json.loads((part.path / "manifest.json").read_text())["submodels"][0]["id"] == "w0.50-d1"
