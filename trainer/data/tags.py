"""Words with a tag each, for labels of tokens: checked row by row, and the tags as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainer.data.encoded import Texts
from trainer.data.splits import Array
from trainer.submodel import TrainerError
from trainer.tasks.checks import IGNORED


def tagged_texts(
    words: Sequence[Any], tags: Sequence[Any], train: Array, place: Callable[[int], str], names: Sequence[str] = ()
) -> tuple[Texts, tuple[str, ...], int]:
    """Rows of words with their tags as numbers, the names of these, and how many there are.

    `names`: of the tags where they are numbers already; without, those of the training rows in the order of the alphabet, or
    numbers from 0 on as they are. IGNORED is a tag that counts for nothing. Raises TrainerError naming a row where the lists
    differ in length, are none or hold something else, and a tag that no training row has.
    """
    for row, (one, other) in enumerate(zip(words, tags, strict=True)):
        _check_row(place(row), one, other)
    given = [tag for row in train for tag in tags[int(row)] if tag != IGNORED]
    kinds = {type(tag) for row in tags for tag in row}
    if len(kinds) > 1:
        raise TrainerError(f"{place(0)} and others: tags are numbers here and names there; allowed are the ones or the others")
    if not given:
        raise TrainerError(f"{place(0)} and others: no training row has a tag; allowed is one for each word")
    if kinds == {int}:
        count = len(names) or max(given) + 1
        places: dict[Any, int] = {number: number for number in range(count)}
        known = tuple(names)
    else:
        known = tuple(sorted(set(given)))
        places, count = {tag: number for number, tag in enumerate(known)}, len(known)
    numbered = []
    for row, one in enumerate(tags):
        strange = next((tag for tag in one if tag != IGNORED and tag not in places), None)
        if strange is not None:
            raise TrainerError(f"{place(row)}: tag {strange!r}, which no training row has; allowed are {_some(known, count)}")
        numbered.append([IGNORED if tag == IGNORED else places[tag] for tag in one])
    return Texts.of_words(words, numbered, place), known, count


def _check_row(place: str, words: Any, tags: Any) -> None:
    for what, values, kinds, allowed in (
        ("tokens", words, (str,), "a list of words"),
        ("tags", tags, (str, int), "a list of names or numbers"),
    ):
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise TrainerError(f"{place}: {what} are {_shown(values)}; allowed is {allowed}")
        for value in values:
            if type(value) not in kinds:
                raise TrainerError(f"{place}: {what} hold {_shown(value)}; allowed is {allowed}")
    if len(words) != len(tags):
        raise TrainerError(f"{place}: {len(words)} tokens with {len(tags)} tags; allowed is one tag for each token")
    if not words:
        raise TrainerError(f"{place}: no tokens; allowed is one and more")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _some(known: Sequence[str], count: int) -> str:
    return ", ".join(known[:12]) + (" …" if len(known) > 12 else "") if known else f"0 to {count - 1}, and {IGNORED}"
