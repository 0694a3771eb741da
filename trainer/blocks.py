"""The blocks that a network is a stack of: what stands in its outermost `ModuleList`s, the inputs' side first."""

from __future__ import annotations

from torch import nn


def named_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """By name, in the order in which they are registered; none where the network has no `ModuleList`."""
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        blocks = dict(child.named_children()) if isinstance(child, nn.ModuleList) else named_blocks(child)
        found |= {f"{name}.{inner}": block for inner, block in blocks.items()}
    return found


def blocks_above(module: nn.Module) -> dict[str, int]:
    """For each parameter, how many blocks lie above it: all of them above embeddings and whatever else comes before the first
    block, none above the last block, a norm after it, and the head."""
    blocks = list(named_blocks(module))
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, int] = {}
    begun = False
    for name, parameter in module.named_parameters():
        place = next((i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), None)
        begun = begun or place is not None
        if place is not None:
            found[name] = len(blocks) - 1 - place
        else:
            found[name] = 0 if begun and id(parameter) not in embeddings else len(blocks)
    return found
