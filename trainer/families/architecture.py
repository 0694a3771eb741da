"""What a Hugging Face configuration says of sizes: which of its fields are axes, under which names, and with which values.

Every architecture names the same four sizes in its own way; the configuration classes of transformers say which is which
(`attribute_map`), but not of the width between the two projections of a layer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.family import DataSpec
from trainer.gguf import gguf_config, is_gguf
from trainer.submodel import SubModel, TrainerError
from trainer.task import own

DEPTH, INNER, HEADS, HIDDEN = "num_hidden_layers", "intermediate_size", "num_attention_heads", "hidden_size"
KEYS = "num_key_value_heads"
LONGEST = 128  # tokens of an example, where nothing says how many
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    DEPTH: ("num_hidden_layers", "n_layers", "num_layers", "n_layer"),
    INNER: ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner"),
    HEADS: ("num_attention_heads", "n_heads", "num_heads", "n_head"),
    HIDDEN: ("hidden_size", "dim", "d_model", "n_embd"),
}
"""Axis → how configurations spell it. A grid may be given in any of them."""

FOLLOWING = ("pooler_output_size", "pooler_hidden_size")
"""Sizes that are the hidden size's where they are equal to it in the full model."""

LEFT_OUT = (
    "_name_or_path", "_attn_implementation", "architectures", "attn_implementation", "dtype", "id2label", "label2id",
    "num_labels", "problem_type", "torch_dtype", "transformers_version",
)  # fmt: skip
"""What a checkpoint's configuration says of where it came from, how it was stored, and of another head's labels."""

FROM_SCRATCH: Mapping[str, int] = {HIDDEN: 128, DEPTH: 4, HEADS: 4, INNER: 512}
"""What a model has that begins without a checkpoint and without a configuration."""


DECODERS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Language models that are built like LLaMA."""


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint, the same of a GGUF file, or the one that a run of this family carries. Raises TrainerError
    naming what is amiss."""
    if is_gguf(folder):
        return gguf_config(folder)
    run, file = folder / "run.json", folder / "config.json"
    path = run if run.is_file() else file
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainerError(f"checkpoint = {str(folder)!r}: has no config.json; allowed is a folder of Hugging Face") from None
    except (OSError, ValueError) as error:
        raise TrainerError(f"{path} cannot be read: {error}") from None
    if path == run:
        found = found.get("config", {}).get("config", {}) if isinstance(found, dict) else {}
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise TrainerError(f"{path}: says no model_type; allowed is the configuration of an architecture of transformers")
    return found


