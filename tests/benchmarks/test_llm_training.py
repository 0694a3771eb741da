"""What a language model's training on a GPU is made of, tried on a tiny one: windows, scores, and files that are carried."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.llm import training_pack as packs
from benchmarks.llm import training_windows as streams
from benchmarks.llm.training_scores import ratios, scores
from tests.helpers.language import language_family, mixed
from trainer.data.dataset import Batch
from trainer.evaluate import scores_of
from trainer.importance import sort_by_importance
from trainer.tasks.checks import IGNORED


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    random = np.random.default_rng(0)
    for place, kind in enumerate(("code", "news")):
        parts = {part: random.integers(32 * place, 32 * place + 32, 400).astype(np.uint16) for part in ("train", "test")}
        np.savez(tmp_path / f"{kind}.npz", **parts)  # type: ignore[arg-type]
    answers = {part: np.arange(200) % 4 > 1 for part in ("train.answers", "test.answers")}
    np.savez(tmp_path / "chat.npz", train=np.full(200, 9, np.uint16), test=np.full(200, 9, np.uint16), **answers)
    monkeypatch.setattr(streams, "WORK", tmp_path)
    return tmp_path


def test_a_mixture_has_each_kind_its_share_and_of_chats_answers_alone(work: Path) -> None:
    shares = {"chat": 0.5, "code": 0.25, "news": 0.25, "gloss": 0.3}  # of the last there is nothing
    found = streams.mixture(400, 8, shares, 0)
    batch = found.batch(torch.arange(400))
    ids, targets = batch.inputs["input_ids"], batch.targets
    assert isinstance(targets, torch.Tensor)
    chats = (ids == 9).all(dim=1) & (targets[:, :] != IGNORED).any(dim=1)
    kinds = [int(chats.sum()), int(((ids < 32).all(dim=1) & ~chats).sum()), int((ids >= 32).all(dim=1).sum())]
    assert sum(kinds) == 400
    assert kinds == pytest.approx([200, 100, 100], abs=30)
    assert bool(((targets[chats] == IGNORED).sum(dim=1) == 4).all())
    assert torch.equal(targets[ids[:, 0] >= 32][:, :-1], ids[ids[:, 0] >= 32][:, 1:])
    again = streams.mixture(400, 8, shares, 0)
    assert torch.equal(again.begins, found.begins)
    assert not torch.equal(streams.mixture(400, 8, shares, 1).begins, found.begins)


def test_scores_are_those_of_the_product(work: Path) -> None:
    nested = mixed(language_family(tokens=8)).eval()
    held = streams.held_out("test", 8, 5)
    assert {kind: len(of) for kind, of in held.items()} == {"chat": 5, "code": 5, "news": 5}
    likeliest: dict[str, torch.Tensor] = {}
    found = scores(nested, nested.submodels, held, likeliest)
    for kind, of_kind in held.items():
        for sub, wanted in scores_of(nested, nested.submodels, of_kind).items():
            assert found[kind][sub.id]["perplexity"] == pytest.approx(wanted.metrics["perplexity"], rel=1e-4)
            assert found[kind][sub.id]["agreement"] == pytest.approx(wanted.metrics["agreement"], abs=1e-4)
    largest = nested.family.largest.id
    assert all(of[largest]["as_original"] == 1 for of in found.values())
    with torch.no_grad():
        nested.full.get_parameter("model.norm.weight").mul_(-1)
    other = scores(nested, [nested.family.largest], held, likeliest)
    assert all(of[largest]["as_original"] < 1 for of in other.values())
    assert ratios(other, found, largest)["mean"] == pytest.approx(
        math.exp(np.mean([math.log(other[k][largest]["perplexity"] / found[k][largest]["perplexity"]) for k in held])), rel=1e-4
    )


@pytest.mark.parametrize(("bits", "error"), [(8, 0.005), (6, 0.02)])
def test_trained_parameters_are_carried_in_pieces(
    bits: int, error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's units are put in the same order again; what is lost is half a step of a row's scale."""
    monkeypatch.setattr(packs, "PIECE", 20_000)
    family = language_family()
    trained = mixed(family).eval()
    original = {name: p.detach().clone() for name, p in trained.full.named_parameters()}
    sorting = sort_by_importance(trained, _Noise())
    begin = {name: p.detach().clone() for name, p in trained.full.named_parameters()}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.full.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    wanted = dict(trained.full.named_parameters())
    archive = packs.packed(wanted, begin, sorting.orders, {"result": {"steps": 3}}, bits)
    paths = packs.write_pieces(archive, tmp_path)
    assert len(paths) > 1
    assert max(path.stat().st_size for path in paths) <= 20_000
    again = mixed(family).eval()
    assert all(torch.equal(p, original[name]) for name, p in again.full.named_parameters())
    assert packs.put_back(again, packs.read_pieces(tmp_path))["result"] == {"steps": 3}
    for name, parameter in again.full.named_parameters():
        lost, changed = (parameter - wanted[name]).norm(), (wanted[name] - begin[name]).norm()
        assert lost <= (error * 3 if parameter.ndim > 1 else 1e-5) * changed
    paths[0].unlink()
    with pytest.raises(SystemExit, match=r"change\.00"):
        packs.read_pieces(tmp_path)


class _Noise:
    """Random windows of 9 tokens of 64."""

    def __len__(self) -> int:
        return 8

    def batch(self, indices: Any) -> Batch:
        ids = torch.randint(0, 64, (8, 10), generator=torch.Generator().manual_seed(0))[indices]
        return Batch({"input_ids": ids[:, :-1]}, ids[:, 1:])
