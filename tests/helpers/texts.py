"""Folders of small texts, as people have them."""

from __future__ import annotations

import random
from pathlib import Path

CLASSES = ("bread", "rivers", "stars")


def write_texts(folder: Path, *, per_class: int = 20, words: int = 6, seed: int = 0) -> dict[str, str]:
    """Three classes; each document ends with a word that no other has. Returns that word's document."""
    source = random.Random(seed)
    unique = {}
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for i in range(per_class):
            word = "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=9))
            text = " ".join([label, *source.choices(["and", "the", "of", "with"], k=words), word])
            (folder / label / f"{i}.txt").write_text(text)
            unique[word] = text
    return unique
