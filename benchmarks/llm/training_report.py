"""What the training on a GPU gave, in figures and as a picture of acceptance by depth and tokens seen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.llm.training_scores import Scores, mean_loss
from benchmarks.summary import add_to_summary

COMMAND = "benchmarks/llm/gpu.sh; python -m benchmarks.llm.training report"
NOTES = {
    "full_ppl_ratio": "test perplexity of the full size over the original's, geometric mean of chat, code, news, glosses, of "
    "the parameters as they were carried (6-bit differences)",
    "full_ppl_ratio_worst": "the worst of the four kinds",
    "ppl_ratio_separate_mean": "test perplexity in the nested run over that of the same size trained alone with as many "
    "updates, geometric mean of six sizes and four kinds",
    "ppl_ratio_separate_max": "the worst of the six sizes",
    "ppl_ratio_untrained_mean": "over that of the same sizes cut from the sorted original, geometric mean of 27 sizes",
    "training_tokens": "that the nested run saw; of a data-centre card's three minutes, and far too few for the small sizes",
}
KINDS = {"chat": "its own chats", "code": "code", "news": "news", "gloss": "glosses"}


def report(results: Path) -> dict[str, float]:
    """Adds the figures to the summary and draws `acceptance.png`."""
    read = (json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in ("nested", "packed", "alone"))
    nested, packed, alone = read
    test, untrained, largest = packed["test"], nested["untrained"]["test"], _largest(nested)
    smaller = [sub for sub in nested["grid"] if sub != largest]
    by_size = {sub: _ratio(test, found["test"], sub) for sub, found in alone["sizes"].items()}
    figures = {
        "full_ppl_ratio": packed["full_ppl_ratio"]["mean"],
        "full_ppl_ratio_worst": max(packed["full_ppl_ratio"][kind] for kind in KINDS),
        "ppl_ratio_separate_mean": math.exp(sum(map(math.log, by_size.values())) / len(by_size)),
        "ppl_ratio_separate_max": max(by_size.values()),
        "ppl_ratio_untrained_mean": math.exp(sum(mean_loss(test, s) - mean_loss(untrained, s) for s in smaller) / len(smaller)),
        "training_tokens": nested["tokens"],
        **{f"acceptance.layer_{_depth(sub)}": _acceptance(nested["curve"][-1]["exits"], sub) for sub in _exits(nested)},
    }
    add_to_summary(results, COMMAND, figures, NOTES)
    plot(nested, results / "acceptance.png")
    return figures


def plot(nested: Mapping[str, Any], path: Path) -> None:
    """For each kind of text a panel: how often an exit's likeliest token is the full model's, by tokens of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(KINDS), figsize=(13, 3.8), layout="constrained", sharey=True)
    tokens = [point["tokens"] / 1e6 for point in nested["curve"]]
    exits = _exits(nested)
    for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for place, sub in enumerate(exits):
            shown = [100 * point["exits"][kind][sub]["agreement"] for point in nested["curve"]]
            axis.plot(
                tokens,
                shown,
                "o-",
                ms=3,
                lw=1.2,
                color=plt.get_cmap("viridis")(place / len(exits)),
                label=f"{_depth(sub)} layers",
            )
        axis.set(title=title, xlabel="million tokens of training")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("same token as the full model (%)")
    axes[0].set_ylim(0, 100)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(exits))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ratio(test: Scores, alone: Mapping[str, float], sub: str) -> float:
    return math.exp(mean_loss(test, sub) - sum(map(math.log, alone.values())) / len(alone))


def _exits(nested: Mapping[str, Any]) -> list[str]:
    found = nested["curve"][-1]["exits"]["chat"]
    return sorted((sub for sub in found if sub != _largest(nested)), key=_depth)


def _acceptance(exits: Scores, sub: str) -> float:
    return exits["chat"][sub]["agreement"]


def _largest(nested: Mapping[str, Any]) -> str:
    grid: Sequence[str] = nested["grid"]
    return max(grid, key=lambda sub: [int(part[1:]) for part in sub.split("-")])


def _depth(sub: str) -> int:
    return int(sub.partition("-")[0][1:])
