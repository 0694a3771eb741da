"""Tokens become text one by one: no character is split, and stop strings are found across tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.run.generate.detokenize import Detokenizer, StopStrings
from tests.helpers.generators import BYTES, EOS, tokenizer

BYTE_LEVEL = tokenizer()


def sentence_pieces() -> Any:
    """As LLaMA 2 has them: words begin with a space's stand-in, what is unknown is of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "▁", "▁a", "▁b", "c", *(f"<0x{i:02X}>" for i in range(256))]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    return made


def streamed(tokenizer: Any, ids: list[int]) -> list[str]:
    stream = Detokenizer(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


@given(st.text(max_size=20))
def test_a_text_comes_back_whole_and_no_character_is_split(text: str) -> None:
    ids = BYTE_LEVEL.encode(text).ids
    pieces = streamed(BYTE_LEVEL, ids)
    assert "".join(pieces) == BYTE_LEVEL.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
        # as early as can be: what is left to the end is nothing
        assert pieces[-1] == ""


@given(st.lists(st.integers(0, BYTES + 2), max_size=40))
@settings(max_examples=200)
def test_whatever_the_bytes_the_pieces_are_what_the_tokenizer_makes_of_them(ids: list[int]) -> None:
    assert "".join(streamed(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


def test_spaces_and_single_bytes_of_a_sentence_piece_tokenizer() -> None:
    made = sentence_pieces()
    text = "a bc 😀 b"
    ids = [2, 3, 4, 1, *(5 + byte for byte in "😀".encode()), 3]
    assert made.decode(ids) == text
    assert streamed(made, ids) == ["a", " b", "c", " ", "", "", "", "😀", " b", ""]


@given(st.text(st.sampled_from("abc é中😀"), max_size=8))
def test_characters_of_single_bytes_side_by_side(text: str) -> None:
    """While one is unfinished the tokenizer shows those before it as unfinished too."""
    made = sentence_pieces()
    ids = made.encode(text).ids
    pieces = streamed(made, ids)
    assert "".join(pieces) == made.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""


def test_special_tokens_are_no_text() -> None:
    ids = [*BYTE_LEVEL.encode("a").ids, EOS, *BYTE_LEVEL.encode("b").ids]
    assert streamed(BYTE_LEVEL, ids) == ["a", "", "b", ""]


@pytest.mark.parametrize(
    ("stops", "pushed", "said"),
    [
        (["END"], ["a E", "N", "D b"], ["a ", "", ""]),
        (["END"], ["a E", "N", "d b"], ["a ", "", "ENd b"]),
        (["END"], ["a EN"], ["a ", "EN"]),  # the rest comes with the end
        (["aab"], ["a", "a", "a", "b", "c"], ["", "", "a", "", ""]),
        (["xyz", "y"], ["xy", "z"], ["x", ""]),
        (["\n\n", "User:"], ["so\n", "\nUser"], ["so", ""]),
        ([], ["a"], ["a", ""]),
    ],
)
def test_stop_strings_across_tokens(stops: list[str], pushed: list[str], said: list[str]) -> None:
    stop = StopStrings(stops)
    found = [stop.push(text) for text in pushed]
    if len(said) > len(pushed):
        found.append(stop.finish())
    assert found == said


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_whatever_the_borders_the_text_ends_before_the_first_that_is_whole(text: str, stops: list[str]) -> None:
    stop = StopStrings(stops)
    found = "".join(stop.push(character) for character in text) + stop.finish()
    ends = [place + len(one) for one in stops if (place := text.find(one)) >= 0]
    if not ends:
        assert found == text
        assert not stop.found
    else:
        until = text[: min(ends)]
        begins = [until.find(one) for one in stops if one in until]
        assert found == until[: min(begins)]
        assert stop.found
