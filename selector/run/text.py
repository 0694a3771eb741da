"""Texts as inputs on a device: the tokenizer of the bundle makes token ids of them, and they are run in batches of like length.

Shapes: N texts, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from exporter.bundle import Bundle, BundleError
from exporter.bundle.preprocessing import TextPreprocessing
from selector.run.inputs import InputError, refuse_decoder
from selector.ship.standing import place_of

if TYPE_CHECKING:  # the library comes with the extra `text`
    from tokenizers import Encoding, Tokenizer

Array = NDArray[Any]
Texts = str | Sequence[str] | Sequence[tuple[str, str]]
"""One text, several, or several pairs."""
TOKENS = "token-classification"
"""The kind of task that has an answer for every word."""
QUESTIONS = "question-answering"
"""The kind of task whose answer is a part of the text: of the second one of a pair."""
PADDED = 1.25
"""How many times its tokens a batch may be computed as, padding included, before it is cut in two."""
MOST_TOKENS = 8192
"""Of one batch, padding included: what its layers hold grows with them, and a processor is busy with far fewer."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_text(name: str, text: str) -> None:
    """Raises InputError for a text that UTF-8 cannot write, which a tokenizer refuses. `name`: of what it was given as."""
    if wrong := _SURROGATE.search(text):
        raise InputError(
            f"{name}: character {wrong.start()} is {wrong[0]!a}, half of a surrogate pair or a byte that is no UTF-8; "
            "allowed is text that UTF-8 can write"
        )


