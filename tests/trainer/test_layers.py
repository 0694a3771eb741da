"""What training changes is a parameter, or a BatchNorm's statistics: other state is found before the first step."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from trainer import Family, NestedModel, Samples, SubModel, TrainerError, fit


class _Centred(nn.Module):
    """Takes the running mean of what it saw away, or only counts how often it was trained."""

    mean: Tensor

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind, self.inp, self.norm, self.fc = kind, nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 4)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.kind == "in place":
            self.mean += 0.1 * (x.mean() - self.mean)
        elif self.training:
            self.mean = self.mean + 1
        result: Tensor = self.fc(self.norm(self.inp(x if self.kind == "a counter" else x - self.mean)))
        return result


class _Family(Family):
    axes: ClassVar[dict[str, tuple[int, ...]]] = {"width": (4, 8)}

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def build(self, sub: SubModel) -> nn.Module:
        return _Centred(int(sub["width"]), self.kind)  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"x": torch.rand(batch_size, 5)}


def trained(kind: str) -> Any:
    data = Samples(torch.rand(16, 5), torch.arange(16) % 4)
    return fit(NestedModel(_Family(kind)), data, epochs=1, batch_size=8, show_progress=False)


@pytest.mark.parametrize("kind", ["in place", "another tensor"])
def test_state_that_answers_depend_on_is_refused(kind: str) -> None:
    with pytest.raises(TrainerError, match=r"_Family: a step of training changes buffer 'mean', .* allowed are parameters and"):
        trained(kind)


def test_a_buffer_that_no_answer_depends_on_is_none_of_our_business() -> None:
    assert trained("a counter").steps == 2
