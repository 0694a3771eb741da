"""How a token is drawn, against transformers' own processors of logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exporter.bundle import BundleError
from selector.run.decode import GenerationOptions, Sampler
from selector.run.inputs import InputError

SIZE = 300


def logits(seed: int = 0) -> Any:
    return (3 * np.random.default_rng(seed).standard_normal(SIZE)).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 20},
        {"temperature": 1.0, "top_k": SIZE + 5},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 2.0, "top_p": 0.99},  # more than the few that are sorted first
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.8, "repetition_penalty": 1.3},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
)
def test_what_may_be_drawn_is_what_transformers_keeps(options: dict[str, Any]) -> None:
    import torch
    from transformers import generation as g

    seen = [5, 7, 11, int(logits().argmax())]
    made = {
        "repetition_penalty": g.RepetitionPenaltyLogitsProcessor,
        "temperature": g.TemperatureLogitsWarper,
        "top_k": g.TopKLogitsWarper,
        "top_p": g.TopPLogitsWarper,
        "min_p": g.MinPLogitsWarper,
    }
    scores = torch.tensor(logits())[None].double()
    for name, processor in made.items():
        if name in options:
            scores = processor(options[name])(torch.tensor([seen]), scores)
    expected = scores.softmax(-1)[0].numpy()
    kept, probabilities = Sampler(GenerationOptions(**options), seen).distribution(logits())
    found = np.zeros(SIZE)
    found[kept] = probabilities
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_drawn_as_often_as_probable() -> None:
    options = GenerationOptions(temperature=1.0, top_k=3, seed=1)
    sampler = Sampler(options)
    kept, probabilities = sampler.distribution(logits())
    drawn = [sampler(logits())[0] for _ in range(2000)]
    shares = [drawn.count(token) / len(drawn) for token in kept]
    np.testing.assert_allclose(shares, probabilities, atol=0.05)


def test_a_seed_gives_the_same_tokens_again_and_another_one_others() -> None:
    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=1.0, seed=seed))
        return [sampler(logits(i))[0] for i in range(20)]

    assert drawn(4) == drawn(4)
    assert drawn(-4) == drawn(-4)
    assert len({tuple(drawn(seed)) for seed in (4, 5, -4, None)}) == 4


def test_a_penalty_counts_what_was_drawn_and_what_the_prompt_had() -> None:
    flat = np.zeros(4, np.float32)
    flat[:] = [4.0, 3.9, 3.8, 3.7]
    sampler = Sampler(GenerationOptions(repetition_penalty=2.0), seen=[1])
    assert [sampler(flat)[0] for _ in range(3)] == [0, 2, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_told(temperature: float, wrong: float) -> None:
    bad = np.full(8, wrong, np.float32)
    with pytest.raises(BundleError, match="logits: the largest is"):
        Sampler(GenerationOptions(temperature=temperature))(bad)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True), ("temperature", float("nan")), ("temperature", -1.0),
        ("temperature", float("inf")), ("temperature", "warm"), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
        ("top_p", float("nan")), ("min_p", -0.1), ("repetition_penalty", 0.0), ("repetition_penalty", float("nan")),
        ("seed", 2**64), ("seed", 1.0), ("stop", ("",)), ("stop", (3,)), ("stop", ["a"] * 65), ("ignore_eos", 1),
    ],
)  # fmt: skip
def test_an_option_that_is_none_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{field} = .*: allowed are "):
        GenerationOptions(**{field: value})
