"""The tasks that we ship, a file for each kind of output; importing this package registers them."""

from trainer.task import register_task
from trainer.tasks.classification import Classification, MultiLabel
from trainer.tasks.dense import LanguageModelling, Segmentation, TokenClassification
from trainer.tasks.regression import Regression

for _task in (Classification, MultiLabel, Regression, Segmentation, TokenClassification, LanguageModelling):
    register_task(_task)

__all__ = ["Classification", "LanguageModelling", "MultiLabel", "Regression", "Segmentation", "TokenClassification"]
