"""What the original answers: text of its own to be trained on, many prompts at once.

Shapes: N prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.llm.data import CHAT, WORK

TEMPERATURE, TOP_P = 0.8, 0.95
CHECKED = 16  # steps between two looks at whether all have ended

Answer = tuple[list[int], list[int]]
"""Prompt and answer, with its end of text where it came to one."""


def prompts(part: str) -> list[list[int]]:
    with np.load(WORK / "prompts.npz") as file:
        ids, lengths = file[f"{part}.ids"].astype(int), file[f"{part}.lengths"]
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]


@torch.inference_mode()
def answers(
    module: nn.Module, given: Sequence[list[int]], greedy: Tensor, most: int, eos: int, seed: int, ends_at: float
) -> list[Answer]:
    """`greedy` (N,) bool: which take the likeliest token, not a drawn one. `ends_at`: by `time.monotonic`, after which what
    there is is returned."""
    from transformers import DynamicCache

    device = next(module.parameters()).device
    draw = torch.Generator(device).manual_seed(seed)
    width = max(map(len, given))
    ids = torch.full((len(given), width), eos)
    mask = torch.zeros(len(given), width + most, dtype=torch.int64)
    for row, prompt in enumerate(given):  # padded on the left
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask, greedy = ids.to(device), mask.to(device), greedy.to(device)
    positions = (mask[:, :width].cumsum(1) - 1).clamp_min(0)
    cache, ended = DynamicCache(), torch.zeros(len(given), dtype=torch.bool, device=device)
    made: list[Tensor] = []
    now = ids
    for step in range(most):
        logits = module(
            input_ids=now, attention_mask=mask[:, : width + step], position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1].float()  # fmt: skip
        token = torch.where(greedy, logits.argmax(1), _drawn(logits, draw)).masked_fill(ended, eos)
        made.append(token.masked_fill(ended, -1))
        ended |= token == eos
        now, positions = token[:, None], positions[:, -1:] + 1
        if step % CHECKED == CHECKED - 1 and (time.monotonic() > ends_at or bool(ended.all())):
            break
    rows = torch.stack(made, dim=1).cpu().tolist()
    return [(prompt, [token for token in row if token >= 0]) for prompt, row in zip(given, rows, strict=True)]


def _drawn(logits: Tensor, draw: torch.Generator) -> Tensor:
    """By temperature, of the likeliest tokens that together have a probability of top-p."""
    shares, tokens = torch.softmax(logits / TEMPERATURE, dim=1).topk(min(512, logits.shape[1]), dim=1)
    shares = shares.masked_fill(shares.cumsum(1) - shares > TOP_P, 0)
    return tokens.gather(1, torch.multinomial(shares, 1, generator=draw))[:, 0]


def generate(
    module: nn.Module, eos: int, seconds: float, batch: int, most: int, seed: int = 0, limit: int = 0
) -> dict[str, Any]:
    """Answers the held-out prompts, greedily, then as many for training as there is time for; writes `chat.npz` after every
    batch. `limit`: prompts of each part at most, 0: all."""
    begun = time.monotonic()
    ends_at = begun + seconds
    arrays: dict[str, NDArray[Any]] = {}
    about: dict[str, Any] = {}
    held = {part: prompts(part)[: limit or None] for part in ("validation", "test")}
    both = [*held["validation"], *held["test"]]
    found = answers(module, both, torch.ones(len(both), dtype=torch.bool), most, eos, seed, ends_at)
    count = len(held["validation"])
    for part, rows in (("validation", found[:count]), ("test", found[count:])):
        arrays |= _arrays(part, rows)
        about[part] = {"prompts": len(rows), "answer_tokens": sum(len(answer) for _, answer in rows)}
    _write(arrays)
    print(f"held-out answers: {time.monotonic() - begun:.1f} s, {about}", flush=True)
    given = sorted(prompts("train")[: limit or None], key=len)
    parts = [given[i : i + batch] for i in range(0, len(given), batch)]
    order = np.random.default_rng(seed).permutation(len(parts)).tolist()
    done: list[Answer] = []
    took = 0.0
    for number, place in enumerate(order):
        left = ends_at - time.monotonic()
        if left < min(5.0, 0.25 * took) or left <= 0:
            break
        at = time.monotonic()
        greedy = torch.arange(len(parts[place])) % 2 == 0
        done += answers(module, parts[place], greedy, most, eos, seed + 1 + number, ends_at)
        took = time.monotonic() - at
        _write({**arrays, **_arrays("train", done)})
        print(f"batch {number + 1} of {len(order)}: {took:.1f} s, {sum(len(a) for _, a in done)} tokens of answers", flush=True)
    about["train"] = {"prompts": len(done), "answer_tokens": sum(len(answer) for _, answer in done)}
    if not done:
        _write({**arrays, **_arrays("train", found[:0])})
    return {**about, "seconds": round(time.monotonic() - begun, 1), "temperature": TEMPERATURE, "top_p": TOP_P, "batch": batch}


def _arrays(part: str, rows: Sequence[Answer]) -> dict[str, NDArray[Any]]:
    """One behind the other: ids, and which are of answers. In an order of their own: like lengths lie together else."""
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    ids = [np.asarray([*prompt, *answer], dtype=np.uint16) for prompt, answer in mixed]
    marks = [np.r_[np.zeros(len(prompt), dtype=bool), np.ones(len(answer), dtype=bool)] for prompt, answer in mixed]
    return {
        part: np.concatenate([np.zeros(0, dtype=np.uint16), *ids]),
        f"{part}.answers": np.concatenate([np.zeros(0, dtype=bool), *marks]),
    }


def _write(arrays: dict[str, NDArray[Any]]) -> None:
    partial = WORK / f"{CHAT}.partial.npz"
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(WORK / f"{CHAT}.npz")
