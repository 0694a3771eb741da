"""In which order a run's units are: a teacher of the same family is put in the same one, so that both can be compared unit by
unit between their layers, and a resumed run must know it still."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.checkpoint import load_tensors, save_tensors
from trainer.folder import ORDER_FILE
from trainer.importance import reorder
from trainer.nested import NestedModel
from trainer.submodel import TrainerError
from trainer.symmetry import find_symmetry

Orders = Mapping[str, NDArray[np.int64]]
"""Of each group of units by name: which of them came to each place."""


def in_order(teacher: NestedModel, pupil: NestedModel, orders: Orders) -> NestedModel:
    """A teacher of the pupil's family with its units in the pupil's order: what it has between its layers can be compared.

    Raises TrainerError for one of another network.
    """
    wanted = {name: p.shape for name, p in pupil.full.named_parameters()}
    given = {name: p.shape for name, p in teacher.full.named_parameters()}
    other = next((name for name in {**wanted, **given} if wanted.get(name) != given.get(name)), None)
    if other is not None:
        here, there = (str(tuple(shapes[other])) if other in shapes else "none" for shapes in (wanted, given))
        raise TrainerError(
            f"teacher_hidden: the teacher is of another network: parameter {other!r} is {there}, in the one to train {here}; "
            "allowed is a teacher of the same family and full size, or 0"
        )
    alike = NestedModel(pupil.family)  # whose grid cuts the same groups of units
    alike.full.load_state_dict(teacher.full.state_dict())
    if (statistics := teacher.calibration.get(teacher.family.largest)) is not None:
        alike.calibration[alike.family.largest] = statistics
    if orders:
        reorder(alike, find_symmetry(alike), orders)
    return alike.eval()


def save_orders(folder: Path, orders: Orders) -> None:
    """Into a run's folder: its checkpoints are in this order."""
    save_tensors({name: torch.from_numpy(order) for name, order in orders.items()}, folder / ORDER_FILE)


def read_orders(folder: Path) -> Orders:
    """Those of a run that is resumed. Raises TrainerError where they are missing."""
    return {name: order.numpy() for name, order in load_tensors(folder / ORDER_FILE)[0].items()}
