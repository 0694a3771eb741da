"""`benchmarks/llm`: engines take turns, texts are compared with torch, and figures are what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gguf")

from benchmarks.llm import greedy, picture, rates, scores, sizes, switching, turns
from benchmarks.llm.measured import Measured, shares
from benchmarks.llm.peers import write_gguf as write_like
from benchmarks.llm.turns import Entrant, Seconds, Worker, times_as_fast
from benchmarks.llm.worker import answer, ids_of
from exporter.bundle.session import open_session, rms_error
from exporter.decoder.quality import HeldOut
from tests.helpers.generators import write_bundle
from tests.helpers.ggufs import write_gguf
from tests.helpers.language import language_family, language_tokenizer, mixed, sequences
from trainer import NestedModel
from trainer.gguf import gguf_tensors

CONFIG = {
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64, "intermediate_size": 64,
    "max_position_embeddings": 320,
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    family = language_family(**CONFIG)
    family.axes = {**family.axes, "intermediate_size": (32, 64), "hidden_size": (64,), "num_hidden_layers": (1, 3)}
    nested = mixed(family).eval()
    files = {"tokenizer.json": language_tokenizer().to_str().encode()}
    return Measured(nested, files, {}, shares(nested), tmp_path_factory.mktemp("llm"))


def test_engines_take_turns(given: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a process of its own: a token after each context, a prompt, and what it has in memory."""
    monkeypatch.setattr(turns, "PAUSE", 0)
    monkeypatch.setattr(turns, "TOKENS", 2)
    entrants = {"ours": rates.ours(given, "fp32"), "genai": rates.ours(given, "fp32", next(iter(given.sizes)))}
    taken = turns.compare(entrants, 1, (8, 40), 16, rounds=2)
    assert {what: len(rounds) for what, rounds in taken.items()} == {"8": 2, "40": 2, "prompt": 2}
    assert all(took.keys() == entrants.keys() and min(took.values()) > 0 for rounds in taken.values() for took in rounds)
    monkeypatch.setattr(rates, "PROMPT", 16)
    monkeypatch.setattr(rates, "CONTEXTS", (8, 40))
    found = rates.memory(entrants, "fp32")
    assert found["memory_ratio.fp32"] == pytest.approx(found["memory_mb.fp32"] / found["memory_mb.genai-fp32"])
    nothing = Entrant("ours", "/nowhere::x")
    with Worker(nothing, 1) as worker, pytest.raises(RuntimeError, match="ours of /nowhere::x ended"):
        worker.ask(do="memory")


def test_ratios_are_the_worst_of_contexts_and_threads() -> None:
    rounds: list[Seconds] = [{"ours": 0.01, "llamacpp": own, "blocks": 0.02} for own in (0.005, 0.012, 0.5)]
    assert times_as_fast(rounds, "ours", "llamacpp") == pytest.approx(1.2)
    found = rates.figures_of({"256": rounds, "prompt": rounds}, "llamacpp", "q8_0", "int8-rows", 2)
    assert found["llamacpp_ratio.q8_0.256.2"] == pytest.approx(1.2)
    assert found["llamacpp_ratio.q8_0_blocks.256.2"] == pytest.approx(0.6)
    assert found["prefill_ratio.llamacpp.q8_0.2"] == pytest.approx(1.2)
    assert found["ms.int8-rows.256.2"] == pytest.approx(10)
    assert found["ms.llamacpp-q8_0.prompt.2"] == pytest.approx(12)


def test_a_summary_has_the_worst_of_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fast = {1: {"256": 1.5, "1024": 1.4, "prompt": 0.95}, 2: {"256": 1.1, "1024": 1.6, "prompt": 0.9}}

    def compare(entrants: object, threads: int, *_: object, **__: object) -> dict[str, list[Seconds]]:
        return {what: [{"ours": 1.0, "genai": ratio}] for what, ratio in fast[threads].items()}

    monkeypatch.setattr(rates, "compare", compare)
    found = rates.against({"ours": Entrant("ours", "")}, "genai", "int4", "int4", 1, (256, 1024))
    assert found["genai_ratio.int4"] == pytest.approx(1.1)
    assert found["prefill_ratio.genai.int4"] == pytest.approx(0.9)
    summary = tmp_path / "summary.json"
    assert rates.with_prefill(found, summary)["prefill_ratio"] == pytest.approx(0.9)
    summary.write_text(json.dumps({"figures": {"prefill_ratio.llamacpp.q4_0": 0.8, "prefill_ratio.llamacpp.q4_0.1": 0.1}}))
    assert rates.with_prefill(found, summary)["prefill_ratio"] == pytest.approx(0.8)


def test_an_export_of_its_own_says_what_the_size_says(given: Measured, tmp_path: Path) -> None:
    from exporter.bundle.decoding import text_logits

    texts = np.arange(20).reshape(2, 10)
    for name in (next(iter(given.sizes)), given.full):
        graph = given.plain(name, tmp_path / name)
        own, its = (text_logits(open_session(path), texts) for path in (graph, given.bundle("fp32").graph_path(name)))
        assert rms_error({"logits": own}, {"logits": its}) < 1e-6
    smallest = tmp_path / next(iter(given.sizes)) / "weights.bin"
    assert smallest.stat().st_size < (tmp_path / given.full / "weights.bin").stat().st_size
    found = sizes.bytes_of(given, ("fp32",))
    assert found["bundle_ratio"] == found["bundle_ratio.fp32"] > 1


