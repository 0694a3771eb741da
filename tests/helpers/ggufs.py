"""Files of GGUF at sizes for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.language import SIZES, TEMPLATE, language_tokenizer


def write_gguf(path: Path, architecture: str = "llama", *, without: str = "", extra: str = "", **keys: Any) -> Any:
    """A file as llama.cpp's converter writes it, of a random model that is returned. `without`: tensors that are left out, by
    the beginning of their names; `extra`: one that the model does not have."""
    tokenizer = language_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    torch.manual_seed(1)
    config = AutoConfig.for_model("llama", **{**SIZES, "vocab_size": len(vocabulary), "rms_norm_eps": 1e-5})
    model = AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([gguf.TokenType.CONTROL if number == 0 else gguf.TokenType.NORMAL for _, number in vocabulary])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for key, value in keys.items():
        writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        for heads, leaf in ((config.num_attention_heads, "q_proj"), (config.num_key_value_heads, "k_proj")):
            if leaf in name:  # llama.cpp has the two numbers that a position turns beside each other
                tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        theirs = (
            name.replace("model.layers.", "blk.")
            .replace("model.embed_tokens", "token_embd")
            .replace("model.norm", "output_norm")
        )
        for ours, its in names.items():
            theirs = theirs.replace(f".{ours}.", f".{its}.")
        if not without or not theirs.startswith(without):
            writer.add_tensor(theirs, tensor.contiguous().numpy())
    if extra:
        writer.add_tensor(extra, torch.zeros(config.hidden_size).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
