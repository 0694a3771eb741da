"""Encoders of Hugging Face as graphs: right for every number of texts and every length, whatever is padded.

Shapes: N texts, T tokens.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from exporter import ExportError, export
from exporter.bundle import Bundle
from exporter.bundle.session import open_session, relative_error, run_session
from tests.helpers.encoders import LONGEST, Encoder, padded, texts
from tests.helpers.exports import calibrated
from trainer import Family, NestedModel, Samples, SubModel

KINDS = ("bert", "roberta", "distilbert")
SIZES = ((1, 1), (8, 2), (2, 3), (3, 16), (7, 31), (4, 64), (5, 65), (1, 128), (6, 200), (2, LONGEST))


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[NestedModel, Bundle]:
    nested = calibrated(Encoder(request.param))
    return nested, export(nested, tmp_path_factory.mktemp(request.param) / "bundle", show_progress=False)


def answers(bundle: Bundle, sub: SubModel, text: dict[str, Tensor]) -> dict[str, np.ndarray]:
    session = open_session(bundle.graph_path(sub.id))
    return run_session(session, {name: tensor.numpy() for name, tensor in text.items()})


def test_every_sub_model_equals_torch_over_batches_and_lengths(exported: tuple[NestedModel, Bundle]) -> None:
    nested, bundle = exported
    for sub in nested.submodels:
        session, module = open_session(bundle.graph_path(sub.id)), nested.extract(sub)
        for count, length in SIZES:
            text = texts(count, length, seed=length)
            with torch.no_grad():
                wanted = {"logits": module(**text).logits.numpy()}
            got = run_session(session, {name: tensor.numpy() for name, tensor in text.items()})
            assert relative_error(got, wanted) < 1e-4, (sub.id, count, length)


def test_padding_changes_no_answer(exported: tuple[NestedModel, Bundle]) -> None:
    nested, bundle = exported
    for sub in (nested.family.smallest, nested.family.largest):
        for length in (1, 5, 40):
            alone = texts(1, length, seed=length)
            others = texts(3, 50)
            together = {name: torch.cat([padded(alone, 50)[name], others[name]]) for name in alone}
            apart = answers(bundle, sub, alone)["logits"]
            assert np.abs(answers(bundle, sub, together)["logits"][:1] - apart).max() < 1e-5 * np.abs(apart).max()


def test_one_topology_for_each_depth(exported: tuple[NestedModel, Bundle]) -> None:
    _, bundle = exported
    by_depth = {(entry.axes["layers"], entry.topology) for entry in bundle.submodels.values()}
    assert len(by_depth) == 2


def test_attention_is_written_without_a_search_for_what_is_no_number_and_its_mask_once(
    exported: tuple[NestedModel, Bundle],
) -> None:
    nested, bundle = exported
    graph = onnx.load(bundle.graph_path(nested.family.largest.id), load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["Softmax"] == 2
    assert not operators["IsNaN"]
    masks = [node for node in graph.node if node.op_type == "Add" and node.output[0] in inputs_of(graph, "Softmax")]
    assert len({node.input[1] for node in masks}) == 1
    assert {node.domain for node in graph.node} == {""}  # plain ONNX: no execution provider need know operators of others


def inputs_of(graph: onnx.GraphProto, operator: str) -> set[str]:
    return {name for node in graph.node if node.op_type == operator for name in node.input}


class Causal(nn.Module):
    """Attention to what is no padding and not behind: with padding in front a query may have no key at all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(50, width), nn.Linear(width, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # (N, T) each
        hidden = self.embedding(ids)[:, None]
        places = torch.arange(ids.shape[1])
        allowed = (places[:, None] >= places) & mask[:, None, None].bool()
        result: Tensor = self.fc(nn.functional.scaled_dot_product_attention(hidden, hidden, hidden, allowed)[:, 0].sum(1))
        return result


class Decoder(Family):
    axes = {"width": (8, 16)}  # noqa: RUF012
    dynamic_axes = {name: {0: "batch", 1: "sequence"} for name in ("ids", "mask")}  # noqa: RUF012

    def build(self, sub: SubModel) -> nn.Module:
        return Causal(int(sub["width"]))  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        text = texts(batch_size, 8)
        return {"ids": text["input_ids"] % 50, "mask": text["attention_mask"]}


def test_queries_without_a_key_are_empty_as_in_torch(tmp_path: Path) -> None:
    nested = calibrated(Decoder())
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    text = nested.family.example_inputs(4)
    mask = text["mask"].clone()
    mask[0, :3], mask[1] = 0, 0
    for sub in nested.submodels:
        with torch.no_grad():
            wanted = {"logits": nested.extract(sub)(text["ids"], mask).numpy()}
        assert relative_error(answers(bundle, sub, {"ids": text["ids"], "mask": mask}), wanted) < 1e-5


def test_each_size_is_what_an_export_of_its_own_is(exported: tuple[NestedModel, Bundle], tmp_path: Path) -> None:
    """The same operators when it is loaded, and the same answers to the bit."""
    nested, bundle = exported
    for sub in (nested.family.smallest, nested.family.largest):
        family = Alone(nested.family, sub)
        own = NestedModel(family).eval()
        own.full.load_state_dict(nested.extract(sub).state_dict())
        plain = export(own, tmp_path / sub.id, show_progress=False)
        text = texts(3, 30)
        ours, theirs = answers(bundle, sub, text), answers(plain, sub, text)
        np.testing.assert_array_equal(ours["logits"], theirs["logits"])
        assert loaded(bundle, sub, tmp_path) == loaded(plain, sub, tmp_path)


def test_in_int8_products_with_a_weight_are_of_integers_and_those_of_attention_of_floats(tmp_path: Path) -> None:
    nested = calibrated(Encoder("bert"))
    data = Samples(texts(16, 12), torch.zeros(16, dtype=torch.int64))
    largest = nested.family.largest
    bundle = export(nested, tmp_path / "bundle", int8_calibration=data, submodels=[largest], show_progress=False)
    graph = onnx.load(bundle.graph_path(f"{largest.id}-int8"), load_external_data=False).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    integers = [{made_by.get(name) for name in node.input[:2]} == {"DequantizeLinear"} for node in products]
    assert (integers.count(True), integers.count(False)) == (2 * 6 + 2, 2 * 2)


class Alone(Family):
    """One size of a family as a family."""

    def __init__(self, family: Family, sub: SubModel) -> None:
        self.family, self.axes, self.dynamic_axes = family, {n: (v,) for n, v in sub.axes.items()}, family.dynamic_axes

    def build(self, sub: SubModel) -> nn.Module:
        return self.family.build(sub)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return self.family.example_inputs(batch_size)


def loaded(bundle: Bundle, sub: SubModel, folder: Path) -> Counter[str]:
    """The operators of the graph that ONNX Runtime makes of it."""
    target = folder / "optimized.onnx"
    open_session(bundle.graph_path(sub.id), save_optimized=target)
    return Counter(node.op_type for node in onnx.load(target, load_external_data=False).graph.node)


class Forgets(nn.Module):
    """Reads its mask only where that says no of something, as code that spares itself work does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(50, width), nn.Linear(width, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # (N, T) each
        hidden = self.embedding(ids)
        if not mask.all():
            hidden = hidden * mask[..., None]
        result: Tensor = self.fc(hidden.sum(1) / mask.sum(1, keepdim=True))
        return result


class Forgetful(Family):
    axes = {"width": (8, 16)}  # noqa: RUF012

    def build(self, sub: SubModel) -> nn.Module:
        return Forgets(int(sub["width"]))  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        ids = torch.arange(6 * batch_size).reshape(batch_size, 6) % 50
        return {"ids": ids, "mask": torch.ones_like(ids)}


def test_a_mask_that_the_graph_does_not_read_is_noticed_where_all_examples_are_of_one_length(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"sub-model w8: on inputs with other masks .*boolean"):
        export(calibrated(Forgetful()), tmp_path / "bundle", show_progress=False)
