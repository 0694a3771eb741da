"""`write_genai`: a size of a language model as onnxruntime-genai opens it: a folder with the graph, its weights and
`genai_config.json`.

The graph is the bundle's own, over weights that are cut to what it reads. genai feeds an attention mask, and nothing that says
how long texts are or which tokens get logits: nodes before the graph find that. The last token alone gets logits.

Shapes: N batch, T tokens of a call, L of them and of what was before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from exporter.bundle import Bundle, BundleError
from exporter.bundle.folder import built, check_free
from exporter.bundle.manifest import DecoderEntry
from exporter.subset import subset

MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.onnx", "genai_config.json", "tokenizer_config.json"
MASK = "attention_mask"
OF_TEXT = ("tokenizer.json", "chat_template.jinja")
FOUND = ("seqlens_k", "total_length", "rows")
"""Inputs of the bundle's graph that the mask and the tokens say."""


def write_genai(bundle: Bundle, submodel: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """The folder `out` for a sub-model. Its answers are those of the bundle's graph. With `overwrite` one that was
    written for genai is replaced.

    Raises BundleError where the bundle generates no text, for an unknown sub-model, and where `out` cannot be written.
    """
    entry, decoder = bundle.submodel(submodel), bundle.manifest.decoder
    if decoder is None:
        raise BundleError(f"{str(bundle.path)!r}: generates no text; onnxruntime-genai opens language models alone")
    out = Path(out)
    with built(out, _written, overwrite=overwrite) as made:
        _write(bundle, entry.id, made, made.parent / "cut", decoder)
    return out


def check_genai(out: Path, submodels: Iterable[str], *, overwrite: bool = False) -> None:
    """Looks, before the work, whether `write_genai` can put these into `out`, each by its name. Raises BundleError."""
    for name in submodels:
        check_free(out / name, _written, overwrite=overwrite)


def _written(folder: Path) -> set[str]:
    """The names of the files in the folder that are ours; none where its model is another program's."""
    weights = {path.name for path in folder.glob("weights*.bin")}
    return {MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE, *OF_TEXT, *weights} if weights else set()


def _write(bundle: Bundle, submodel: str, made: Path, place: Path, decoder: DecoderEntry) -> None:
    cut = subset(bundle, [submodel], place)
    model = onnx.load(cut.graph_path(submodel), load_external_data=False)
    hidden, heads = _mask_in_place_of_lengths(model.graph)
    (made / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
    weights = cut.path / cut.weights_path(submodel)
    weights.rename(made / weights.name)  # as the graph names it
    for name in OF_TEXT:
        if (bundle.path / name).is_file():
            shutil.copyfile(bundle.path / name, made / name)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": decoder.context}
    for name, said in ((CONFIG_FILE, _config(decoder, submodel, hidden, heads)), (TOKENIZER_FILE, tokenizer)):
        (made / name).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _mask_in_place_of_lengths(graph: GraphProto) -> tuple[int, int]:
    """Changes the graph; its hidden size and heads."""
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    (heads,) = (a.i for a in attention.attribute if a.name == "num_heads")
    norm = next(node for node in graph.node if node.op_type == "SimplifiedLayerNormalization")
    (hidden,) = (t.dims[-1] for t in graph.initializer if t.name == norm.input[1])
    kept = [value for value in graph.input if value.name not in FOUND]
    mask = helper.make_tensor_value_info(MASK, TensorProto.INT64, ["batch", "length"])
    del graph.input[:]
    graph.input.extend([kept[0], mask, *kept[1:]])
    constants = {"one": np.array([1], np.int64), "first": np.array(1, np.int64), "last": np.array([-1], np.int64)}
    graph.initializer.extend(numpy_helper.from_array(array, f"{MASK}.{name}") for name, array in constants.items())

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, inputs, [output], **attributes)

    one, first, last = (f"{MASK}.{name}" for name in constants)
    nodes = [
        node("ReduceSum", [MASK, one], f"{MASK}.sum", keepdims=0),  # (N,)
        node("Sub", [f"{MASK}.sum", one], f"{MASK}.place"),
        node("Cast", [f"{MASK}.place"], "seqlens_k", to=TensorProto.INT32),
        node("Shape", [MASK], f"{MASK}.shape"),
        node("Gather", [f"{MASK}.shape", first], f"{MASK}.length", axis=0),
        node("Cast", [f"{MASK}.length"], "total_length", to=TensorProto.INT32),
        node("Identity", [last], "rows"),
    ]
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].Clear()
            output.type.tensor_type.shape.dim[1].dim_value = 1
    return int(hidden), int(heads)


def _config(decoder: DecoderEntry, submodel: str, hidden: int, heads: int) -> dict[str, Any]:
    """As genai's own model builder writes it."""
    own = decoder.graph[submodel]
    eos = list(decoder.eos)
    pad = decoder.pad if decoder.pad is not None else (eos or [0])[0]
    cache = {f"{when}_{what}_names": f"{when}.%d.{what}" for when in ("past", "present") for what in ("key", "value")}
    return {
        "model": {
            "type": "llama",
            "vocab_size": decoder.vocabulary,
            "context_length": decoder.context,
            "bos_token_id": decoder.bos if decoder.bos is not None else pad,
            "eos_token_id": eos[0] if len(eos) == 1 else eos,
            "pad_token_id": pad,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL_FILE,
                "head_size": decoder.head_size,
                "hidden_size": hidden,
                "num_attention_heads": heads,
                "num_key_value_heads": own.kv_heads,
                "num_hidden_layers": own.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    MASK: MASK,
                    **{name: value for name, value in cache.items() if name.startswith("past")},
                },
                "outputs": {"logits": "logits", **{n: v for n, v in cache.items() if n.startswith("present")}},
            },
        },
        "search": {
            "do_sample": False,
            "max_length": decoder.context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }
