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
from trainer.gguf import gguf_config, gguf_tokenizer, is_gguf
from trainer.parsing import json_object
from trainer.submodel import TrainerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RUN_FILE, FILES_FOLDER = "run.json", "files"  # as `trainer.folder` has them, which imports this room
BUNDLE_FILE = "manifest.json"
TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE, TOKENIZER_CONFIG_FILE = "config.json", "tokenizer_config.json"
USUAL_MOST = 512
"""Tokens that are kept where nobody says how many: attention's cost grows with their square."""

OLDER = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""Files of tokenizers that the library does not read as they are."""

_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
_AFTER_PADDING = ("roberta", "camembert", "mpnet", "longformer", "data2vec-text", "xmod", "luke", "bigbird_pegasus", "esm")
"""Parts of a `model_type` whose positions are counted from behind the padding's id: of 514 positions 512 are of use."""


@dataclass(frozen=True)
class Marks:
    """What a language model's checkpoint says of texts: where they begin and end, and how a conversation is written."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # that end an answer; the first one ends a document
    template: str = ""  # of a conversation, in Jinja; empty where there is none


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
    marks: Marks = Marks()

    def tells_types(self) -> bool:
        """Whether the second text of a pair has types of its own, and a model that looks at them."""
        return self.types if self.types is not None else 1 in self.tokenizer.encode("a", "a").type_ids


def tokenizer_place(folder: Path) -> Path | None:
    """What to give as `tokenizer=` for a checkpoint's folder: itself where a tokenizer lies in it; so for a run or a bundle of
    ours where it has a checkpoint's tokenizer. None otherwise."""
    if is_gguf(folder):
        return folder
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
    config = gguf_config(folder) if is_gguf(folder) else json_object(folder / CONFIG_FILE)
    return _whole(config.get("vocab_size"), 0)


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
    """The tokenizer of a checkpoint's, a run's or a bundle's folder, in a file `tokenizer.json`, or in a `.gguf`.

    Raises TrainerError where there is none, it is damaged, or gives ids for which the checkpoint beside it has no embedding.
    """
    path, source = Path(place), f"tokenizer = {place!r}"
    if is_gguf(path):
        return _of_gguf(source, path)
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
        pad_id = _whole(said.get("pad_id"), 0)
        template = made.file.with_name(TEMPLATE_FILE)
        marks = Marks(
            said.get("bos_id"), tuple(said.get("eos_ids") or ()), template.read_text("utf-8") if template.is_file() else ""
        )
        return Pretrained(tokenizer, source, pad_id, vocabulary, positions, made.usual, types, made.labels, marks)
    about = json_object(file.parent / TOKENIZER_CONFIG_FILE)
    most = _whole(about.get("model_max_length"), 0)
    usual = min(n for n in (USUAL_MOST, positions, most) if n)
    types = _whole(config.get("type_vocab_size"), 0) > 1 if config.get("model_type") else None
    pad_id, marks = _pad_id(tokenizer, config), _marks(tokenizer, file.parent, config, about)
    return Pretrained(tokenizer, source, pad_id, vocabulary, positions, usual, types, class_names(config), marks)


def _of_gguf(source: str, path: Path) -> Pretrained:
    from tokenizers import Tokenizer

    found, config = gguf_tokenizer(path), gguf_config(path)
    tokenizer = Tokenizer.from_str(found.content.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    positions = _positions(config)
    usual = min(n for n in (USUAL_MOST, positions) if n)
    pad_id = found.pad_id if found.pad_id is not None else _pad_id(tokenizer, config)
    marks = Marks(found.bos_id, found.eos_ids, found.template)
    return Pretrained(tokenizer, source, pad_id, vocabulary, positions, usual, None, (), marks)


def _marks(tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> Marks:
    """Of a checkpoint's folder: its tokenizer's own end of a text first, then whatever else ends an answer."""

    def number(said: Any) -> list[int]:
        content = said.get("content") if isinstance(said, Mapping) else said
        found = tokenizer.token_to_id(content) if isinstance(content, str) else None
        return [] if found is None else [found]

    def numbers(said: Any) -> list[int]:
        return [one for one in (said if isinstance(said, list) else [said]) if type(one) is int and one >= 0]

    generation = json_object(folder / "generation_config.json")
    eos = [*number(about.get("eos_token")), *numbers(config.get("eos_token_id")), *numbers(generation.get("eos_token_id"))]
    bos = [*number(about.get("bos_token")), *numbers(config.get("bos_token_id"))]
    file = folder / TEMPLATE_FILE
    said = file.read_text(encoding="utf-8") if file.is_file() else about.get("chat_template")
    if isinstance(said, list):  # several by name
        said = next((one.get("template") for one in said if isinstance(one, Mapping) and one.get("name") == "default"), None)
    return Marks(bos[0] if bos else None, tuple(dict.fromkeys(eos)), said if isinstance(said, str) else "")


@dataclass(frozen=True)
class _Made:
    """What a run or a bundle of ours says of its texts."""

    file: Path  # its tokenizer
    said: Mapping[str, Any]  # how it reads texts with a checkpoint's tokenizer; empty where it does not
    labels: tuple[str, ...]
    config: Mapping[str, Any]  # of the checkpoint that a run's family was built from, where it keeps that
    usual: int  # tokens that are kept where nobody says how many: as many as it was trained on


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
    said = next((one for one in inputs if isinstance(one, Mapping) and one.get("kind") == "text" and _of_checkpoint(one)), {})
    config = described.get("config") if isinstance(described, Mapping) else None
    most = _whole(said.get("max_tokens"), USUAL_MOST)  # of what goes on: the positions that there are
    data = record.get("data")
    usual = _whole(data.get("max_tokens"), most) if isinstance(data, Mapping) else most
    if record.get("decoder") is not None:  # a bundle, which does not say how long its windows were
        usual = min(usual, USUAL_MOST)
    return _Made(file, said, tuple(map(str, labels or ())), config if isinstance(config, Mapping) else {}, usual)


def _of_checkpoint(said: Mapping[str, Any]) -> bool:
    return bool(said.get("mask") or said.get("eos_ids"))


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


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the classes that a checkpoint's head tells apart, in order; none where nothing says so, or they are only numbers."""
    named = config.get("id2label", config.get("label_names"))  # the latter is timm's
    if isinstance(named, list):
        named = dict(enumerate(named))
    if not isinstance(named, Mapping) or not all(str(key).isdecimal() for key in named):
        return ()
    found = tuple(str(named[key]) for key in sorted(named, key=int))
    return () if all(re.fullmatch(r"LABEL_\d+|\d+", label) for label in found) else found


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int and value >= 0 else default
