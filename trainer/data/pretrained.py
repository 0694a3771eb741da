"""A checkpoint's own tokenizer: `tokenizer.json`, and what the files beside it say of positions, padding and labels.

Nothing in them is run; the library `tokenizers` reads the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.tokens import TOKENIZER_FILE
from trainer.parsing import json_object
from trainer.submodel import TrainerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RUN_FILE, FILES_FOLDER = "run.json", "files"  # as `trainer.folder` has them, which imports this room
BUNDLE_FILE = "manifest.json"
CONFIG_FILE, TOKENIZER_CONFIG_FILE = "config.json", "tokenizer_config.json"
USUAL_MOST = 512
"""Tokens that are kept where nobody says how many: attention's cost grows with their square."""

OLDER = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""Files of tokenizers that the library does not read as they are."""

_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
_AFTER_PADDING = ("roberta", "camembert", "mpnet", "longformer", "data2vec-text", "xmod", "luke", "bigbird_pegasus", "esm")
"""Parts of a `model_type` whose positions are counted from behind the padding's id: of 514 positions 512 are of use."""


@dataclass(frozen=True)
class Pretrained:
    """A tokenizer and what its checkpoint says."""

    tokenizer: Tokenizer
    source: str  # for errors: the option as it was given
    pad_id: int
    vocabulary: int  # every id that it can give lies below
    positions: int = 0  # that the model has; 0: not known
    usual: int = USUAL_MOST  # tokens that are kept where nobody says how many
    types: bool | None = None  # whether the model tells the two texts of a pair apart by `token_type_ids`; None: not known
    labels: tuple[str, ...] = ()  # names of the classes that the checkpoint tells apart; none where they are only numbers

    def tells_types(self) -> bool:
        """Whether the second text of a pair has types of its own, and a model that looks at them."""
        return self.types if self.types is not None else 1 in self.tokenizer.encode("a", "a").type_ids


def tokenizer_place(folder: Path) -> Path | None:
    """What to give as `tokenizer=` for a checkpoint's folder: itself where a tokenizer lies in it; so for a run or a bundle of
    ours where it has a checkpoint's tokenizer. None otherwise."""
    made = _made(folder)
    if made is not None:
        return folder if made.said and made.file.is_file() else None
    return folder if (folder / TOKENIZER_FILE).is_file() else None


def vocabulary_file(folder: Path) -> Path | None:
    """The tokenizer that a checkpoint's or a run's weights were trained with; None where there is none."""
    made = _made(folder)
    file = made.file if made is not None else folder / TOKENIZER_FILE
    return file if file.is_file() else None


def vocabulary_size(folder: Path) -> int:
    """Rows of the embedding by a checkpoint's config; 0 where it does not say."""
    return _whole(json_object(folder / CONFIG_FILE).get("vocab_size"), 0)


def same_vocabulary(one: bytes, other: bytes) -> bool:
    """Whether two files `tokenizer.json` give the same ids to the same pieces."""
    vocabularies = []
    for content in (one, other):
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            return False
        added = {token.get("content"): token.get("id") for token in found.get("added_tokens") or ()}
        vocabularies.append(((found.get("model") or {}).get("vocab"), added))
    return vocabularies[0] == vocabularies[1]


