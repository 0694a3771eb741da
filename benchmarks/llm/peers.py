"""What people would use instead, from the same weights: onnxruntime-genai and llama.cpp, each in an environment of its own.

The environments see this one's packages, so that genai runs on the same ONNX Runtime, and its model builder finds torch.
llama.cpp is compiled for this processor, which takes 10 to 20 minutes.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.environments import environment as made
from benchmarks.llm.measured import WORK, Measured, checkpoint
from benchmarks.llm.turns import Entrant

PACKAGES = {"genai": ("onnxruntime-genai",), "llamacpp": ("llama-cpp-python",)}
COMPILING = {
    "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF "
    "-DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF"
}
BUILT = {"fp32": ("prune_lm_head=true",), "int4": ("prune_lm_head=true", "int4_accuracy_level=4", "int4_block_size=32")}
"""Options of genai's builder: logits of a prompt's last token alone, and the kernels that are fast, as ours are."""
FTYPES = {"q4_0": 2, "q8_0": 7}
"""llama.cpp's numbers of its forms of weights."""


def environment(name: str) -> Path:
    """The Python of a peer's environment, made if it is not there. Raises CalledProcessError where it cannot be installed."""
    return made(WORK / name, PACKAGES[name], COMPILING)


def versions() -> dict[str, str]:
    """Of what is installed in the peers' environments."""
    found = {}
    for name, packages in PACKAGES.items():
        for place in (WORK / name / "lib").glob("python*/site-packages"):
            for one in importlib.metadata.distributions(name=packages[0], path=[str(place)]):
                found[packages[0]] = one.version
    return found


def genai(given: Measured, precision: str) -> Entrant:
    """The best graph of its own builder: `precision` fp32 or int4."""
    python, folder = environment("genai"), given.folder / f"genai-{precision}"
    if not folder.exists():
        made = folder.with_name(folder.name + ".making")
        command = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(plain(given)), "-o", str(made), "-e", "cpu"]
        more = ["-p", precision, "-c", str(given.folder / "cache"), "--extra_options", *BUILT[precision]]
        subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
        made.rename(folder)
    return Entrant("genai", str(folder), python)


def llamacpp(given: Measured, form: str) -> Entrant:
    """`form`: f32, q8_0 or q4_0."""
    python, file = environment("llamacpp"), given.folder / f"model-{form}.gguf"
    if not file.exists():
        given.folder.mkdir(parents=True, exist_ok=True)
        made = file.with_suffix(".making")
        if form == "f32":
            write_gguf(made, checkpoint(), dict(given.nested.full.named_parameters()))
        else:
            source = llamacpp(given, "f32").model
            code = "import sys, llama_cpp; p = llama_cpp.llama_model_quantize_default_params(); p.ftype = int(sys.argv[1]); "
            code += "sys.exit(llama_cpp.llama_model_quantize(sys.argv[2].encode(), sys.argv[3].encode(), p))"
            command = [str(python), "-c", code, str(FTYPES[form]), source, str(made)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        made.rename(file)
    return Entrant("llamacpp", str(file), python)


def plain(given: Measured) -> Path:
    """The full model as transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    folder = given.folder / "plain"
    if not folder.exists():
        made = folder.with_name("plain.making")
        shutil.rmtree(made, ignore_errors=True)
        full: Any = given.nested.full
        full.save_pretrained(made)
        (made / "text.json").write_bytes(given.files["tokenizer.json"])
        PreTrainedTokenizerFast(tokenizer_file=str(made / "text.json")).save_pretrained(made)  # type: ignore[no-untyped-call]
        made.rename(folder)
    return folder


def write_gguf(path: Path, like: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file of GGUF with these weights, by the names of transformers, in 32 bits; all else as in another file."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, get_tensor_name_map

    reader = GGUFReader(like)
    said = {key: field.contents() for key, field in reader.fields.items()}
    kind = said["general.architecture"]
    writer = GGUFWriter(path, kind)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            part = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, said[key], field.types[0], sub_type=part)
    writer.add_file_type(0)
    layers, heads = (int(said[f"{kind}.{name}"]) for name in ("block_count", "attention.head_count"))
    groups = int(said[f"{kind}.attention.head_count_kv"])
    names = get_tensor_name_map(MODEL_ARCH[kind.upper()], layers)
    wanted = {tensor.name for tensor in reader.tensors}
    for name, tensor in tensors.items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias")) or ""
        array = tensor.detach().float().cpu().numpy()
        if re.search(r"attn_[qk]\.", own):
            array = _halves_as_pairs(array, heads if "attn_q" in own else groups)
        if own in wanted:
            writer.add_tensor(own, array, raw_dtype=GGMLQuantizationType.F32)
            wanted.discard(own)
    if missing := sorted(wanted):
        raise ValueError(f"{like}: has {missing[0]}, which these weights lack")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _halves_as_pairs(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp turns neighbouring numbers of a head of LLaMA, transformers those of its two halves."""
    shape = weight.shape
    turned: np.ndarray[Any, Any] = weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    return np.ascontiguousarray(turned)
