"""The tasks that we ship, a file for each kind of output; importing this package registers them."""

from trainer.task import register_task
from trainer.tasks.classification import Classification, MultiLabel
from trainer.tasks.dense import Segmentation
from trainer.tasks.language import LanguageModelling
from trainer.tasks.regression import Regression
from trainer.tasks.tokens import Embedding, QuestionAnswering, TokenClassification

__all__ = [
    "Classification",
    "Embedding",
    "LanguageModelling",
    "MultiLabel",
    "QuestionAnswering",
    "Regression",
    "Segmentation",
    "TokenClassification",
]

for _task in (
    Classification,
    MultiLabel,
    Regression,
    Segmentation,
    TokenClassification,
    LanguageModelling,
    QuestionAnswering,
    Embedding,
):
    register_task(_task)
