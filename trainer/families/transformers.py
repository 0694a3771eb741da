"""`transformers`, and by name `bert`, `roberta`, `distilbert`, `vit`, `llama`: any architecture of Hugging Face that a smaller
configuration builds smaller.

Shapes: N batch, T tokens, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from trainer.families.architecture import (
    DEPTH,
    HEADS,
    HIDDEN,
    LONGEST,
    SPELLINGS,
    architecture,
    checked,
    default_axes,
    from_scratch,
    read_config,
)
from trainer.families.attention import Layout, blocks_of, find_layout, fit_biases, fit_heads
from trainer.families.causal import at_positions, final_norm, leaving_at
from trainer.families.encoders import (
    CAUSAL,
    HEADS_OF,
    build_module,
    check_outputs,
    check_pooling,
    encoder_of,
    head_for,
    mask_padding,
    names_of_transformers,
    normalize_pixels,
)
from trainer.families.images import whole_numbers
from trainer.family import DataSpec, Family
from trainer.hidden import collected
from trainer.initialisation import WithoutInitialisation
from trainer.submodel import AxisValue, SubModel, TrainerError
from trainer.task import Task, find_task, own

EXAMPLE = 64
"""Tokens of a language model's example at most: each has as many outputs as there are words."""


class Transformers(Family):
    """Axes are the configuration's sizes: `num_hidden_layers` (the first ones are kept), `intermediate_size`,
    `num_attention_heads` (heads of keys and values follow in whole groups) and `hidden_size`, whatever this architecture calls
    them. The size of a head is the full model's at every size.

    `config`: what the checkpoint's `config.json` says. `head`: by default it classifies, texts or pictures. `tokens`: of the
    longest example; 0: 128, or as many as there are positions. `mask`: whether the data give an attention mask; else padding
    (the configuration's pad_token_id) is masked by the network. `pairs`: whether they give token types. `fixed`: axes that are
    none here. `input_shape`, `mean`, `std`: of pictures.
    """

    model_types: ClassVar[Sequence[str]] = ()
    """The only ones that are taken; none: any."""

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        head: str = "",
        labels: int = 2,
        tokens: int = 0,
        pairs: bool = False,
        mask: bool = True,
        attention: str = "sdpa",
        fixed: Sequence[str] = (),
        input_shape: Sequence[int] = (),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        if head and head not in HEADS_OF:
            raise TrainerError(f"head = {head!r}: allowed are {', '.join(HEADS_OF)}")
        if attention not in ("sdpa", "eager"):
            raise TrainerError(f"attention = {attention!r}: allowed are sdpa, eager")
        if unknown := [axis for axis in fixed if axis not in SPELLINGS]:
            raise TrainerError(f"fixed = {list(fixed)}: {unknown[0]!r} is no axis; allowed are {', '.join(SPELLINGS)}")
        for name, number in (("labels", labels), ("tokens", tokens or LONGEST)):
            whole_numbers(name, number)
        self.given = checked(config, self.model_types)
        self.labels, self.tokens, self.pairs, self.mask = labels, tokens, pairs, mask
        self.attention, self.fixed = attention, tuple(fixed)
        self.architecture = architecture(self.given, attention)
        self.head = head or head_for(self.usual_task or "classification", self._takes_pixels, "")
        self.input_shape, self.mean, self.std = tuple(input_shape) or self._shape_of_pictures(), tuple(mean), tuple(std)
        self.axes = {
            axis: values for axis, values in default_axes(self.architecture, self.head == CAUSAL).items() if axis not in fixed
        }
        self.task = find_task(HEADS_OF[self.head][1])()
        self._check_inputs()
        self.axes = {axis: values for axis, values in self.axes.items() if axis in self.layout.axes}
        if not self._takes_pixels:
            self.dynamic_axes = {name: {0: "batch", 1: "sequence"} for name in self.example_inputs(1)}

    @classmethod
    def for_data(
        cls, spec: DataSpec, checkpoint: str | Path | None = None, config: Mapping[str, Any] | None = None, **settings: Any
    ) -> Self:
        """`checkpoint`: a folder whose configuration is taken; `config.NAME`: a field of it that is to be another."""
        asked = {name.removeprefix("config."): settings.pop(name) for name in list(settings) if name.startswith("config.")}
        images = len(spec.input_shape) == 3
        if config is None and checkpoint is not None:
            config = read_config(Path(checkpoint))
        elif config is None:
            kind = asked.get("model_type") or next(iter(cls.model_types), None)
            config = from_scratch(kind, spec) if kind else {}
        config = {**config, **asked}
        of_data: dict[str, Any] = {"config": config, "labels": spec.outputs or 2}
        of_data["head"] = head_for(cls.usual_task, images, "") if cls.usual_task else _head_of(spec)
        if images:
            of_data |= {"input_shape": list(spec.input_shape), "mean": list(spec.mean), "std": list(spec.std)}
        else:
            if (held := config.get("vocab_size")) is not None and spec.vocabulary > held:
                raise TrainerError(
                    f"vocabulary: the tokenizer knows {spec.vocabulary} tokens, the model {held} (vocab_size); they do not "
                    "belong together: give the tokenizer of the checkpoint"
                )
            of_data |= {"tokens": spec.input_shape[0], "mask": "attention_mask" in spec.inputs}
            of_data["pairs"] = "token_type_ids" in spec.inputs
        return cls.configured({**of_data, **settings})

    @classmethod
    def usual_options(cls, pretrained: bool) -> Mapping[str, Any]:
        """As encoders are fine-tuned (Devlin et al. 2019, arXiv 1810.04805, appendix A.3), with the higher rate that small ones
        take; from random numbers a higher one still."""
        return {"optimizer": "adamw", "lr": 1e-4 if pretrained else 5e-4, "weight_decay": 0.01, "warmup": 0.1, "batch_size": 32}

    def build(self, sub: SubModel) -> nn.Module:
        found = self.architecture
        config, heads = found.config(sub), int(sub.axes.get(HEADS, found.sizes[HEADS]))  # type: ignore[arg-type]
        divides = getattr(config, HIDDEN) % heads == 0
        if not divides:  # what some modules refuse; what depends on it is replaced
            setattr(config, HEADS, 1)
        module = build_module(config, self.head, self.labels)
        fit_heads(module, heads, found)
        if not divides:
            fit_biases(module, heads, self._full_on_meta, found.sizes[HEADS])
        setattr(config, HEADS, heads)
        if self._takes_pixels:
            if self.mean:
                normalize_pixels(module, self.mean, self.std)
        elif not self.mask and self.head != CAUSAL:  # there padding only follows what is asked for, which does not see it
            mask_padding(module, self._pad)
        return module

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        """Every second text is shorter by a third, and padded; of a language model without a mask none."""
        if self._takes_pixels:
            return {"pixel_values": torch.rand(batch_size, *self.input_shape)}
        tokens = min(self.tokens, EXAMPLE) if self.head == CAUSAL else self.tokens
        ids = torch.randint(0, self.architecture.full.vocab_size, (batch_size, tokens))
        ids[ids == self._pad] = (self._pad + 1) % self.architecture.full.vocab_size
        mask = torch.ones_like(ids)
        if self.head == CAUSAL and not self.mask:
            return {"input_ids": ids}
        mask[1::2, tokens - tokens // 3 :] = 0
        inputs = {"input_ids": torch.where(mask == 1, ids, self._pad)}
        if self.mask:
            inputs["attention_mask"] = mask
        if self.pairs:
            inputs["token_type_ids"] = mask * (torch.arange(tokens) >= tokens // 2)
        return inputs

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        found: dict[str, dict[int, Sequence[int]]] = {}
        for (name, place), axis in self.layout.fused.items():
            found.setdefault(name, {})[place] = blocks_of(self.architecture, name, axis, sub)
        return found

    def config(self) -> dict[str, Any]:
        return {
            "config": dict(self.given),
            "head": self.head,
            "labels": self.labels,
            "tokens": self.tokens,
            "pairs": self.pairs,
            "mask": self.mask,
            "attention": self.attention,
            "fixed": list(self.fixed),
            "input_shape": list(self.input_shape),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def with_task(self, task: Task) -> Self:
        """The head follows the task."""
        head = head_for(task.kind, self._takes_pixels, self.head)
        check_outputs(task, head, self.architecture.full.model_type)
        if head != self.head:
            self.head = head
            for name in ("layout", "_full_on_meta"):
                self.__dict__.pop(name, None)
            self._check_inputs()
            _ = self.layout  # refuses an architecture without that head now
        return super().with_task(task)

    def with_grid(self, grid: Mapping[str, Sequence[AxisValue]]) -> Self:
        """Axes may be spelt as the configuration does."""
        standard = {name: axis for axis, names in SPELLINGS.items() for name in names}
        return super().with_grid({standard.get(name, name): values for name, values in grid.items()})

    def check(self, sub: SubModel) -> None:
        super().check(sub)
        group, heads = self.architecture.group, sub.axes.get(HEADS, 0)
        if isinstance(heads, int) and heads % group:
            raise TrainerError(
                f"axis {HEADS!r} = {heads}: allowed are multiples of {group}, heads that share one of keys and values"
            )

    def of_the_head(self, name: str) -> bool:
        """Whether a parameter is begun anew where a checkpoint has none: of the head, or of the pooler before it."""
        if self.head == CAUSAL:  # a vocabulary has one
            return False
        prefix = encoder_of(self._full_on_meta).base_model_prefix
        return not name.startswith(f"{prefix}.") or ".pooler." in name

    def renamed(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return names_of_transformers(module, tensors)

    def check_checkpoint(self, folder: Path) -> None:
        if self.head == "embedding":
            check_pooling(folder)

    def hidden_states(self, module: nn.Module) -> AbstractContextManager[list[Tensor]]:
        """Within: each call of a module of this family (at any size) puts what its layers give, (N, T, D) each and the first
        layer's first, into the list, in place of those of the call before."""
        return collected(_layers(module))

    @property
    def narrows(self) -> bool:
        return self.head == CAUSAL

    @property
    def outputs_per_token(self) -> int:
        return int(self.architecture.full.vocab_size) if self.head == CAUSAL else 1

    def at_positions(self, module: nn.Module, positions: Tensor) -> AbstractContextManager[bool]:
        return at_positions(module, positions) if self.narrows else super().at_positions(module, positions)

    def passes(self, submodels: Sequence[SubModel]) -> list[list[SubModel]]:
        """Of a language model those that differ in depth alone, the deepest first."""
        if self.head != CAUSAL or DEPTH not in self.axes or final_norm(self._full_on_meta) is None:
            return super().passes(submodels)
        found: dict[tuple[Any, ...], list[SubModel]] = {}
        for sub in submodels:
            found.setdefault(tuple(value for axis, value in sub.axes.items() if axis != DEPTH), []).append(sub)
        return [sorted(group, key=_depth, reverse=True) for group in found.values()]

    def leaving_at(self, module: nn.Module, submodels: Sequence[SubModel]) -> AbstractContextManager[None]:
        return leaving_at(module, [_depth(sub) for sub in submodels]) if len(submodels) > 1 else nullcontext()

    @cached_property
    def layout(self) -> Layout:
        """How parameters are cut; building it refuses what cannot be nested."""
        axes = {axis: [int(v) for v in values] for axis, values in self.axes.items()}  # type: ignore[arg-type]
        return find_layout(self.architecture, axes, self._shapes)

    @cached_property
    def _full_on_meta(self) -> nn.Module:
        return self._on_meta(self.largest)

    def _on_meta(self, sub: SubModel) -> nn.Module:
        kind = self.architecture.full.model_type
        with own(f"{type(self).__name__}: {kind!r} as {sub.id}"), torch.device("meta"), WithoutInitialisation():
            return self.build(sub)

    def _shapes(self, sub: SubModel) -> dict[str, tuple[int, ...]]:
        module = self._full_on_meta if sub == self.largest else self._on_meta(sub)
        return {name: tuple(p.shape) for name, p in module.named_parameters()}

    @property
    def _takes_pixels(self) -> bool:
        full = self.architecture.full
        return hasattr(full, "patch_size") and hasattr(full, "image_size")

    @property
    def _pad(self) -> int:
        return getattr(self.architecture.full, "pad_token_id", None) or 0

    def _shape_of_pictures(self) -> tuple[int, ...]:
        full = self.architecture.full
        if not self._takes_pixels:
            return ()
        sides = full.image_size if isinstance(full.image_size, (list, tuple)) else (full.image_size, full.image_size)
        return (full.num_channels, *sides)

    def _check_inputs(self) -> None:
        """Raises TrainerError for a head, or for examples, that the configuration does not take."""
        kind = self.architecture.full.model_type
        if self._takes_pixels:
            if self.head not in ("image-classification",):
                raise TrainerError(f"head = {self.head!r}: {kind!r} is for pictures; allowed is image-classification")
            if self.input_shape != (wanted := self._shape_of_pictures()):
                raise TrainerError(
                    f"input_shape = {self.input_shape}: the configuration's pictures are {wanted} (channels, height, width): "
                    "--data-option size=… makes them so"
                )
            return
        if self.input_shape or self.head == "image-classification":
            raise TrainerError(f"head = {self.head!r}: {kind!r} is for text; pictures of {self.input_shape} are none")
        if self.pairs and not getattr(self.architecture.full, "type_vocab_size", 0) > 1:
            raise TrainerError(f"pairs: {kind!r} has no token types (type_vocab_size); allowed are data without token_type_ids")
        most = _positions(self._full_on_meta)
        self.tokens = self.tokens or min(LONGEST, most or LONGEST)
        if most is not None and self.tokens > most:
            raise TrainerError(
                f"tokens = {self.tokens}: the model has positions for {most}; --data-option max_tokens={most} cuts"
            )


def _depth(sub: SubModel) -> int:
    return int(sub.axes[DEPTH])  # type: ignore[arg-type]


def _layers(module: nn.Module) -> nn.ModuleList:
    """Of an encoder: the list that holds most of its parameters."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=lambda part: sum(p.numel() for p in part.parameters()))


def _positions(module: nn.Module) -> int | None:
    """How many tokens a text may have; None where any number. RoBERTa and its like count from the one after padding's."""
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    return None


def _head_of(spec: DataSpec) -> str:
    """What the data are for, where no task was named."""
    if len(spec.input_shape) == 3:
        return "image-classification"
    if spec.next_token:
        return CAUSAL
    return "token-classification" if spec.classes and spec.target_shape == spec.input_shape else "sequence-classification"
