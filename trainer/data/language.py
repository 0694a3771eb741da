"""Texts for a language model: documents packed into windows of one length, or conversations with the loss on answers alone.

Shapes: N examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.chat import Message, Template, Written, as_messages, plain
from trainer.data.dataset import DataSet
from trainer.data.encoded import CHUNK, Texts, doubts, whole
from trainer.data.pretrained import TEMPLATE_FILE, Marks, Pretrained, read_pretrained
from trainer.data.splits import Array, description
from trainer.data.token_examples import IDS, Packed, TokenExamples
from trainer.data.tokens import LEARN, PADDING, TOKENIZER_FILE, TokenOptions, learnt_pieces
from trainer.family import DataSpec
from trainer.submodel import TrainerError
from trainer.tasks.checks import IGNORED


def packed_set(
    name: str, texts: Texts, parts: Mapping[str, Array], options: TokenOptions, record: Mapping[str, Any]
) -> DataSet:
    """Documents of each part one behind the other, an end of text after each, cut into windows of `max_tokens`.

    A document is of one part alone. Raises TrainerError for a tokenizer that cannot be used, and more tokens than the model has
    positions.
    """
    if texts.seconds is not None or texts.tags is not None:
        raise TrainerError(f"data {name!r}: pairs and tags are nothing that follows; allowed are texts")
    read = _pretrained([texts.texts[int(i)] for i in parts["train"]], options)
    length = _length(read, options)
    end = read.marks.eos_ids[:1]
    split = {
        part: Packed(_joined(read, [texts.texts[int(i)] for i in indices], end), length, read.pad_id)
        for part, indices in parts.items()
    }
    counts = {part: int(examples.lengths.sum()) for part, examples in split.items()}
    notes = doubts(texts, "an end of text alone")
    if not end:
        notes.append("The tokenizer names no end of a text: documents follow each other without one.")
    return _data_set(name, read, length, parts, split, {**record, "tokens": counts}, notes)


def instruction_set(
    name: str,
    conversations: Sequence[Sequence[Message]],
    place: Callable[[int], str],
    parts: Mapping[str, Array],
    options: TokenOptions,
    record: Mapping[str, Any],
) -> DataSet:
    """Conversations as the checkpoint's chat template writes them; targets are the tokens of answers, others `IGNORED`.

    Without a template a prompt is followed by its answer and an end of text. A conversation is cut at `max_tokens`; one without
    an answer before that is left out, and said. Raises TrainerError as `packed_set`, and where the template gives no answer.
    """
    read = _pretrained([whole(said["content"]) for i in parts["train"] for said in conversations[int(i)]], options)
    length = _length(read, options)
    template = _template(read)
    rows, targets, lost = [], [], 0
    for number, messages in enumerate(conversations):
        written = _written(template, messages, lambda n=number: place(n))  # type: ignore[misc]
        lost += written.lost
        ids, wanted = _marked(read, written, templated=template is not None)
        rows.append(ids[:-1][:length])
        targets.append(wanted[1:][:length])
    answers = np.array([any(label != IGNORED for label in wanted) for wanted in targets], dtype=bool)
    kept = {part: indices[answers[indices]] for part, indices in parts.items()}
    split = {
        part: TokenExamples([rows[int(i)] for i in of], tags=[targets[int(i)] for i in of], pad_id=read.pad_id, mask=False)
        for part, of in kept.items()
    }
    notes: tuple[str, ...] = ()
    if left_out := len(answers) - int(answers.sum()):
        notes = (f"{left_out} of {len(answers)} conversations have no answer within max_tokens = {length} and are left out.",)
    if lost:
        notes += (f"{lost} answers are not learnt: the chat template writes them otherwise once they are not the last.",)
    return _data_set(name, read, length, kept, split, record, notes)


def _pretrained(train: Sequence[str], options: TokenOptions) -> Pretrained:
    if options.tokenizer not in (None, LEARN):
        return read_pretrained(str(options.tokenizer))
    tokenizer = learnt_pieces(train, options)
    return Pretrained(tokenizer, f"tokenizer = {LEARN!r}", PADDING, tokenizer.get_vocab_size(), marks=Marks(None, (PADDING,)))


def _length(read: Pretrained, options: TokenOptions) -> int:
    length = read.usual if options.max_tokens is None else options.max_tokens
    if read.positions and length > read.positions:
        raise TrainerError(
            f"max_tokens = {length}: the checkpoint has {read.positions} positions; allowed are 1 to {read.positions}"
        )
    return length


def _joined(read: Pretrained, documents: Sequence[str], end: Sequence[int]) -> Tensor:
    """All their ids (M,) int32."""
    found: list[Array] = []
    for begin in range(0, len(documents), CHUNK):
        for encoding in read.tokenizer.encode_batch(list(documents[begin : begin + CHUNK])):
            ids = encoding.ids
            found.append(np.asarray(ids if not end or ids[-1:] == list(end) else [*ids, *end], dtype=np.int32))
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int32), *found]))


def _template(read: Pretrained) -> Template | None:
    if not read.marks.template:
        return None
    said = {"bos_token": read.marks.bos_id, "eos_token": next(iter(read.marks.eos_ids), None), "pad_token": read.pad_id}
    marks = {name: read.tokenizer.id_to_token(number) or "" for name, number in said.items() if number is not None}
    return Template(read.marks.template, marks)


def _written(template: Template | None, messages: Sequence[Message], place: Callable[[], str]) -> Written:
    clean = [{"role": message["role"], "content": whole(message["content"])} for message in messages]
    if template is not None:
        return template.written(clean, place)
    if clean != as_messages(clean[0]["content"], clean[-1]["content"]):
        raise TrainerError(
            f"{place()}: {len(clean)} messages, and the checkpoint has no chat template; allowed are a prompt and an answer"
        )
    return plain(clean[0]["content"], clean[1]["content"])


def _marked(read: Pretrained, written: Written, *, templated: bool) -> tuple[list[int], list[int]]:
    """Ids, and those of them that are of an answer, others `IGNORED`."""
    encoding = read.tokenizer.encode(written.text, add_special_tokens=not templated)
    ids = list(encoding.ids)
    answers = [
        token if end > begin and any(first <= begin < last for first, last in written.answers) else IGNORED
        for token, (begin, end) in zip(ids, encoding.offsets, strict=True)
    ]
    if not templated and (end := read.marks.eos_ids[:1]):
        if ids[-1:] != list(end):  # the tokenizer has not written it itself
            ids.extend(end)
            answers.extend(end)
        answers[-1] = end[0]
    return ids, answers


def _data_set(
    name: str,
    read: Pretrained,
    length: int,
    parts: Mapping[str, Array],
    split: Mapping[str, Any],
    record: Mapping[str, Any],
    notes: Sequence[str],
) -> DataSet:
    read.tokenizer.no_truncation()
    read.tokenizer.no_padding()
    files = {TOKENIZER_FILE: read.tokenizer.to_str().encode()}
    if read.marks.template:
        files[TEMPLATE_FILE] = read.marks.template.encode()
    about = {
        "kind": "text",
        "tokenizer": TOKENIZER_FILE,
        "max_tokens": read.positions or length,
        "padding": "longest",
        "pad_id": read.pad_id,
        "bos_id": read.marks.bos_id,
        "eos_ids": list(read.marks.eos_ids),
        "chat_template": TEMPLATE_FILE if read.marks.template else None,
    }
    spec = DataSpec((length,), 0, vocabulary=read.vocabulary, inputs={IDS: (length,)}, target_shape=(length,), next_token=True)
    own = {"max_tokens": length, "class_names": []}
    return DataSet(
        name,
        spec,
        split["train"],
        split["validation"],
        split["test"],
        None,
        {**description(name, parts, split, files), **record, **own},
        files,
        (),
        {IDS: about},
        tuple(notes),
    )
