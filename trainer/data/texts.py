"""`text-folder:PATH`: one folder per class, one text file per document.

Shapes: N documents, T tokens. Input `input` (N, T) int64, token ids; targets (N,), the class. With a `tokenizer` the inputs are
`input_ids` and `attention_mask`, as long as the longest of a batch (`trainer.data.encoded`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.data import augment
from trainer.data.dataset import INPUT, DataSet
from trainer.data.encoded import Texts, cut_there, doubts, token_set
from trainer.data.folders import class_files, documents_of, has_class_files
from trainer.data.language import packed_set
from trainer.data.sources import Source, register_source
from trainer.data.splits import Array, description, samples_of
from trainer.data.tokens import TOKENIZER_FILE, VOCABULARY, TokenOptions, tokenize
from trainer.family import DataSpec
from trainer.submodel import TrainerError

MASKED_SHARE = 0.1


def _text_folder(
    name: str,
    path: str,
    *,
    max_tokens: int | None = None,
    vocabulary: int = VOCABULARY,
    lowercase: bool = True,
    tokenizer: str | None = None,
    next_token: bool = False,
) -> DataSet:
    """Options: those of `TokenOptions`. With `next_token` there are no classes: texts in any folders below."""
    options = TokenOptions(max_tokens, vocabulary, lowercase, tokenizer, next_token)
    if next_token:
        documents, parts, words, notes = documents_of(Path(path), _is_text)
        texts = Texts.of([_read(path) for path in documents], lambda i: f"text {str(documents[i])!r}")
        packed = packed_set(name, texts, parts, options, {"split": dict(words)})
        return replace(packed, notes=(*notes, *packed.notes))
    files = class_files(Path(path), what="text", suffixes=())
    contents = [_read(path) for path in files.paths]
    of_folders = any(words.endswith("/") for words in files.split.values())
    record = {"split": dict(files.split)} if of_folders else {}  # runs of earlier versions have none
    texts = Texts.of(contents, lambda i: f"text {str(files.paths[i])!r}")
    return text_set(name, texts, files.labels, files.classes, files.parts, options, record)


def text_set(
    name: str,
    texts: Texts,
    targets: Array | None,
    classes: Sequence[str],
    parts: Mapping[str, Array],
    options: TokenOptions,
    record: Mapping[str, Any],
    *,
    count: int | None = None,
) -> DataSet:
    """Documents with targets (N, …), in parts, as a data set. `count`: of the classes, where they have no names.

    `record`: what is to be remembered beside the usual. `targets` None: not known, which only ragged ids are made for.
    """
    if options.next_token:
        return packed_set(name, texts, parts, options, record)
    if options.tokenizer is not None or texts.seconds is not None or texts.tags is not None:
        return token_set(name, texts, targets, classes, parts, options, record, count=count)
    if targets is None:
        raise TrainerError(f"data {name!r}: no column of labels; allowed with tokenizer=…, for a task that needs none")
    tokens, longer, vocabulary, tokenizer = tokenize(texts.texts, parts["train"], options)
    split = {part: samples_of(tokens, targets, indices) for part, indices in parts.items()}
    files = {TOKENIZER_FILE: tokenizer}
    count = len(classes) if count is None else count
    cut = {part: int(longer[indices].sum()) for part, indices in parts.items()}
    own = {"class_names": list(classes), "max_tokens": options.length, "truncated": cut}
    notes = [*doubts(texts, "padding alone"), *cut_there(cut, len(texts.texts), options.length)]
    return DataSet(
        name,
        DataSpec(tokens.shape[1:], count, vocabulary=vocabulary, target_shape=targets.shape[1:]),
        split["train"],
        split["validation"],
        split["test"],
        augment.mask_tokens(MASKED_SHARE),
        {**description(name, parts, split, files), **own, **record},
        files,
        tuple(classes),
        {INPUT: options.preprocessing()},
        tuple(notes),
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


register_source(Source("text-folder", _text_folder, "PATH", lambda path: has_class_files(path, _is_text), paths=("tokenizer",)))