class Word(NamedTuple):
    """One word of a text, or one piece of a word."""

    text: str
    start: int  # where it stands in its text, in characters
    end: int
    token: int  # its first piece


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids, not yet padded."""

    name: str  # the input that takes the ids
    spec: TextPreprocessing
    dtypes: Mapping[str, str]  # of the inputs by name
    ids: tuple[Sequence[int], ...]  # of each text
    types: tuple[Sequence[int], ...]  # of each text: 1 at the tokens of a second one
    truncated: int  # texts that were longer than `max_tokens` and lost their ends
    words: tuple[tuple[Word, ...], ...] = ()  # of each text, where the task has an answer for every word
    pieces: tuple[tuple[Word, ...], ...] = ()  # of each text that an answer is a part of
    answering: tuple[str, ...] = ()  # those texts

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each text, those included that the tokenizer adds."""
        return tuple(map(len, self.ids))

    @property
    def feed(self) -> dict[str, Array]:
        """All texts as inputs by name, each (N, T)."""
        return self.rows(range(len(self)))

    def rows(self, chosen: Sequence[int]) -> dict[str, Array]:
        """These texts as inputs by name, each (N, T), padded to the longest of them or as the bundle says."""
        longest = self.spec.max_tokens if self.spec.padding == "max" else max(len(self.ids[i]) for i in chosen)
        feed = {self.name: np.full((len(chosen), longest), self.spec.pad_id, self.dtypes[self.name])}
        more = [name for name in (self.spec.mask, self.spec.types) if name is not None]
        feed |= {name: np.zeros((len(chosen), longest), self.dtypes[name]) for name in more}
        for row, i in enumerate(chosen):
            length = len(self.ids[i])
            feed[self.name][row, :length] = self.ids[i]
            if self.spec.mask is not None:
                feed[self.spec.mask][row, :length] = 1
            if self.spec.types is not None:
                feed[self.spec.types][row, :length] = self.types[i]
        return feed

    def batches(self) -> list[list[int]]:
        """Which texts are best computed together, the shortest first."""
        if self.spec.padding == "longest":
            return of_like_length(self.lengths)
        most = max(1, MOST_TOKENS // self.spec.max_tokens)
        return [list(range(first, min(first + most, len(self)))) for first in range(0, len(self), most)]


def of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """All indices in batches, the shortest first: one ends where the next text would make it compute more than PADDED times
    its tokens, or more than MOST_TOKENS."""
    batches: list[list[int]] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        computed = (len(batches[-1]) + 1) * lengths[i] if batches else 0
        if batches and computed <= min(PADDED * (tokens + lengths[i]), MOST_TOKENS):
            batches[-1].append(i)
            tokens += lengths[i]
        else:
            batches.append([i])
            tokens = lengths[i]
    return batches


class TextReader:
    """The tokenizer of a bundle, and what the bundle says of it; for any number of threads.

    Raises InputError where the bundle does not say how a text becomes its inputs, BundleError for a tokenizer that cannot be
    read, ModuleNotFoundError where the library `tokenizers` is not installed (the extra `text`).
    """

    def __init__(self, bundle: Bundle) -> None:
        self.name, self.spec = _described(bundle)
        self._dtypes = {spec.name: spec.dtype for spec in bundle.manifest.inputs}
        self._task = bundle.manifest.task.kind
        self._tokenizer = _tokenizer(bundle, self.spec)

    def encode(self, texts: Texts) -> Encoded:
        """The texts as token ids; a pair is a tuple of two. Raises InputError naming the text that cannot be one."""
        given: list[Any] = [texts] if isinstance(texts, str) else list(texts)
        if not given:
            raise InputError("text: none given; allowed is one or more")
        parts = [self._parts(place, one) for place, one in enumerate(given)]
        plain: list[Any] = [first if second is None else (first, second) for first, second in parts]
        encodings = self._tokenizer.encode_batch(plain)  # unlike `encode` it lets other threads run meanwhile
        for place, encoding in enumerate(encodings):
            if not encoding.ids:
                raise InputError(f"text[{place}]: gives no tokens; allowed is a text that is not empty")
        words: tuple[tuple[Word, ...], ...] = ()
        pieces: tuple[tuple[Word, ...], ...] = ()
        answering: tuple[str, ...] = ()
        if self._task == TOKENS:
            words = tuple(_words(first, encoding) for (first, _), encoding in zip(parts, encodings, strict=True))
        elif self._task == QUESTIONS:
            answering = tuple(first if second is None else second for first, second in parts)
            pieces = tuple(_pieces(text, one, int(self.spec.pair)) for text, one in zip(answering, encodings, strict=True))
        ids, types = (tuple(getattr(one, name) for one in encodings) for name in ("ids", "type_ids"))
        truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        return Encoded(self.name, self.spec, self._dtypes, ids, types, truncated, words, pieces, answering)

    def _parts(self, place: int, given: Any) -> tuple[str, str | None]:
        """A text and None, or the two of a pair, of which each can be encoded."""
        two = isinstance(given, tuple | list)
        if two != self.spec.pair and (two or isinstance(given, str)):
            wanted = "pairs of texts, each a tuple of two" if self.spec.pair else "single texts, and no pairs"
            raise InputError(f"text[{place}]: {'a pair' if two else 'one text'}; this bundle takes {wanted}")
        parts = tuple(given) if two else (given,)
        if two and len(parts) != 2:
            raise InputError(f"text[{place}]: {len(parts)} texts; allowed are two, a pair")
        for name, part in zip(("text", "text_pair"), parts, strict=False):
            if not isinstance(part, str):
                raise InputError(f"{name}[{place}]: is {type(part).__name__}; allowed is a text (str)")
            check_text(f"{name}[{place}]", part)
        return parts[0], parts[1] if two else None


def joined(
    encoded: Encoded, ran: Iterable[tuple[Sequence[int], Mapping[str, Array]]], tokens: Mapping[str, bool]
) -> dict[str, Array]:
    """The outputs of all batches, each given with the texts that it was of, in the order of the texts.

    `tokens`: by output, whether its second axis is of tokens; such a one is as long as the longest text needs, and 0 behind the
    end of each.
    """
    parts = list(ran)
    outputs = {}
    for name, first in parts[0][1].items():
        if not tokens[name]:
            outputs[name] = np.empty((len(encoded), *first.shape[1:]), first.dtype)
            for rows, found in parts:
                outputs[name][rows] = found[name]
            continue
        longest = max(found[name].shape[1] for _, found in parts)
        outputs[name] = np.zeros((len(encoded), longest, *first.shape[2:]), first.dtype)
        for rows, found in parts:
            for row, values in zip(rows, found[name], strict=True):
                length = len(encoded.ids[row])
                outputs[name][row, :length] = values[:length]
    return outputs


def of_tokens(bundle: Bundle) -> dict[str, bool]:
    """By output of a bundle that takes texts, whether its second axis is that of the tokens: where texts have one length, the
    task says whether an axis of that length is."""
    axis = bundle.manifest.inputs[0].shape[1]
    known = isinstance(axis, str) or bundle.manifest.task.kind in (TOKENS, QUESTIONS)
    return {spec.name: known and len(spec.shape) > 1 and spec.shape[1] == axis for spec in bundle.manifest.outputs}


def _described(bundle: Bundle) -> tuple[str, TextPreprocessing]:
    """The input that takes token ids, and how a text becomes them. Raises InputError."""
    refuse_decoder(bundle)
    described = {name: values for name, values in bundle.manifest.preprocessing.items() if values.get("kind") == "text"}
    inputs = [spec.name for spec in bundle.manifest.inputs]
    if len(described) != 1:
        what = "input" if len(inputs) == 1 else "inputs"
        raise InputError(f"text: this bundle does not say how one becomes its {what} {', '.join(map(repr, inputs))}")
    ((name, values),) = described.items()
    try:
        spec = TextPreprocessing.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"input {name!r}: the bundle's preprocessing is not known here: {place}: {first['msg']}") from None
    made = [one for one in (name, spec.mask, spec.types) if one is not None]
    if sorted(made) != sorted(inputs) or any(len(one.shape) != 2 for one in bundle.manifest.inputs):
        raise InputError(
            f"text: becomes {', '.join(map(repr, made))}, each (N, T); this bundle takes "
            f"{', '.join(f'{one.name!r} {one.shape}' for one in bundle.manifest.inputs)}"
        )
    return name, spec


