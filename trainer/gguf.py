"""GGUF: a language model of llama.cpp in one file, with its configuration, its weights and its tokenizer.

transformers reads it, with the package `gguf`; quantised weights become the numbers that they stand for. Nothing in it is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.submodel import TrainerError

SUFFIX = ".gguf"
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""That `general.architecture` may say; of others what transformers makes has not been looked at."""


@dataclass(frozen=True)
class GgufTokenizer:
    """What a file says of text."""

    content: bytes  # as `tokenizer.json`
    template: str  # chat template; empty where there is none
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX and path.is_file()


def gguf_config(path: Path) -> dict[str, Any]:
    """As a checkpoint's `config.json`. Raises TrainerError for a damaged file, and an architecture that is not carried."""
    found: dict[str, Any] = json.loads(_config(str(path.resolve()), path.stat().st_mtime_ns))["config"]
    return {name: value for name, value in found.items() if not name.startswith("_")}  # where the file lay


def gguf_tensors(path: Path) -> Mapping[str, Tensor]:
    """The weights in single precision, by the names of transformers. Raises TrainerError as `gguf_config`, and where the file
    lacks one of the model's or has one that the model does not."""
    there = json.loads(_config(str(path.resolve()), path.stat().st_mtime_ns))["tensors"]
    with _reading(path), redirect_stderr(StringIO()):  # progress of pieces that nobody asked for
        import accelerate  # noqa: F401  # which transformers wants for it
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
    model, info = loaded
    parameters = dict(model.named_parameters())
    if lacking := sorted(info["missing_keys"]):  # transformers gives them random numbers
        raise TrainerError(f"{path}: has no {', '.join(lacking[:3])}, {len(lacking)} in all; allowed is the whole model")
    if len(there) > len(parameters):  # of a bias that the architecture has not, for example
        raise TrainerError(
            f"{path}: has {len(there)} tensors, of which transformers reads {len(parameters)}; the file's are "
            f"{', '.join(sorted({name.split('.', 2)[-1] for name in there}))}; allowed is the folder that it was made from"
        )
    return {name: parameter.detach() for name, parameter in parameters.items()}


def gguf_tokenizer(path: Path) -> GgufTokenizer:
    """Raises TrainerError as `gguf_config`."""
    return _tokenizer(str(path.resolve()), path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _tokenizer(name: str, _written: int) -> GgufTokenizer:
    path = Path(name)
    gguf_config(path)
    with _reading(path):
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    eos = found.eos_token_id
    return GgufTokenizer(
        found.backend_tokenizer.to_str().encode(),
        found.chat_template if isinstance(found.chat_template, str) else "",
        found.bos_token_id,
        () if eos is None else (int(eos),),
        found.pad_token_id,
    )


@lru_cache(maxsize=4)
def _config(name: str, _written: int) -> str:
    path = Path(name)
    with _reading(path):
        from gguf import GGUFReader

        reader = GGUFReader(name)
        said = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.")}
        names = {tensor.name for tensor in reader.tensors}
    kind = said.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise TrainerError(f"{path}: general.architecture is {kind!r}; allowed are {', '.join(ARCHITECTURES)}")
    if int(said.get("split.count") or 1) > 1:
        raise TrainerError(
            f"{path}: split.count is {said['split.count']}; allowed is a model in one file (llama-gguf-split --merge)"
        )
    if int(said.get(f"{kind}.expert_count") or 0):
        raise TrainerError(f"{path}: {kind}.expert_count is {said[f'{kind}.expert_count']}; allowed are models without experts")
    scaling = said.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in names:
        raise TrainerError(
            f"{path}: its rotary positions are scaled ({scaling}), which transformers does not read from GGUF; allowed is the "
            "folder of the checkpoint that it was made from"
        )
    with _reading(path):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    return json.dumps({"config": config.to_dict(), "tensors": sorted(names)})


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within: somebody else's reader. Raises TrainerError for what it raises, and where its package is missing."""
    try:
        yield
    except ImportError as error:
        raise TrainerError(
            f"{path}: reading GGUF needs {error.name or 'the package gguf'}: pip install 'sortednet[gguf]'"
        ) from None
    except TrainerError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader meets
        raise TrainerError(
            f"{path}: cannot be read as GGUF: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from None
