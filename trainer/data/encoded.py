"""Texts, pairs of texts and words with tags, as the ids of a checkpoint's own tokenizer.

Shapes: N examples, T tokens of the longest of a batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from trainer.data.dataset import DataSet
from trainer.data.pretrained import Pretrained, read_pretrained
from trainer.data.splits import Array, description
from trainer.data.token_examples import IDS, MASK, TYPES, TokenExamples
from trainer.data.tokens import LEARN, PADDING, TOKENIZER_FILE, TokenOptions, learnt_tokenizer
from trainer.family import DataSpec
from trainer.submodel import TrainerError
from trainer.tasks.checks import IGNORED

CHUNK = 1000  # texts that are encoded together: the library's own objects are large
SHOWN = 8  # names of classes that a note lists


@dataclass(frozen=True)
class Texts:
    """What is read: texts, each with a second one where they are pairs, or words with a tag each."""

    texts: Sequence[str]  # of words: joined by spaces, as a device gets them
    place: Callable[[int], str]  # for errors: where one of them is from
    seconds: Sequence[str] | None = None
    words: Sequence[Sequence[str]] | None = None
    tags: Sequence[Sequence[int]] | None = None  # places among the classes, or IGNORED

    @classmethod
    def of(cls, texts: Sequence[str], place: Callable[[int], str], seconds: Sequence[str] | None = None) -> Texts:
        return cls([whole(text) for text in texts], place, None if seconds is None else [whole(text) for text in seconds])

    @classmethod
    def of_words(cls, words: Sequence[Sequence[str]], tags: Sequence[Sequence[int]], place: Callable[[int], str]) -> Texts:
        clean = [[whole(word) for word in row] for row in words]
        return cls([" ".join(row) for row in clean], place, None, clean, tags)


def whole(text: str) -> str:
    """With a replacement character for each half of a surrogate pair that has lost its other one, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def token_set(
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
    """Texts in parts as a data set of ragged token ids. `targets` (N, …): None where the texts have tags, or nothing is known
    of them, which is a target of no numbers. `count`: of the classes, where they have no names.

    Classes that the checkpoint has too, in another order, get its order. Raises TrainerError for a tokenizer that cannot be
    used, more tokens than the model has positions, and a text without a token.
    """
    read = _pretrained(texts, parts["train"], options)
    length = _length(read, options, texts.seconds is not None)
    classes, order, notes = _as_in_the_checkpoint(classes, read.labels)
    tags = texts.tags
    if order is not None:
        targets = None if targets is None else order[targets]
        tags = None if tags is None else [[t if t == IGNORED else int(order[t]) for t in row] for row in tags]
    if targets is None and tags is None:
        targets = np.zeros((len(texts.texts), 0), dtype=np.int64)
        notes.append("The texts have no labels: that is for tasks that need none, such as embedding.")
    tokenizer = _for_a_device(read, length)
    encoded = _encoded(read, replace(texts, tags=tags))
    notes += doubts(texts, "what the tokenizer adds")
    types = TYPES if texts.seconds is not None and read.tells_types() else None
    split = {part: _examples(encoded, targets, indices, types is not None, read.pad_id) for part, indices in parts.items()}
    cut = {part: int(encoded.cut[indices].sum()) for part, indices in parts.items()}
    notes += cut_there(cut, len(texts.texts), length)
    files = {TOKENIZER_FILE: tokenizer}
    about = {
        "kind": "text",
        "tokenizer": TOKENIZER_FILE,
        "max_tokens": length,
        "mask": MASK,
        "types": types,
        "padding": "longest",
        "pad_id": read.pad_id,
        "pair": texts.seconds is not None,
    }
    spec = DataSpec(
        (length,),
        len(classes) if count is None else count,
        vocabulary=read.vocabulary,
        inputs=dict.fromkeys([IDS, MASK, *([types] if types else [])], (length,)),
        target_shape=(length,) if targets is None else targets.shape[1:],
    )
    own = {"class_names": list(classes), "max_tokens": length, "truncated": cut}
    return DataSet(
        name,
        spec,
        split["train"],
        split["validation"],
        split["test"],
        None,
        {**description(name, parts, split, files), **record, **own},
        files,
        tuple(classes),
        {IDS: about},
        tuple(notes),
    )


@dataclass(frozen=True)
class _Encoded:
    ids: list[list[int]]
    types: list[list[int]]
    tags: list[list[int]] | None
    cut: Array  # (N,) bool: whether the text was longer


def _pretrained(texts: Texts, train: Array, options: TokenOptions) -> Pretrained:
    if options.tokenizer is None:
        raise TrainerError(
            "tokenizer: pairs of texts and words with tags need one; allowed are a checkpoint's folder, a file "
            f"{TOKENIZER_FILE}, {LEARN}"
        )
    if options.tokenizer != LEARN:
        return read_pretrained(options.tokenizer)
    both = [documents[int(i)] for documents in (texts.texts, texts.seconds or ()) if documents for i in train]
    tokenizer = learnt_tokenizer(both, options)
    return Pretrained(tokenizer, f"tokenizer = {LEARN!r}", PADDING, tokenizer.get_vocab_size())


def _length(read: Pretrained, options: TokenOptions, pair: bool) -> int:
    """How many tokens are kept."""
    length = read.usual if options.max_tokens is None else options.max_tokens
    if read.positions and length > read.positions:
        raise TrainerError(
            f"max_tokens = {length}: the checkpoint has {read.positions} positions; allowed are 1 to {read.positions}"
        )
    marks = read.tokenizer.num_special_tokens_to_add(pair)
    if length <= marks:
        raise TrainerError(f"max_tokens = {length}: the tokenizer adds {marks} to every text; allowed are {marks + 1} and more")
    return length


def _as_in_the_checkpoint(classes: Sequence[str], known: Sequence[str]) -> tuple[tuple[str, ...], Array | None, list[str]]:
    """The classes in the checkpoint's order where they are the same, the new place of each, and what the user should know."""
    same = tuple(classes)
    if not classes or not known or same == tuple(known):
        return same, None, []
    if len(known) == len(set(known)) and set(known) == set(same):
        order = np.array([known.index(label) for label in same], dtype=np.int64)
        return tuple(known), order, [f"The classes are in the order of the checkpoint's id2label: {_listed(known)}."]
    note = f"The classes are {_listed(same)}; the checkpoint's id2label has {_listed(known)}: "
    if len(known) == len(same):
        return same, None, [f"{note}its head begins with what it has learnt of those, in this order."]
    return same, None, [f"{note}its head is begun anew."]


def cut_there(cut: Mapping[str, int], count: int, length: int) -> list[str]:
    """How many of the texts are longer than that, by part."""
    each = ", ".join(f"{part} {number}" for part, number in cut.items())
    total = sum(cut.values())
    return [f"{total} of {count} texts are longer than max_tokens = {length} and are cut there ({each})."] if total else []


def doubts(texts: Texts, instead: str) -> list[str]:
    """What was read, and is hardly what was meant. `instead`: what the network sees of an empty text."""
    seconds = texts.seconds or [""] * len(texts.texts)
    broken = [one for pair in zip(texts.texts, seconds, strict=True) if "\ufffd" in (one := " ".join(pair))]
    found = {
        f"are empty: the network sees of them {instead}": sum(not text.strip() for text in texts.texts),
        f"hold U+FFFD, which stands for bytes that are no UTF-8{_around(broken)}": len(broken),
    }
    return [f"{count} of {len(texts.texts)} texts {what}." for what, count in found.items() if count]


def _around(broken: Sequence[str]) -> str:
    """Where the first of these is broken, so that it can be found."""
    if not broken:
        return ""
    place = broken[0].index("\ufffd")
    return f", such as {broken[0][max(0, place - 20) : place + 20].strip()!r}"


def _for_a_device(read: Pretrained, length: int) -> bytes:
    """The tokenizer, from here on cutting at `length`, as it is written for a device: that one also pads."""
    read.tokenizer.enable_truncation(length)
    pad = read.tokenizer.id_to_token(read.pad_id) or "[PAD]"
    read.tokenizer.enable_padding(pad_id=read.pad_id, pad_token=pad)
    written: str = read.tokenizer.to_str()
    read.tokenizer.no_padding()
    return written.encode()


def _encoded(read: Pretrained, texts: Texts) -> _Encoded:
    ids: list[list[int]] = []
    types: list[list[int]] = []
    tags: list[list[int]] | None = None if texts.tags is None else []
    cut = np.zeros(len(texts.texts), dtype=bool)
    for begin in range(0, len(texts.texts), CHUNK):
        given: Any = texts.texts[begin : begin + CHUNK]
        if texts.seconds is not None:
            given = list(zip(given, texts.seconds[begin : begin + CHUNK], strict=True))
        for place, encoding in enumerate(read.tokenizer.encode_batch(list(given)), begin):
            if not encoding.ids:
                raise TrainerError(f"{texts.place(place)}: the tokenizer gives no token for it; allowed are texts with one")
            ids.append(encoding.ids)
            types.append(encoding.type_ids)
            cut[place] = bool(encoding.overflowing)
            if tags is not None and texts.words is not None and texts.tags is not None:
                tags.append(_tags_of_pieces(encoding.offsets, texts.words[place], texts.tags[place]))
    return _Encoded(ids, types, tags, cut)


def _tags_of_pieces(offsets: Sequence[tuple[int, int]], words: Sequence[str], tags: Sequence[int]) -> list[int]:
    """For each piece of the joined words the tag of the word that it is the first of, else IGNORED.

    By where it ends in the text: the pieces are those that a device gets for the same text, and a space that a piece begins
    with belongs to none.
    """
    begins = [0]
    for word in words:
        begins.append(begins[-1] + len(word) + 1)
    found: list[int] = []
    last = -1
    for begin, end in offsets:
        number = bisect_right(begins, end - 1) - 1
        inside = end > begin and number < len(words) and end - 1 < begins[number] + len(words[number])
        found.append(tags[number] if inside and number != last else IGNORED)
        last = number if inside else last
    return found


def _examples(encoded: _Encoded, targets: Array | None, indices: Array, types: bool, pad_id: int) -> TokenExamples:
    def chosen(rows: list[list[int]]) -> list[list[int]]:
        return [rows[int(i)] for i in indices]

    return TokenExamples(
        chosen(encoded.ids),
        None if targets is None else torch.from_numpy(targets[indices]),
        types=chosen(encoded.types) if types else None,
        tags=chosen(encoded.tags) if encoded.tags is not None else None,
        pad_id=pad_id,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
