"""The model, its grid of sizes, the order of its units, and the original, which teaches.

`LLM_TINY=1`: a random one of 7 small layers, to try what is done with it.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.llm.data import WORK, gguf
from trainer import NestedModel, SubModel
from trainer.checkpoint import load_tensors, save_tensors
from trainer.family import DataSpec, Family, find_family
from trainer.importance import reorder, sort_by_importance
from trainer.initialisation import WithoutInitialisation
from trainer.order import Orders
from trainer.symmetry import find_symmetry
from trainer.tasks import LanguageModelling

DEPTH, INNER, HEADS = "num_hidden_layers", "intermediate_size", "num_attention_heads"
GRID = {DEPTH: (4, 8, 12, 16, 20, 25, 30), INNER: (512, 1536), HEADS: (3, 9)}
TINY: Mapping[str, Any] = {
    "hidden_size": 72, "num_hidden_layers": 7, "intermediate_size": 64, "num_attention_heads": 9, "num_key_value_heads": 3,
    "head_dim": 16,
}  # fmt: skip
TINY_GRID = {DEPTH: (1, 2, 3, 4, 5, 6, 7), INNER: (32, 64), HEADS: (3, 9)}
NAMED = ((0, 0, 0), (1, 1, 1), (2, 1, 0), (3, 0, 1), (4, 1, 1), (5, 0, 0))
"""The sizes that are trained alone too, by their places in the grid: at every depth but the full one another width."""

ORDER = WORK / "order.safetensors"


def tiny() -> bool:
    return bool(os.environ.get("LLM_TINY"))


def config() -> dict[str, Any]:
    """Of the full model, as a checkpoint's `config.json`."""
    path = WORK / "config.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    else:
        from trainer.gguf import gguf_config

        found = gguf_config(gguf())
    return {**found, **TINY} if tiny() else found


def family(length: int, positions: int = 0, **other: Any) -> Family:
    """`llama` over the grid. `other`: fields of the configuration that are another's."""
    of_model = {**config(), **other}
    ids = {"input_ids": (length,)}
    spec = DataSpec((length,), 0, vocabulary=of_model["vocab_size"], inputs=ids, target_shape=(length,), next_token=True)
    found = find_family("llama").for_data(spec, config=of_model, fixed=["hidden_size"])
    found.with_task(LanguageModelling(positions=positions))
    return found if other else found.with_grid(TINY_GRID if tiny() else GRID)


def original(length: int, positions: int = 0) -> NestedModel:
    """The nested model with the original's weights, its units as they were."""
    torch.manual_seed(0)
    with WithoutInitialisation() if not tiny() else torch.random.fork_rng(devices=[]):
        nested = NestedModel(family(length, positions))
    if not tiny():
        tensors = weights()
        with torch.no_grad():
            for name, parameter in nested.full.named_parameters():
                parameter.copy_(tensors[name])
    return nested.eval()


def weights() -> Mapping[str, Tensor]:
    """Of the GGUF file, by the names of transformers. Kept beside it as numbers: several processes begin with them."""
    known = WORK / "original.safetensors"
    if not known.exists():
        save_tensors(read_gguf(gguf(), config()), known)
    return load_tensors(known)[0]


def read_gguf(path: Path, said: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a LLaMA, as `trainer.gguf` has them from transformers, in seconds; rows of queries and keys are put back
    from llama.cpp's order of rotary halves."""
    from gguf import GGUFReader, dequantize

    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    heads = {"attn_q": said["num_attention_heads"], "attn_k": said["num_key_value_heads"]}
    found: dict[str, Tensor] = {}
    for tensor in GGUFReader(str(path)).tensors:
        stem = tensor.name.removesuffix(".weight")
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if stem.startswith("blk."):
            _, layer, kind = stem.split(".")
            if kind in heads:
                half = values.shape[0] // heads[kind] // 2
                values = values.reshape(heads[kind], half, 2, -1).swapaxes(1, 2).reshape(values.shape)
            found[f"model.layers.{layer}.{names[kind]}.weight"] = torch.from_numpy(np.ascontiguousarray(values))
        elif stem in outer:
            found[f"{outer[stem]}.weight"] = torch.from_numpy(values)
    return found


def teacher_of(nested: NestedModel) -> nn.Module:
    """A frozen copy of the full model, whatever becomes of it."""
    return copy.deepcopy(nested.full).eval().requires_grad_(False)


def orders() -> Orders:
    return {name: order.long().numpy() for name, order in load_tensors(ORDER)[0].items()}


def put_in_order(nested: NestedModel, known: Orders) -> float:
    """Returns by how much the full model's answers changed."""
    with exactly():
        return reorder(nested, find_symmetry(nested), known)


@contextmanager
def exactly() -> Iterator[None]:
    """Within: products of matrices in single precision, not in TF32: whether a new order changes an answer is to be seen."""
    was = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(was)


def sort(nested: NestedModel, examples: Any) -> Orders:
    """Puts the units in the order of their importance, and keeps it in a file."""
    with exactly():
        sorting = sort_by_importance(nested, examples)
    ORDER.parent.mkdir(parents=True, exist_ok=True)
    save_tensors({name: torch.from_numpy(order).to(torch.int16) for name, order in sorting.orders.items()}, ORDER)
    print(f"sorted {len(sorting.groups)} groups by {sorting.criterion}, changed by {sorting.error:.1e}", flush=True)
    for name, why in sorting.fixed.items():
        print(f"not sorted: {name}: {why}", flush=True)
    return sorting.orders


def named(nested: NestedModel) -> list[SubModel]:
    axes, order = nested.family.axes, (DEPTH, INNER, HEADS)
    return [SubModel(**{axis: axes[axis][places[order.index(axis)]] for axis in axes}) for places in NAMED]


def alone(start: NestedModel, sub: SubModel, length: int, positions: int) -> NestedModel:
    """The size as a model of its own, whose largest it is, with the weights that it has in `start`."""
    said = config()
    share = said["num_attention_heads"] // said["num_key_value_heads"]
    sizes = {DEPTH: int(sub[DEPTH]), INNER: int(sub[INNER]), HEADS: int(sub[HEADS])}  # type: ignore[arg-type]
    dim = said.get("head_dim") or said["hidden_size"] // said["num_attention_heads"]
    with WithoutInitialisation():
        nested = NestedModel(family(length, positions, **sizes, num_key_value_heads=sizes[HEADS] // share, head_dim=dim))
    own, theirs = dict(nested.full.named_parameters()), start.view(sub)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(theirs[name])
    return nested.to(next(start.full.parameters()).device)
