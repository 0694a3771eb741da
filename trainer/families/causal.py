"""Language models of transformers: logits at chosen places alone, and of every depth from one pass.

Shapes: N batch, T tokens, d hidden size, V vocabulary, M places, K depths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.blocks import named_blocks
from trainer.submodel import TrainerError

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""How a decoder calls what stands between its last layer and the head."""


def refuse_both_ways(config: Any) -> None:
    """Raises TrainerError for an encoder, each of whose tokens sees those that follow it."""
    from transformers import AutoModelForMaskedLM

    if type(config) in AutoModelForMaskedLM._model_mapping:
        raise TrainerError(
            f"head = 'causal': in {config.model_type!r} a token sees those that follow it; allowed are decoders: llama, "
            "mistral, qwen2, qwen3, smollm3 and their like"
        )


def final_norm(module: Any) -> nn.Module | None:
    """What stands between the last layer and the head; None where it is not known."""
    decoder = getattr(module, module.base_model_prefix, None)
    found = next((getattr(decoder, name) for name in NORMS if hasattr(decoder, name)), None)
    return found if isinstance(found, nn.Module) else None


@contextmanager
def at_positions(module: nn.Module, positions: Tensor) -> Iterator[bool]:
    """Within: the module computes logits where `positions` (N, T) are true alone: (1, M, V), or (K, M, V) of K depths. Gives
    whether it does; False for a module without a head."""
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        yield False
        return

    def chosen(_head: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        hidden = given[0]  # (K * N, T, d)
        return hidden.reshape(-1, *positions.shape, hidden.shape[-1])[:, positions]

    handle = head.register_forward_pre_hook(chosen)
    try:
        yield True
    finally:
        handle.remove()


@contextmanager
def leaving_at(module: nn.Module, depths: Sequence[int]) -> Iterator[None]:
    """Within: a pass yields what the head says after each of these numbers of layers, one behind the other along the batch:
    (K * N, T, V). Each is what a module of so many layers would say."""
    blocks, norm = list(named_blocks(module).values()), final_norm(module)
    assert norm is not None
    left: dict[int, Tensor] = {}

    def keep(depth: int) -> Any:
        return lambda _block, _given, result: left.__setitem__(depth, result if isinstance(result, Tensor) else result[0])

    def together(_norm: nn.Module, _given: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([left[depth] for depth in depths])

    handles = [blocks[depth - 1].register_forward_hook(keep(depth)) for depth in set(depths)]
    handles.append(norm.register_forward_pre_hook(together))
    try:
        yield
    finally:
        left.clear()
        for handle in handles:
            handle.remove()
