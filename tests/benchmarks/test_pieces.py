"""Measurements that take hours go on after a kill."""

from __future__ import annotations

from pathlib import Path

import selector.run.decode
import selector.run.generate
from benchmarks.pieces import Pieces, hash_of


def test_pieces_that_are_there_are_not_computed_again(tmp_path: Path) -> None:
    path, asked = tmp_path / "kept" / "pieces.jsonl", list[str]()

    def piece(name: str) -> list[object]:
        asked.append(name)
        return [name, 0.5, True]

    for about in ("one", "one", "another"):
        pieces = Pieces(path, about)
        assert [pieces.of(name, lambda name=name: piece(name)) for name in ("a", "b")] == [["a", 0.5, True], ["b", 0.5, True]]  # type: ignore[misc]
    assert asked == ["a", "b", "a", "b"]
    path.write_text(path.read_text()[:-9])  # as a kill leaves it
    assert Pieces(path, "another").of("b", lambda: "anew") == "anew"


def test_what_pieces_depend_on_is_told_apart() -> None:
    found = [hash_of("a", "b"), hash_of("ab"), hash_of("a", selector.run.decode), hash_of("a", selector.run.generate)]
    assert len(set(found)) == len(found)
    assert hash_of("a", selector.run.decode) == found[2]
