"""Perplexity of every size by kind of text, and how often it thinks the same token likeliest as the full model does: what an
exit at that depth would have accepted as a drafter. Computed where the model is; only sums leave the device.

Shapes: N windows, T tokens, K depths, M positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.llm.training_windows import Windows
from trainer import NestedModel, SubModel
from trainer.tasks.checks import IGNORED

Scores = dict[str, dict[str, dict[str, float]]]
"""Kind → id of a size → perplexity and agreement, rounded."""

NUMBERS = 2**31  # logits that are computed together on a GPU: 8 GiB in single precision


@torch.no_grad()
def scores(
    nested: NestedModel,
    submodels: Sequence[SubModel],
    windows: Mapping[str, Windows],
    likeliest: dict[str, Tensor] | None = None,
) -> Scores:
    """`likeliest`: by kind what the original thinks, (M,); the full model is compared with it too, as `original`. Of a kind
    that it does not have yet, what the largest of these thinks is put in."""
    device = next(nested.full.parameters()).device
    was, found = nested.training, {}
    nested.eval()
    for kind, of_kind in windows.items():
        numbers = NUMBERS if device.type == "cuda" else NUMBERS // 32
        while kind not in found:
            try:
                found[kind] = _of_kind(nested, submodels, of_kind, device, kind, likeliest, numbers)
            except torch.OutOfMemoryError:  # others compute there too
                if numbers < NUMBERS // 64:
                    raise
                numbers //= 4
                torch.cuda.empty_cache()
    nested.train(was)
    return found


def _of_kind(
    nested: NestedModel,
    submodels: Sequence[SubModel],
    windows: Windows,
    device: torch.device,
    kind: str,
    likeliest: dict[str, Tensor] | None,
    numbers: int,
) -> dict[str, dict[str, float]]:
    family, largest = nested.family, nested.family.largest
    order = sorted(submodels, key=lambda sub: sub != largest)
    groups = family.passes(order)
    losses = {sub: torch.zeros((), dtype=torch.float64, device=device) for sub in order}
    alike = {sub: torch.zeros((), dtype=torch.int64, device=device) for sub in order}
    as_original = torch.zeros((), dtype=torch.int64, device=device)
    most = max(map(len, groups)) * windows.length * family.outputs_per_token
    size = max(1, numbers // most)
    count, told = 0, []
    for begin in range(0, len(windows), size):
        batch = windows.batch(torch.arange(begin, min(begin + size, len(windows))))
        ids, targets = batch.inputs["input_ids"].to(device), batch.targets.to(device)  # type: ignore[union-attr]
        counts = targets != IGNORED
        wanted = targets[counts]
        full: Tensor | None = None
        for group in groups:
            module = nested.skeleton(group[0])
            with family.at_positions(module, counts), family.leaving_at(module, group):
                logits = nested.outputs({"input_ids": ids}, group[0])["logits"]
            for sub, own in zip(group, logits.chunk(len(group)), strict=True):
                own = own[0].float()  # (M, V)
                chosen = own.gather(1, wanted[:, None])[:, 0]
                losses[sub] += (torch.logsumexp(own, dim=1) - chosen).double().sum()
                best = own.argmax(dim=1)
                if full is None:
                    full = best
                    told.append(best)
                    if likeliest is not None and kind in likeliest:
                        as_original += (best == likeliest[kind][count : count + len(best)]).sum()
                alike[sub] += (best == full).sum()
            del logits
        count += len(wanted)
    if likeliest is not None and kind not in likeliest:
        likeliest[kind] = torch.cat(told)
        as_original.fill_(count)
    found = {}
    for sub in order:
        loss = float(losses[sub]) / max(1, count)
        found[sub.id] = {
            "perplexity": round(math.exp(min(loss, 80)), 4),
            "agreement": round(int(alike[sub]) / max(1, count), 5),
        }
    if largest in losses and likeliest is not None:
        found[largest.id]["as_original"] = round(int(as_original) / max(1, count), 5)
    return found


def mean_loss(found: Scores, sub: str) -> float:
    """Of a size, over kinds."""
    return sum(math.log(of[sub]["perplexity"]) for of in found.values()) / len(found)


def ratios(found: Scores, before: Scores, sub: str) -> dict[str, float]:
    """The perplexity of a size in one by that in the other, for each kind, and the geometric mean."""
    each = {kind: round(of[sub]["perplexity"] / before[kind][sub]["perplexity"], 5) for kind, of in found.items()}
    return {**each, "mean": round(math.exp(mean_loss(found, sub) - mean_loss(before, sub)), 5)}


def about_device(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__}
