"""`text-folder:PATH`: one folder per class, one text file per document.

Shapes: N documents, T tokens. Input `input` (N, T) int64, token ids; targets (N,), the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data import augment
from trainer.data.dataset import INPUT, DataSet
from trainer.data.folders import class_files, has_class_files
from trainer.data.sources import Source, register_source
from trainer.data.splits import Array, description, samples_of
from trainer.data.tokens import MAX_TOKENS, TOKENIZER_FILE, VOCABULARY, TokenOptions, tokenize
from trainer.family import DataSpec
from trainer.submodel import TrainerError

MASKED_SHARE = 0.1


def _text_folder(
    name: str, path: str, *, max_tokens: int = MAX_TOKENS, vocabulary: int = VOCABULARY, lowercase: bool = True
) -> DataSet:
    """Options: those of `TokenOptions`."""
    options = TokenOptions(max_tokens, vocabulary, lowercase)
    files = class_files(Path(path), what="text", suffixes=())
    documents = [_read(path) for path in files.paths]
    of_folders = any(words.endswith("/") for words in files.split.values())
    record = {"split": dict(files.split)} if of_folders else {}  # runs of earlier versions have none
    return text_set(name, documents, files.labels, files.classes, files.parts, options, record)


def text_set(
    name: str,
    documents: Sequence[str],
    targets: Array,
    classes: Sequence[str],
    parts: Mapping[str, Array],
    options: TokenOptions,
    record: Mapping[str, Any],
    *,
    count: int | None = None,
) -> DataSet:
    """Documents with targets (N, …), in parts, as a data set. `count`: of the classes, where they have no names.

    `record`: what is to be remembered beside the usual.
    """
    tokens, vocabulary, tokenizer = tokenize(documents, parts["train"], options)
    split = {part: samples_of(tokens, targets, indices) for part, indices in parts.items()}
    files = {TOKENIZER_FILE: tokenizer}
    count = len(classes) if count is None else count
    return DataSet(
        name,
        DataSpec(tokens.shape[1:], count, vocabulary=vocabulary, target_shape=targets.shape[1:]),
        split["train"],
        split["validation"],
        split["test"],
        augment.mask_tokens(MASKED_SHARE),
        {**description(name, parts, split, files), "class_names": list(classes), **record},
        files,
        tuple(classes),
        {INPUT: options.preprocessing()},
    )


def _read(path: Path) -> str:
    """Bytes that are no UTF-8 become replacement characters: old collections have some."""
    content = path.read_bytes()
    if b"\0" in content:
        raise TrainerError(f"{str(path)!r}: is no text; allowed are text files in the folder of each class")
    return content.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        beginning = file.read(4096)
    return b"\0" not in beginning and path.suffix.lower() in ("", ".txt", ".text", ".md")


register_source(Source("text-folder", _text_folder, "PATH", lambda path: has_class_files(path, _is_text)))
