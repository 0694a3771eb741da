"""Entities in a sequence of tags such as B-PER, I-PER, O: the rule that conlleval and seqeval count by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]
"""What it is, and its first and last place."""

_TAG = re.compile(r"[BIES]-.+")
OUTSIDE = "O"


def are_entity_tags(labels: Iterable[str]) -> bool:
    """Whether names of classes are tags of entities: each O, or B-, I-, E- or S- and a name."""
    found = list(labels)
    return any(label != OUTSIDE for label in found) and all(label == OUTSIDE or _TAG.fullmatch(label) for label in found)


def entities(tags: Sequence[str]) -> set[Entity]:
    """What the tags mark. One that begins in the middle (I- after O, or after another name) begins there all the same, as
    seqeval 1.2 (`get_entities`) has it by default."""
    found: set[Entity] = set()
    prefix, name, begin = OUTSIDE, "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        its_prefix, _, its_name = tag.partition("-")
        inside = prefix != OUTSIDE
        if inside and (prefix in "ES" or its_prefix in "BSO" or its_name != name):
            found.add((name, begin, place - 1))
            inside = False
        if its_prefix != OUTSIDE and not inside:
            begin = place
        prefix, name = its_prefix, its_name
    return found
