"""GRU, LSTM and RNN layers: exported once for each depth, and equal to torch at every width.

Shapes: N sequences of T steps of CHANNELS numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.external_data_helper import uses_external_data
from torch import Tensor, nn

from exporter import export
from exporter.bundle.session import relative_error
from exporter.bundle.verify import self_test
from exporter.subset import subset
from trainer import Family, NestedModel, SubModel
from trainer.macs import MacCounter

CHANNELS, CLASSES = 6, 5
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


class _Network(nn.Module):
    def __init__(self, kind: str, width: int, layers: int, bias: bool, both_ways: bool) -> None:
        super().__init__()
        make = getattr(nn, kind)
        self.rnn = make(CHANNELS, width, layers, bias=bias, bidirectional=both_ways, batch_first=True)
        self.head = nn.Linear(width * (1 + both_ways), CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        states, _ = self.rnn(sequence)
        logits: Tensor = self.head(states.mean(dim=1))
        return logits


class Recurrent(Family):
    dynamic_axes = {"sequence": {0: "batch", 1: "time"}}  # noqa: RUF012

    def __init__(self, kind: str = "GRU", bias: bool = True, both_ways: bool = False, named: bool = True) -> None:
        self.kind, self.bias, self.both_ways, self.named = kind, bias, both_ways, named
        self.axes = {"width": (4, 6, 8), "layers": (1, 2)}

    def build(self, sub: SubModel) -> nn.Module:
        width, layers = sub["width"], sub["layers"]
        assert isinstance(width, int)
        assert isinstance(layers, int)
        return _Network(self.kind, width, layers, self.bias, self.both_ways)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"sequence": torch.randn(batch_size, 10, CHANNELS)}

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        width, gates = sub["width"], GATES[self.kind]
        assert isinstance(width, int)
        blocks: dict[str, Mapping[int, Sequence[int]]] = {}
        for name, _ in self.build(sub).named_parameters() if self.named else ():
            if name.startswith("rnn."):
                blocks[name] = {0: (width,) * gates}
                if self.both_ways and "weight_ih" in name and "_l0" not in name:
                    blocks[name] = {**blocks[name], 1: (width, width)}  # of a lower layer's two directions
        if self.both_ways:
            blocks["head.weight"] = {1: (width, width)}
        return blocks


class _Learnt(nn.Module):
    """A first state that is a parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(CHANNELS, width, batch_first=True)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        _, state = self.rnn(sequence, self.first.expand(-1, sequence.shape[0], -1).contiguous())
        logits: Tensor = self.head(state[0])
        return logits


class LearntState(Recurrent):
    def __init__(self) -> None:
        super().__init__()
        self.axes = {"width": (4, 8)}

    def build(self, sub: SubModel) -> nn.Module:
        width = sub["width"]
        assert isinstance(width, int)
        return _Learnt(width)


def nested_of(family: Family) -> NestedModel:
    torch.manual_seed(0)
    return NestedModel(family).eval()


FAMILIES = [Recurrent(kind, bias, both) for kind in GATES for bias, both in ((True, False), (False, False), (True, True))]
FAMILIES += [Recurrent("LSTM", bias=False, both_ways=True), Recurrent("GRU", named=False), LearntState()]
NAMES = [f"{type(f).__name__}-{f.kind}-bias{f.bias}-both{f.both_ways}-named{f.named}" for f in FAMILIES]


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_every_graph_equals_torch_at_any_length_in_stock_onnx_runtime(family: Family, tmp_path: Path) -> None:
    nested = nested_of(family)
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    for sub in nested.submodels:
        module = nested.extract(sub)
        session = ort.InferenceSession(str(bundle.graph_path(sub.id)))
        for batch, time in ((1, 3), (4, 17)):
            sequence = torch.randn(batch, time, CHANNELS)
            with torch.no_grad():
                wanted = module(sequence).numpy()
            got = session.run(None, {"sequence": sequence.numpy()})[0]
            assert relative_error({"logits": got}, {"logits": wanted}) < 1e-5, sub.id


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_depth_is_traced_once_for_all_widths(kind: str, both_ways: bool, tmp_path: Path) -> None:
    """Otherwise every sub-model would be traced by itself, and latencies could not be predicted from each other."""
    bundle = export(nested_of(Recurrent(kind, both_ways=both_ways)), tmp_path / "bundle", show_progress=False)
    topologies: dict[object, set[str]] = {}
    for entry in bundle.submodels.values():
        topologies.setdefault(entry.axes["layers"], set()).add(entry.topology)
    assert [len(found) for found in topologies.values()] == [1, 1]


def test_the_weights_stay_in_their_file_and_what_torch_wrote_to_cut_them_is_gone(tmp_path: Path) -> None:
    nested = nested_of(Recurrent("LSTM"))
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    stored = sum(p.numel() for p in nested.full.parameters()) * 4
    assert stored <= bundle.weights_bytes < stored + 64 * len(list(nested.full.parameters()))
    for entry in bundle.submodels.values():
        path = bundle.graph_path(entry.id)
        onnx.checker.check_model(str(path))
        graph = onnx.load(str(path), load_external_data=False).graph
        inline = sum(len(t.raw_data) for t in graph.initializer if not uses_external_data(t))
        assert inline < 256, entry.id
        assert not {"ConstantOfShape", "Shape", "Expand"} & {node.op_type for node in graph.node}


def test_a_subset_of_a_recurrent_bundle_answers_as_it_did(tmp_path: Path) -> None:
    bundle = export(nested_of(Recurrent("GRU")), tmp_path / "bundle", show_progress=False)
    small = subset(bundle, ["w4-l1", "w6-l2"], tmp_path / "small")
    assert small.weights_bytes < bundle.weights_bytes
    assert self_test(small).largest_error < 1e-5


@pytest.mark.parametrize("kind", GATES)
def test_multiply_accumulates_of_a_layer_are_those_of_its_two_products(kind: str) -> None:
    module = getattr(nn, kind)(CHANNELS, 16, 2, batch_first=True).eval()
    with torch.no_grad(), MacCounter() as counter:
        module(torch.randn(2, 7, CHANNELS))
    rows = GATES[kind] * 16
    assert counter.macs == 2 * 7 * rows * (CHANNELS + 16 + 16 + 16)
    assert sum(shape.macs * count for shape, count in counter.layers.items()) == counter.macs
