"""The accuracies of many sizes of an encoder: those that differ in depth alone share one pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from trainer import NestedModel, SubModel
from trainer.data.dataset import Examples, by_length
from trainer.data.loading import batches_of

DEPTH = "num_hidden_layers"
BATCH = 64


@torch.no_grad()
def accuracies(nested: NestedModel, submodels: Iterable[SubModel], examples: Examples) -> dict[str, float]:
    """By the id of the size, in the order given; of texts whose targets are classes, by a BERT in eval mode."""
    wanted = list(submodels)
    right = {sub.id: 0 for sub in wanted}
    device = next(nested.full.parameters()).device
    together: dict[SubModel, list[SubModel]] = {}
    for sub in sorted(wanted, key=lambda sub: -int(sub.axes.get(DEPTH, 0))):  # type: ignore[arg-type]
        widths = {name: value for name, value in sub.axes.items() if name != DEPTH}
        deepest = next((one for one in together if all(one.axes[name] == value for name, value in widths.items())), sub)
        together.setdefault(deepest, []).append(sub)
    for deepest, subs in together.items():
        module: Any = nested.extract(deepest).to(device).eval()
        with nested.family.hidden_states(module) as states:
            for batch in batches_of(examples, BATCH, by_length(examples)):
                logits = nested.applied(module, {name: tensor.to(device) for name, tensor in batch.inputs.items()})["logits"]
                for sub in subs:
                    if sub != deepest:
                        state = states[int(sub.axes[DEPTH]) - 1]  # type: ignore[arg-type]
                        logits = module.classifier(module.bert.pooler(state))
                    right[sub.id] += int((logits.argmax(dim=1).cpu() == torch.as_tensor(batch.targets)).sum())
    return {name: round(count / len(examples), 6) for name, count in right.items()}