def from_scratch(kind: str, spec: DataSpec) -> dict[str, Any]:
    """A small configuration for the data. Padding is token 0, as in the vocabularies that we learn."""
    sizes = {axis if kind != "distilbert" else SPELLINGS[axis][1]: size for axis, size in FROM_SCRATCH.items()}
    if len(spec.input_shape) == 3:
        channels, *sides = spec.input_shape
        patch = 4 if min(sides) <= 64 else 16
        return {"model_type": kind, **sizes, "num_channels": channels, "image_size": sides, "patch_size": patch}
    tokens = max(LONGEST, *spec.input_shape) + 2
    more: dict[str, Any] = {"max_position_embeddings": tokens, "pad_token_id": 0}
    if kind in DECODERS:
        dim = FROM_SCRATCH[HIDDEN] // FROM_SCRATCH[HEADS]
        more |= {KEYS: FROM_SCRATCH[HEADS] // 2, "head_dim": dim, "tie_word_embeddings": True}
    return {"model_type": kind, **sizes, "vocab_size": spec.vocabulary, **more}


def checked(config: Mapping[str, Any] | None, wanted: Sequence[str]) -> dict[str, Any]:
    """The configuration without what does not say how to build. `wanted`: the only architectures that are taken, if
    any; the first one is built from scratch.

    Raises TrainerError for another one, and where nothing says which.
    """
    config = {} if config is None and wanted else config
    usual = wanted[0] if wanted else None
    if not isinstance(config, Mapping) or not isinstance(kind := config.get("model_type", usual), str):
        raise TrainerError(
            f"config = {config!r}: allowed is what a checkpoint's config.json says, with its model_type: begin with one "
            "(--from FOLDER), or say --set config.model_type=bert"
        )
    if wanted and kind not in wanted:
        raise TrainerError(
            f"config: model_type is {kind!r}, family {usual} is for {', '.join(map(repr, wanted))}; "
            "family transformers takes any architecture"
        )
    sizes = config or from_scratch(kind, DataSpec((3, 32, 32) if kind == "vit" else (LONGEST,), 2, vocabulary=1000))
    return {"model_type": kind, **{name: value for name, value in sizes.items() if name not in LEFT_OUT}}


@dataclass(frozen=True)
class Architecture:
    """A configuration of transformers and its sizes."""

    full: Any  # `PreTrainedConfig` of the full model; never changed
    sizes: Mapping[str, int]  # axis → value of the full model
    keys: int  # heads of keys and values
    head_dim: int  # numbers of one head; the same at every size

    @property
    def group(self) -> int:
        """Heads that share one of keys and values."""
        return self.sizes[HEADS] // self.keys

    def config(self, sub: SubModel) -> Any:
        """The configuration at that size. What transformers derives from the sizes stays as in the full model, the size of a
        head above all."""
        config = copy.deepcopy(self.full)
        values = {axis: int(sub.axes.get(axis, size)) for axis, size in self.sizes.items()}  # type: ignore[arg-type]
        for name in FOLLOWING:
            if getattr(config, name, None) == self.sizes[HIDDEN]:
                setattr(config, name, values[HIDDEN])
        for name, of_layers in vars(config).items():
            if isinstance(of_layers, list) and "layer" in name and len(of_layers) == self.sizes[DEPTH]:
                setattr(config, name, of_layers[: values[DEPTH]])
        for axis, value in values.items():
            setattr(config, _spelling(config, axis), value)
        if isinstance(getattr(config, KEYS, None), int):
            setattr(config, KEYS, values[HEADS] // self.group)
        if values[HEADS] * self.head_dim != values[HIDDEN]:
            config.head_dim = self.head_dim  # what some take where it is there
        return config


def architecture(config: Mapping[str, Any], attention: str) -> Architecture:
    """Raises TrainerError for a configuration that transformers refuses, and where it does not say one of the sizes."""
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig

    said = {name: value for name, value in config.items() if name not in LEFT_OUT}
    kind = said.pop("model_type", None)
    if kind not in CONFIG_MAPPING:  # its own error lists them all
        raise TrainerError(
            f"config: model_type {kind!r} is not known to transformers {transformers.__version__}; allowed are those"
        )
    with own(f"config: model_type {kind!r}"):
        full = AutoConfig.for_model(kind, **said)
    if getattr(full, "is_encoder_decoder", False):
        raise TrainerError(f"config: {kind!r} is an encoder with a decoder; allowed are architectures of one of them alone")
    full._attn_implementation = attention
    full.use_cache = False
    sizes: dict[str, Any] = {axis: getattr(full, _spelling(full, axis), None) for axis in SPELLINGS}
    if sizes[INNER] is None and "n_inner" in vars(full):  # what GPT-2 and its like mean by none
        sizes[INNER] = 4 * full.hidden_size
    for axis, size in sizes.items():
        if type(size) is not int or size < 1:
            spellings = " or ".join(SPELLINGS[axis])
            raise TrainerError(f"config: {kind!r} says {axis} = {size!r}; allowed is a whole number from 1 under {spellings}")
    heads, hidden = sizes[HEADS], sizes[HIDDEN]
    head_dim, keys = getattr(full, "head_dim", None) or getattr(full, "d_kv", None), getattr(full, KEYS, None) or heads
    if head_dim is None and hidden % heads:
        raise TrainerError(f"config: hidden_size = {hidden}: allowed are multiples of its {heads} heads")
    if heads % keys:
        raise TrainerError(f"config: {KEYS} = {keys}: allowed are numbers that divide its {heads} heads")
    return Architecture(full, sizes, keys, head_dim or hidden // heads)


def _spelling(config: Any, axis: str) -> str:
    mapped = getattr(config, "attribute_map", {})
    return next((name for name in SPELLINGS[axis] if name in mapped or name in vars(config)), axis)


def default_axes(found: Architecture, causal: bool = False) -> dict[str, tuple[int, ...]]:
    """Thirds of the layers, quarters of the width between, halves of heads and hidden size: 48 sub-models from six layers on.

    Values lie where hardware likes them: multiples of 8 where the full size is one, whole groups of heads. Of a language model
    sixths of the layers, and the whole hidden size: a part of a checkpoint's says nothing until it has been trained for long.
    """
    layers, inner, heads, hidden = (found.sizes[axis] for axis in (DEPTH, INNER, HEADS, HIDDEN))
    return {
        DEPTH: _shares(layers, 6 if causal else 3, 1),
        INNER: _shares(inner, 4, 8 if inner % 8 == 0 else 1),
        HEADS: _shares(heads, 2, found.group),
        HIDDEN: _shares(hidden, 1 if causal else 2, 8 if hidden % 8 == 0 else 1),
    }


def _shares(full: int, parts: int, multiple: int) -> tuple[int, ...]:
    """1/parts, 2/parts, … of the full value, each rounded to a multiple, at least one."""
    values = {max(multiple, round(full * part / parts / multiple) * multiple) for part in range(1, parts)}
    return tuple(sorted({value for value in values if value < full} | {full}))
