"""Where examples come from: `Batch` and `DataSet`, the registry of `--data` sources, and a file for each kind of source."""

from trainer.data import (  # noqa: F401  each registers its sources
    arrays,
    audio,
    hugging_face,
    images,
    known,
    modules,
    tables,
    texts,
)
from trainer.data.augment import Augmentation
from trainer.data.dataset import Batch, DataSet, Examples, Samples, as_examples
from trainer.data.loading import batches_of
from trainer.data.sources import Source, load_data, register_source, registered_sources
from trainer.data.token_examples import TokenExamples

__all__ = [
    "Augmentation",
    "Batch",
    "DataSet",
    "Examples",
    "Samples",
    "Source",
    "TokenExamples",
    "as_examples",
    "batches_of",
    "load_data",
    "register_source",
    "registered_sources",
]
