"""An example's own task in parts of a batch (`micro_batches`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_parts_of_a_batch_weigh_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from detection import CELL, Detection
    from pasted import SIDE, pasted

    pictures, task = pasted(40)["test"], Detection()
    shapes = {"heatmap": 10, "size": 2, "offset": 2}
    outputs = {name: torch.randn(10, channels, SIDE // CELL, SIDE // CELL) for name, channels in shapes.items()}
    targets = {"boxes": pictures.boxes, "labels": pictures.labels.clone()}
    targets["labels"][:4, 1:] = -1

    def weighed(rows: slice) -> torch.Tensor:
        own = {name: tensor[rows] for name, tensor in targets.items()}
        loss: torch.Tensor = task.loss({name: output[rows] for name, output in outputs.items()}, own)
        return loss * task.mean_over(own)

    torch.testing.assert_close(weighed(slice(5)) + weighed(slice(5, 10)), weighed(slice(10)))
