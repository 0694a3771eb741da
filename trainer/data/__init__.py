"""Where examples come from: `Batch` and `DataSet`, the registry of `--data` sources, and a file for each kind of source."""

from trainer.data import arrays, audio, hugging_face, images, known, modules, texts  # noqa: F401  each registers its sources
from trainer.data.augment import Augmentation
from trainer.data.dataset import Batch, DataSet, Examples, Samples, as_examples
from trainer.data.loading import batches_of
from trainer.data.sources import Source, load_data, register_source, registered_sources

__all__ = [
    "Augmentation",
    "Batch",
    "DataSet",
    "Examples",
    "Samples",
    "Source",
    "as_examples",
    "batches_of",
    "load_data",
    "register_source",
    "registered_sources",
]
