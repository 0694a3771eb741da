"""Produces the nested model: one set of parameters whose prefixes are all the smaller models (torch)."""

import trainer.families  # noqa: F401  registers the families that we ship
from trainer.calibration import calibrate
from trainer.data import Samples
from trainer.family import DataSpec, Family, register_family
from trainer.fit import FitOptions, fit
from trainer.nested import NestedModel
from trainer.submodel import SubModel, TrainerError

__all__ = [
    "DataSpec",
    "Family",
    "FitOptions",
    "NestedModel",
    "Samples",
    "SubModel",
    "TrainerError",
    "calibrate",
    "fit",
    "register_family",
]
