"""Produces the nested model: one set of parameters whose prefixes are all the smaller models (torch)."""

import trainer.families  # noqa: F401  registers the families that we ship
from trainer.calibration import calibrate
from trainer.data import Batch, Samples
from trainer.family import DataSpec, Family, register_family, registered_families
from trainer.nested import NestedModel
from trainer.options import FitOptions
from trainer.submodel import SubModel, TrainerError
from trainer.task import Score, Scorer, Task, register_task, registered_tasks
from trainer.training import fit
from trainer.updates import RULES

__all__ = [
    "RULES",
    "Batch",
    "DataSpec",
    "Family",
    "FitOptions",
    "NestedModel",
    "Samples",
    "Score",
    "Scorer",
    "SubModel",
    "Task",
    "TrainerError",
    "calibrate",
    "fit",
    "register_family",
    "register_task",
    "registered_families",
    "registered_tasks",
]
