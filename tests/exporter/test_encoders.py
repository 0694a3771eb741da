"""Encoders of Hugging Face as graphs: right for every number of texts and every length, whatever is padded.

Shapes: N texts, T tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from exporter import ExportError, export
from exporter.bundle import Bundle
from exporter.bundle.session import open_session, relative_error, run_session
from tests.helpers.encoders import LONGEST, Encoder, padded, texts
from tests.helpers.exports import calibrated
from trainer import Family, NestedModel, SubModel

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
