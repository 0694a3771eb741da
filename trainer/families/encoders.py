"""Modules of transformers with a head, as a family needs them: named inputs, outputs by the names of the task.

Shapes: N batch, T tokens, D hidden size, C classes, H height, W width.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.families.causal import refuse_both_ways
from trainer.families.images import NormalizePixels
from trainer.parsing import json_object
from trainer.submodel import TrainerError
from trainer.task import Task, find_task

CAUSAL = "causal"

HEADS_OF: Mapping[str, tuple[str, str]] = {
    "sequence-classification": ("AutoModelForSequenceClassification", "classification"),
    "token-classification": ("AutoModelForTokenClassification", "token-classification"),
    "question-answering": ("AutoModelForQuestionAnswering", "question-answering"),
    "embedding": ("AutoModel", "embedding"),
    "causal": ("AutoModelForCausalLM", "language-modelling"),
    "image-classification": ("AutoModelForImageClassification", "classification"),
}
"""Head → the class of transformers that chooses the module by the configuration, and the task that it is for."""


def head_for(task: str, images: bool, was: str) -> str:
    """The head that a task (by its kind) needs; of one that is not ours the head stays."""
    if task in ("classification", "multi-label"):
        return "image-classification" if images else "sequence-classification"
    if task == "language-modelling":
        return CAUSAL
    return task if task in HEADS_OF else was


def check_outputs(task: Task, head: str, kind: str) -> None:
    """Raises TrainerError for a task whose outputs the modules of transformers with that head do not give by name. `kind`: the
    architecture."""
    given = find_task(HEADS_OF[head][1]).outputs
    if head != "embedding" and (missing := [name for name in task.outputs if name not in given]):
        known = ", ".join(dict.fromkeys(["classification", "multi-label", *(task for _, task in HEADS_OF.values())]))
        raise TrainerError(
            f"task = {task.kind!r}: needs the output {missing[0]!r}, {kind!r} gives {', '.join(given)}; allowed are {known}, "
            "and tasks of your own with these outputs"
        )


class SentenceEmbedding(nn.Module):
    """An encoder whose answer is the mean over the tokens that are no padding, of length 1 (Reimers & Gurevych 2019, arXiv
    1908.10084, section 3). The encoder has the name that it has in modules with other heads."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.prefix: str = encoder.base_model_prefix
        setattr(self, self.prefix, encoder)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:  # (N, T) -> (N, D)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        encoder = self.get_submodule(self.prefix)
        hidden = encoder(**{name: tensor for name, tensor in given.items() if tensor is not None}).last_hidden_state
        counts = torch.ones_like(hidden[:, :, :1]) if attention_mask is None else attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1e-9)
        return F.normalize(mean, dim=1)


def check_pooling(folder: Path) -> None:
    """Raises TrainerError, naming the folder, the file and what that says, for a checkpoint of sentence-transformers that makes
    a vector otherwise than `SentenceEmbedding`. One without `modules.json`, in it or around it, says nothing."""
    for root in dict.fromkeys((folder, folder.parent)):
        modules = _modules(root / "modules.json")
        if not modules or (root != folder and modules[0].get("path") != folder.name):
            continue
        kinds = [str(one.get("type")).rpartition(".")[2] for one in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
            raise TrainerError(
                f"checkpoint = {str(folder)!r}: {root / 'modules.json'} says {', '.join(kinds)}; allowed for --task embedding "
                "are Transformer, Pooling and Normalize"
            )
        file = root / str(modules[1].get("path")) / "config.json"
        if (found := _pooled(json_object(file))) not in (["mean"], ["mean_tokens"]):
            raise TrainerError(
                f"checkpoint = {str(folder)!r}: {file} says pooling_mode {', '.join(found) or 'nothing'}; allowed for --task "
                "embedding is the mean of the tokens (pooling_mode_mean_tokens) alone"
            )


def _modules(path: Path) -> list[dict[str, Any]]:
    """What a text goes through, in order; none where there is no such file."""
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainerError(f"{path} is damaged: {error}") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise TrainerError(f"{path}: says {str(found)[:80]}; allowed is a list of modules")
    return found


def _pooled(said: Mapping[str, Any]) -> Sequence[str]:
    """What of the tokens makes the vector, in the spelling of either generation of the file."""
    if (named := said.get("pooling_mode")) is not None:
        return [named] if isinstance(named, str) else [str(one) for one in named]
    return [name.removeprefix("pooling_mode_") for name, on in said.items() if name.startswith("pooling_mode_") and on]


def build_module(config: Any, head: str, labels: int) -> nn.Module:
    """The module for a configuration. Raises TrainerError where transformers has none with that head for it."""
    import transformers

    chooser = getattr(transformers, HEADS_OF[head][0])
    if head == CAUSAL:
        refuse_both_ways(config)
    config.num_labels = 2 if head == "question-answering" else labels  # where a span begins, and where it ends
    try:
        kind = chooser._model_mapping[type(config)]
    except KeyError:
        allowed = [name for name, (other, _) in HEADS_OF.items() if type(config) in getattr(transformers, other)._model_mapping]
        raise TrainerError(f"head = {head!r}: {config.model_type!r} has {', '.join(allowed) or 'none that is known'}") from None
    if isinstance(kind, tuple):  # several, of which the first is the usual one
        kind = kind[0]
    if config._attn_implementation == "sdpa" and not kind._supports_sdpa:
        config._attn_implementation = "eager"
    if head != "embedding":
        module: nn.Module = kind(config)
        return module
    pools = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return SentenceEmbedding(kind(config, add_pooling_layer=False) if pools else kind(config))


def encoder_of(module: nn.Module) -> Any:
    """The module of transformers within what `build_module` gives."""
    return module.get_submodule(module.prefix) if isinstance(module, SentenceEmbedding) else module


def mask_padding(module: nn.Module, pad: int) -> None:
    """From now on the module masks tokens of this number itself. The first of a text always counts: where none did, attention
    would be over nothing."""
    module.register_forward_pre_hook(partial(_mask, pad), with_kwargs=True)


def _mask(pad: int, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    ids: Tensor = named["input_ids"] if "input_ids" in named else args[0]
    counts = ids != pad
    counts = torch.cat([torch.ones_like(counts[:, :1]), counts[:, 1:]], dim=1)
    return args, {**named, "attention_mask": counts.long()}


def normalize_pixels(module: nn.Module, mean: Any, std: Any) -> None:
    """From now on the module takes raw pixels in [0, 1]."""
    module.add_module("normalize", NormalizePixels(mean, std))
    module.register_forward_pre_hook(_normalize, with_kwargs=True)


def _normalize(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    normalize = module.get_submodule("normalize")
    if "pixel_values" in named:
        return args, {**named, "pixel_values": normalize(named["pixel_values"])}
    return (normalize(args[0]), *args[1:]), named


def names_of_transformers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors by the names of the module: what transformers renames while it loads (LayerNorm's gamma, layers of
    older releases), and with or without the name of the encoder before all others."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    model = encoder_of(module)
    renamings = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]
    wanted = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers()])
    before = f"{module.prefix}." if isinstance(module, SentenceEmbedding) else ""
    return {
        before + str(rename_source_key(name, renamings, [], model.base_model_prefix, wanted)[0]): tensor
        for name, tensor in tensors.items()
    }
