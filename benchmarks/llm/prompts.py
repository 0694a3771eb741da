"""What the model is asked: prompts for text of its own to be trained on, and others, held out, for what is measured.

Five kinds: chat, edit, summarise, news (an article's beginning, to be gone on with), code. Each is of a document, whose part
(training, validation, test) follows from its hash.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.llm.data import PARTS, WORK, articles, glosses, number_of, part_of, sources

Prompt = str | list[dict[str, str]]
"""A text to be gone on with, or messages."""

KINDS = ("chat", "edit", "summarise", "news", "code")
HELD_OUT = 48  # of each kind, for validation and for test each
TRAINING = {"chat": 2800, "edit": 700, "summarise": 700, "news": 700, "code": 1100}
LONGEST = 320  # tokens of a prompt

CHAT = (
    "Explain what {0} means, in simple words.",
    "Write a short story about {0}.",
    "What is {0}? Give an example.",
    "Give me a list of five facts about {0}.",
    "Write an email to a colleague about {0}.",
    "How would you describe {0} to a child?",
    "Write a poem about {0}.",
    "What are the advantages and disadvantages of {0}?",
    "I have to give a talk about {0}. Write an outline.",
    "What is the difference between {0} and {1}?",
    "Write a dialogue between two friends who talk about {0}.",
    "Use {0} and {1} in one paragraph.",
    "What should I know about {0} before I travel?",
    "Write a product description for {0}.",
    "Why is {0} important?",
    "Ask me three questions about {0} and answer them.",
)
ABOUT_NEWS = (
    "What could this headline be about? {0}",
    "Write a news report with this headline: {0}",
    "Write three other headlines for: {0}",
)
EDIT = (
    "Correct the spelling of this text and return the whole text:\n\n{0}",
    "Rewrite this text with proper capital letters:\n\n{0}",
    "Copy this text, but write all numbers as words:\n\n{0}",
    "Change this text to the past tense:\n\n{0}",
    "Fix the grammar of this text and change nothing else:\n\n{0}",
)
SUMMARISE = (
    "Summarise this text:\n\n{0}",
    "Summarise this article in two sentences:\n\n{0}",
    "What are the main points of this text?\n\n{0}",
    "List who and what is named in this text:\n\n{0}",
)
REWRITE = (
    "Write this Python function again with a docstring:\n\n```python\n{0}\n```",
    "Add comments to this code:\n\n```python\n{0}\n```",
    "Add type hints to this function and return all of it:\n\n```python\n{0}\n```",
    "What does this function do?\n\n```python\n{0}\n```",
    "Rename the first variable in this function to `value` and return all of it:\n\n```python\n{0}\n```",
)
FUNCTION = (
    "Write a Python function `{0}`.",
    "Write a Python class for {1}.",
    "How do I use `{0}` in Python?",
)


def held_out_prompts(kind: str, part: str = "test") -> list[Prompt]:
    """48 prompts of a kind, always the same. Raises ValueError for another kind or part."""
    if kind not in KINDS or part not in PARTS:
        raise ValueError(f"kind = {kind!r}, part = {part!r}: allowed are {', '.join(KINDS)} and {', '.join(PARTS)}")
    return _prompts(kind, part, HELD_OUT)


def training_prompts() -> list[Prompt]:
    """Some 6,000, of all kinds."""
    return [prompt for kind, count in TRAINING.items() for prompt in _prompts(kind, "train", count)]


def write_prompts(encoder: Any, template: str) -> dict[str, int]:
    """Their ids into `prompts.npz`: `PART.ids`, `PART.lengths`; returns how many there are. Those that are too long are left
    out."""
    arrays: dict[str, Any] = {}
    for part in PARTS:
        prompts = training_prompts() if part == "train" else [p for kind in KINDS for p in held_out_prompts(kind, part)]
        rows = [encoder.encode(as_text(prompt, template), add_special_tokens=False).ids for prompt in prompts]
        rows = [row for row in rows if len(row) <= LONGEST or part != "train"]
        arrays[f"{part}.ids"] = np.concatenate([np.asarray(row, dtype=np.uint16) for row in rows])
        arrays[f"{part}.lengths"] = np.asarray([len(row) for row in rows], dtype=np.int32)
    np.savez_compressed(WORK / "prompts.npz", **arrays)
    return {part: len(arrays[f"{part}.lengths"]) for part in PARTS}


def as_text(prompt: Prompt, template: str) -> str:
    """As the model reads it; messages by the chat template, up to where the answer begins."""
    if isinstance(prompt, str):
        return prompt
    return str(_template(template).render(messages=prompt, add_generation_prompt=True, bos_token="<|im_start|>", eos_token=""))


@lru_cache(maxsize=2)
def _template(text: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)


def _prompts(kind: str, part: str, count: int) -> list[Prompt]:
    makers: Mapping[str, Callable[[str], Iterator[tuple[str, Prompt]]]] = {
        "chat": _chat, "edit": _edit, "summarise": _summarise, "news": _news, "code": _code,
    }  # fmt: skip
    found = sorted(makers[kind](part), key=lambda pair: number_of(f"{kind}/{pair[0]}"))
    once = {str(prompt): prompt for _, prompt in found}
    return list(once.values())[:count]


def _ask(texts: Sequence[str], about: str, *fill: str) -> tuple[str, Prompt]:
    said = texts[number_of(about) % len(texts)].format(*fill)
    return about, [{"role": "user", "content": said}]


@lru_cache(maxsize=4)
def _nouns(part: str) -> tuple[str, ...]:
    words = {words.partition(",")[0] for words, _ in glosses(("noun",)) if part_of(words) == part}
    return tuple(sorted((word for word in words if re.fullmatch(r"[A-Za-z][a-z]+( [a-z]+)?", word)), key=number_of)[:4000])


@lru_cache(maxsize=4)
def _articles(part: str) -> tuple[str, ...]:
    return tuple(text for text in articles() if part_of(text) == part and len(text) > 900)


def _chat(part: str) -> Iterator[tuple[str, Prompt]]:
    nouns = _nouns(part)
    for word, other in pairwise(nouns):
        yield _ask(CHAT, f"{word}/{other}", word, other)
    for text in _articles(part):
        headline = text.partition("\n")[0]
        yield _ask(ABOUT_NEWS, headline, headline)


def _edit(part: str) -> Iterator[tuple[str, Prompt]]:
    for text in _articles(part):
        for place, paragraph in enumerate(text.split("\n\n")[1:4]):
            if 150 < len(paragraph) < 600:
                wrong = _misspelt(paragraph)
                yield _ask(EDIT, f"{place}/{paragraph}", wrong)


def _misspelt(text: str) -> str:
    """With letters of some words changed, the same every time."""
    words = text.split(" ")
    for place, word in enumerate(words):
        luck = number_of(f"{place}/{text}") % 12
        if len(word) > 4 and luck == 0:
            words[place] = f"{word[0]}{word[2]}{word[1]}{word[3:]}"
        elif luck == 1:
            words[place] = word.lower()
    return " ".join(words)


def _summarise(part: str) -> Iterator[tuple[str, Prompt]]:
    for text in _articles(part):
        yield _ask(SUMMARISE, text, _beginning(text, 190))


def _news(part: str) -> Iterator[tuple[str, Prompt]]:
    for text in _articles(part):
        yield text, _beginning(text, 110)


def _beginning(text: str, words: int) -> str:
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        found.append(paragraph)
        if sum(len(p.split()) for p in found) > words:
            break
    joined = "\n\n".join(found)
    return joined if len(joined.split()) <= 1.2 * words else " ".join(joined.split(" ")[:words])


def _code(part: str) -> Iterator[tuple[str, Prompt]]:
    nouns = _nouns(part)
    for place, (name, text) in enumerate(_functions(part)):
        luck = number_of(f"{name}/{text}") % 6
        if luck == 0:
            lines = text.splitlines()
            yield f"{name}/{text}", "\n".join(lines[: max(4, len(lines) // 2)]) + "\n"
        elif luck == 1:
            yield _ask(FUNCTION, f"{name}/{text}", name, nouns[place % len(nouns)])
        else:
            yield _ask(REWRITE, f"{name}/{text}", text)


@lru_cache(maxsize=4)
def _functions(part: str) -> tuple[tuple[str, str], ...]:
    """Name and text of short functions, of files of that part."""
    found = []
    for place, text in sources():
        if part_of(place) != part:
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and 4 <= (node.end_lineno or 0) - node.lineno <= 22 and node.col_offset == 0:
                found.append((node.name, "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])))
    return tuple((name, text) for name, text in dict(found).items() if 100 < len(text) < 900)
