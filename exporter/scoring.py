"""The score of a graph: the task's, on examples, with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.bundle.session import run_session
from trainer.data.dataset import Examples, as_inputs
from trainer.data.loading import batches_of
from trainer.evaluate import as_arrays
from trainer.submodel import TrainerError
from trainer.task import Score, Task

BATCH = 256


def score_of(session: ort.InferenceSession, task: Task, examples: Examples, names: Sequence[str]) -> Score:
    """What the task's scorer says of the session's answers. Raises TrainerError for a target that is none."""
    scorer = task.scorer()
    # Scores are computed in threads beside each other, and a process that is forked from one may find a lock held for good.
    for batch in batches_of(examples, BATCH, workers=0):
        outputs = run_session(session, as_feed(batch.inputs, names))
        try:
            task.check({name: torch.from_numpy(array) for name, array in outputs.items()}, batch.targets)
        except TrainerError as error:
            raise TrainerError(f"test data: {str(error).removeprefix('targets: ')}") from None
        scorer.add(outputs, as_arrays(batch.targets))
    return scorer.value()


def as_feed(inputs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Inputs as ONNX Runtime takes them."""
    return {name: tensor.cpu().numpy() for name, tensor in as_inputs(inputs, list(names)).items()}