def read_pretrained(place: str) -> Pretrained:
    """The tokenizer of a checkpoint's, a run's or a bundle's folder, or in a file `tokenizer.json`.

    Raises TrainerError where there is none, it is damaged, or gives ids for which the checkpoint beside it has no embedding.
    """
    path, source = Path(place), f"tokenizer = {place!r}"
    made = _made(path)
    if made is not None and not made.said:
        raise TrainerError(f"{source}: has a vocabulary of its own; allowed are those that have a checkpoint's")
    file = made.file if made is not None else path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise TrainerError(f"{source}: {missing_tokenizer(path)}")
    tokenizer = _opened(source, file)
    vocabulary = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    config = made.config if made is not None else json_object(file.parent / CONFIG_FILE)
    rows, positions = _whole(config.get("vocab_size"), 0), _positions(config)
    if rows and vocabulary > rows:
        raise TrainerError(
            f"{source}: its vocabulary has {vocabulary} tokens, the embedding of the checkpoint beside it {rows}: it "
            f"belongs to another one; allowed are {rows} and fewer"
        )
    if made is not None:
        said = made.said
        types = bool(said.get("types")) if said.get("pair") else None
        pad_id, most = _whole(said.get("pad_id"), 0), _whole(said.get("max_tokens"), USUAL_MOST)
        return Pretrained(tokenizer, source, pad_id, vocabulary, positions, most, types, made.labels)
    most = _whole(json_object(file.parent / TOKENIZER_CONFIG_FILE).get("model_max_length"), 0)
    usual = min(n for n in (USUAL_MOST, positions, most) if n)
    types = _whole(config.get("type_vocab_size"), 0) > 1 if config.get("model_type") else None
    return Pretrained(tokenizer, source, _pad_id(tokenizer, config), vocabulary, positions, usual, types, _labels(config))


@dataclass(frozen=True)
class _Made:
    """What a run or a bundle of ours says of its texts."""

    file: Path  # its tokenizer
    said: Mapping[str, Any]  # how it reads texts with a checkpoint's tokenizer; empty where it does not
    labels: tuple[str, ...]
    config: Mapping[str, Any]  # of the checkpoint that a run's family was built from, where it keeps that


def _made(folder: Path) -> _Made | None:
    """None for a folder that is neither a run's nor a bundle's."""
    if (folder / RUN_FILE).is_file():
        record = json_object(folder / RUN_FILE)
        file, labels, described = folder / FILES_FOLDER / TOKENIZER_FILE, record.get("labels"), record.get("config")
    elif (folder / BUNDLE_FILE).is_file():
        record, described = json_object(folder / BUNDLE_FILE), None
        file, labels = folder / TOKENIZER_FILE, (record.get("task") or {}).get("labels")
    else:
        return None
    preprocessing = record.get("preprocessing")
    inputs = preprocessing.values() if isinstance(preprocessing, Mapping) else ()
    said = next((one for one in inputs if isinstance(one, Mapping) and one.get("kind") == "text" and one.get("mask")), {})
    config = described.get("config") if isinstance(described, Mapping) else None
    return _Made(file, said, tuple(map(str, labels or ())), config if isinstance(config, Mapping) else {})


def missing_tokenizer(path: Path) -> str:
    """Where there is no file of a tokenizer: what there is, and what would make one."""
    if path.is_dir():
        others = [name for name in OLDER if (path / name).exists()]
        if others:
            return (
                f"a folder with {others[0]}, without {TOKENIZER_FILE}; transformers writes it: "
                f"AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
            )
        return f"a folder without {TOKENIZER_FILE}; allowed is a checkpoint's that has one"
    return f"there is no such file or folder; allowed is the folder of a checkpoint, or a file {TOKENIZER_FILE}"


def _opened(source: str, file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain exceptions
        raise TrainerError(f"{source}: cannot be read as a tokenizer: {' '.join(str(error).split())[:200]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _pad_id(tokenizer: Tokenizer, config: Mapping[str, Any]) -> int:
    """The model's own first: RoBERTa counts positions by it. Where nobody says any id will do, behind the mask."""
    stated = config.get("pad_token_id")
    if stated is not None:
        return _whole(stated, 0)
    return next((number for name in _PADS if (number := tokenizer.token_to_id(name)) is not None), 0)


def _positions(config: Mapping[str, Any]) -> int:
    found = _whole(config.get("max_position_embeddings", config.get("n_positions")), 0)
    kind = str(config.get("model_type", ""))
    if found and any(part in kind for part in _AFTER_PADDING):
        found -= _whole(config.get("pad_token_id"), 1) + 1
    return max(0, found)


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not isinstance(named, Mapping) or not all(str(key).isdecimal() for key in named):
        return ()
    found = tuple(str(named[key]) for key in sorted(named, key=int))
    return () if all(re.fullmatch(r"LABEL_\d+|\d+", label) for label in found) else found


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int and value >= 0 else default
