"""Splits by class: what they have of every class, which they take, and that they stay the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import TrainerError
from trainer.data.splits import split_by_class, stratified


def labels_of(*counts: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.repeat(np.arange(len(counts)), counts)


def test_recorded_splits_stay_the_same() -> None:
    parts = split_by_class(labels_of(120, 40, 20, 7))
    written = b"".join(part.astype("<i8").tobytes() for part in parts)
    assert hashlib.sha256(written).hexdigest() == "069a251dc31ab6355b6fbb6f0e9e37f8744e5311c00c4fc0f0f4251998954352"


def test_of_a_class_of_two_one_may_be_tested_and_the_other_is_learnt() -> None:
    train, validation, test = split_by_class(labels_of(120, 40, 2, 2, 2))
    assert sorted(np.concatenate([train, validation, test])) == list(range(166))
    assert {*labels_of(120, 40, 2, 2, 2)[train]} == {0, 1, 2, 3, 4}
    assert min(len(validation), len(test)) > 20


@pytest.mark.parametrize(("classes", "enough"), [(1, 3), (2, 8), (4, 22), (10, 62)])
def test_as_many_examples_as_are_asked_for_are_enough(classes: int, enough: int) -> None:
    few = np.arange(enough - 1) % classes
    with pytest.raises(TrainerError, match=f"{enough - 1} examples.* cannot be split; allowed are {enough} examples and more"):
        split_by_class(few)
    parts = split_by_class(np.arange(enough) % classes)
    assert all(len({*(part % classes)}) == classes for part in parts)


def test_a_class_of_one_is_named() -> None:
    with pytest.raises(TrainerError, match="61 examples cannot be split by class: class owl has 1; allowed are 2 and more"):
        split_by_class(labels_of(30, 1, 30), ("cat", "owl", "dog"))
    with pytest.raises(TrainerError, match="class 1 has 1"):
        stratified(np.arange(31), labels_of(30, 1), 0.15)


@given(st.lists(st.integers(2, 30), max_size=8))
def test_classes_of_any_sizes_are_learnt_and_nothing_is_lost(counts: list[int]) -> None:
    labels = labels_of(7 * (len(counts) + 1), *counts)
    train, validation, test = split_by_class(labels)
    assert sorted(np.concatenate([train, validation, test])) == list(range(len(labels)))
    assert {*labels[train]} == {*labels}
    assert min(len(validation), len(test)) > 0
