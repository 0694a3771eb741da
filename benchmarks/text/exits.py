"""Early exits: a linear head after each layer of a trained encoder, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import NestedModel
from trainer.data import DataSet
from trainer.data.dataset import Examples, by_length
from trainer.data.loading import batches_of

DECAYS = (1e-4, 1e-3, 1e-2)  # of a head's weights; the best one on the validation split
BATCH = 64


def exit_accuracies(nested: NestedModel, data: DataSet, seed: int) -> list[float]:
    """On the test split, the first layer first. A head sees the first token and the mean of all."""
    parts = [_states(nested, part) for part in (data.train, data.validation, data.test)]
    (train, wanted), validation, test = parts
    found = []
    for layer, inputs in enumerate(train):
        heads = [_head(inputs, wanted, data.spec.classes, decay, seed) for decay in DECAYS]
        best = max(heads, key=lambda head: _accuracy(head, validation[0][layer], validation[1]))
        found.append(round(_accuracy(best, test[0][layer], test[1]), 6))
    return found


def _head(inputs: Tensor, targets: Tensor, classes: int, decay: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    head = nn.Linear(inputs.shape[1], classes).to(inputs.device)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(inputs), targets) + decay * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return head


@torch.no_grad()
def _accuracy(head: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    return float((head(inputs).argmax(dim=1) == targets).double().mean())


@torch.no_grad()
def _states(nested: NestedModel, examples: Examples) -> tuple[Sequence[Tensor], Tensor]:
    """What each layer gives, (N, 2·D): of the first token, and the mean of all that the mask has; and the targets."""
    device = next(nested.full.parameters()).device
    module = nested.extract(nested.family.largest).to(device).eval()
    gathered: list[list[Tensor]] = []
    targets: list[Any] = []
    with nested.family.hidden_states(module) as states:
        for batch in batches_of(examples, BATCH, by_length(examples)):
            inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
            nested.applied(module, inputs)
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            means = [(state * mask).sum(dim=1) / mask.sum(dim=1) for state in states]
            gathered.append([torch.cat([state[:, 0], mean], dim=1) for state, mean in zip(states, means, strict=True)])
            targets.append(torch.as_tensor(batch.targets, device=device))
    return [torch.cat(parts) for parts in zip(*gathered, strict=True)], torch.cat(targets)