def test_speeds_are_over_sizes(given: Measured) -> None:
    def rounds(ratio: float, ms: float) -> list[Seconds]:
        return [{"ours": ms / 1e3, "alone": ratio * ms / 1e3}]

    taken = {
        "small": {"256.1": rounds(0.98, 5), "256.2": rounds(1.01, 3)},
        "middle": {"256.1": rounds(1.0, 9), "256.2": rounds(1.05, 7)},
        "full": {"256.1": rounds(1.01, 30), "256.2": rounds(1.2, 1)},
    }
    found = sizes.speeds(taken, "256")
    expected = {"speed_ratio": 1.05, "speed_ratio_min": 0.98, "speed_ratio_max": 1.2, "cost_span": 6, "cost_ms_max": 30}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_what_sizes_span_in_a_precision(given: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "measured", lambda: given)
    monkeypatch.setattr(
        sizes, "compare", lambda entrants, threads, *rest: {"8": [{name: (threads, 3.0)[name == "full"] for name in entrants}]}
    )
    assert sizes.span(1, (8,), ("fp32",)) == {"cost_span.fp32": 1.5}  # the worst, of two threads


def test_greedy_text_is_compared_with_torch_at_every_place(given: Measured) -> None:
    prompts = [[5, 9, 11], [3, 40, 7, 8]]
    for name in given.sizes:
        found = greedy.at_size(given, name, prompts, 12)
        assert len(found) == (4 if name == given.full else 2)
        assert greedy.figures(found)["greedy_equal"] == 1
    own = given.nested.submodels[-1]
    text = list(range(20, 32))
    assert not greedy.compared(given, own, prompts[0], text).equal
    assert greedy.compared(given, own, prompts[0], text).worst > greedy.TIE


def test_when_a_limit_is_kept_again() -> None:
    assert switching.recovery([9, 9, 2, 2, 9, 2, 2, 2, 9, 2, 2], 3, window=4) == 2
    assert switching.recovery([1, 1, 1, 1], 3, window=4) == 0
    assert switching.recovery([9] * 6, 3, window=4) == 6
    quiet, loaded = [1.0] * switching.STEP, [9.0, 9.0, *([1.0] * 18)]
    ours = [switching.Told([*quiet, *loaded], [3, switching.STEP + 2])]
    fixed = [switching.Told([*quiet, *([9.0] * 20)], [])]
    found = switching.figures(ours, fixed, 2.0)
    assert found["switch_recover_tokens"] == 2
    assert found["switch_tokens"] == switching.STEP + 20
    assert found["switch_unloaded"] == 1
    assert (found["switch_kept"], found["switch_kept.without"]) == (pytest.approx(0.9), 0)


def test_a_conversation_that_goes_on_and_a_step_of_load(given: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "measured", lambda: given)
    monkeypatch.setattr(switching, "VOCABULARY", 64)
    monkeypatch.setattr(switching, "BESIDE", 0)
    found = switching.reuse(chat=40, following=8, again=1)
    assert found["prompt_reuse_ratio"] == max(found["prompt_reuse_ratio.fp32"], found["prompt_reuse_ratio.int4"]) > 0
    found = switching.step(texts=1, tokens=switching.STEP + switching.WINDOW + 2, repeats=1)
    assert found["switch_tokens"] == switching.STEP + switching.WINDOW + 2


def test_a_file_of_gguf_holds_these_weights(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "like.gguf")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    write_like(tmp_path / "other.gguf", tmp_path / "like.gguf", dict(model.named_parameters()))
    found = gguf_tensors(tmp_path / "other.gguf")
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter), name
    tensors = {name: tensor for name, tensor in model.named_parameters() if "down_proj" not in name}
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_down\.weight, which these weights lack"):
        write_like(tmp_path / "lacking.gguf", tmp_path / "like.gguf", tensors)


def test_perplexity_is_the_same_whoever_asks(given: Measured, tmp_path: Path) -> None:
    texts = HeldOut(sequences(), given.nested.family.task, 0)
    arrays = {}
    for number, (ids, targets) in enumerate(texts.texts):
        arrays |= {f"ids{number}": ids[0], f"targets{number}": targets[0]}
    np.savez(tmp_path / "texts.npz", **arrays)  # type: ignore[arg-type]
    expected = texts.score(open_session(given.bundle("fp32").graph_path(given.full))).metrics["perplexity"]
    assert scores.of_torch(given.nested.full, texts) == pytest.approx(expected, rel=1e-4)

    class Peer:
        vocabulary = 64

        @torch.inference_mode()
        def logits(self, ids: list[int]) -> torch.Tensor:
            found: torch.Tensor = given.nested.full(input_ids=torch.tensor([ids])).logits[0]
            return found

    found = answer(Peer(), {"do": "score", "texts": str(tmp_path / "texts.npz")}, 0)  # type: ignore[arg-type]
    assert found["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert ids_of(3, 64) == ids_of(3, 64)
    assert max(ids_of(300, 200)) < 200


def test_without_measured_qualities_more_parameters_are_better(given: Measured) -> None:
    found = shares(NestedModel(given.nested.family))
    assert max(found.values(), key=lambda score: score.quality) is found[given.nested.family.largest]
    assert found[given.nested.family.largest].quality == 1


def test_a_picture_of_a_text_that_is_watched(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "talker")
    picture.draw(picture.record(bundle.path, "Why?", tokens=8, beside=0), tmp_path / "watch.svg")
    drawn = (tmp_path / "watch.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    for said in ("generate&#160;bundle&#160;--chat&#160;--watch", "size", "slow-down", "limit&#160;"):
        assert said in drawn
