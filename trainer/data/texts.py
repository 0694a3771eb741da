"""`text-folder:PATH`: one folder per class, one text file per document.

Shapes: N examples, T tokens.
"""

from __future__ import annotations

from pathlib import Path

from trainer.data import augment, readers
from trainer.data.dataset import DataSet
from trainer.data.sources import Source, register_source
from trainer.data.splits import description, samples_of, split_by_class
from trainer.family import DataSpec


def _text_folder(name: str, path: str) -> DataSet:
    documents, labels, classes = readers.read_text_folder(Path(path))
    train, validation, test = split_by_class(labels)
    tokens, vocabulary, tokenizer = readers.tokenize(documents, train)
    spec = DataSpec(input_shape=tokens.shape[1:], classes=len(classes), vocabulary=vocabulary)
    parts = {"train": train, "validation": validation, "test": test}
    split = {part: samples_of(tokens, labels, indices) for part, indices in parts.items()}
    files = {"tokenizer.json": tokenizer}
    record = {**description(name, parts, split, files), "class_names": list(classes)}
    masking = augment.mask_tokens(0.1)
    return DataSet(name, spec, split["train"], split["validation"], split["test"], masking, record, files, tuple(classes))


register_source(Source("text-folder", _text_folder, "PATH", readers.has_texts))