def _tokenizer(bundle: Bundle, spec: TextPreprocessing) -> Tokenizer:
    """It cuts as the bundle says and does not pad, whatever its file says. Raises BundleError."""
    from tokenizers import Tokenizer

    if spec.tokenizer not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: has no file {spec.tokenizer!r}, which its preprocessing names")
    path = place_of(bundle) / spec.tokenizer
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise BundleError(f"{path}: cannot be read as a tokenizer: {error}") from None
    added = tokenizer.num_special_tokens_to_add(spec.pair)
    if added >= spec.max_tokens:  # nothing would be cut then
        raise BundleError(f"{path}: adds {added} tokens to a text; allowed are less than max_tokens = {spec.max_tokens}")
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec.max_tokens)
    return tokenizer


def _words(text: str, encoding: Encoding) -> tuple[Word, ...]:
    """Those of a text, or of the first of a pair, as the tokenizer splits it, as far as tokens were kept.

    A piece of white space alone (a `▁` or `Ġ` by itself) begins no word: the training has learnt nothing of it.
    """
    spans: dict[int, Word] = {}
    tokens = zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, strict=True)
    for token, (sequence, word, (start, end)) in enumerate(tokens):
        if sequence == 0 and word is not None and text[start:end].strip():
            begun = spans.get(word)
            spans[word] = Word("", start, end, token) if begun is None else begun._replace(end=end)
    return tuple(_without_space(text, span) for span in spans.values())


def _pieces(text: str, encoding: Encoding, sequence: int) -> tuple[Word, ...]:
    """Those of the text, which is the first or the second (`sequence` 0 or 1)."""
    tokens = enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True))
    return tuple(_without_space(text, Word("", *place, token)) for token, (own, place) in tokens if own == sequence)


def _without_space(text: str, span: Word) -> Word:
    """With its text; some tokenizers count the space before a word as its beginning."""
    word = text[span.start : span.end].lstrip()
    return Word(word, span.end - len(word), span.end, span.token)
