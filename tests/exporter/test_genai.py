"""A size as onnxruntime-genai opens it: the graph takes what genai feeds and answers as the bundle's does.

genai itself is not installed here; `python -m benchmarks.llm genai` installs it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

pytest.importorskip("transformers")

from exporter.bundle import Bundle, BundleError
from exporter.bundle.decoding import DecoderCall
from exporter.bundle.session import open_session, rms_error
from exporter.decoder.export import export_decoder
from exporter.decoder.genai import write_genai
from tests.helpers.language import language_family, mixed

CONFIG = {
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64, "intermediate_size": 64,
    "max_position_embeddings": 32,
}  # fmt: skip
ROOM = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    family = language_family(**CONFIG)
    family.axes = {**family.axes, "intermediate_size": (32, 64), "hidden_size": (32, 64)}
    nested = mixed(family)
    return export_decoder(
        nested,
        tmp_path_factory.mktemp("genai") / "bundle",
        precisions=("fp32", "int8-rows", "int4"),
        submodels=[nested.submodels[0], nested.submodels[-1]],
        files={"tokenizer.json": b'{"some": 1}', "chat_template.jinja": b"{{ messages }}"},
        show_progress=False,
    )


def fed_by_genai(folder: Path, texts: np.ndarray, prompt: int) -> np.ndarray:
    """(calls, N, V): a prompt, then token by token, with a mask and buffers of keys and values that are in place."""
    session = ort.InferenceSession(folder / "model.onnx")
    config = json.loads((folder / "genai_config.json").read_text())["model"]
    decoder, count = config["decoder"], len(texts)
    shape = (count, decoder["num_key_value_heads"], ROOM, decoder["head_size"])
    layers = range(decoder["num_hidden_layers"])
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    buffers = {inputs[f"past_{what}_names"] % i: np.zeros(shape, np.float32) for i in layers for what in ("key", "value")}
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in buffers.items()}
    found = []
    for begin, end in [(0, prompt), *((place, place + 1) for place in range(prompt, texts.shape[1]))]:
        binding = session.io_binding()
        binding.bind_cpu_input(inputs["input_ids"], np.ascontiguousarray(texts[:, begin:end]))
        binding.bind_cpu_input(inputs["attention_mask"], np.ones((count, end), np.int64))
        for what in ("key", "value"):
            for i in layers:
                value = values[inputs[f"past_{what}_names"] % i]
                binding.bind_ortvalue_input(inputs[f"past_{what}_names"] % i, value)
                binding.bind_ortvalue_output(outputs[f"present_{what}_names"] % i, value)
        binding.bind_output(outputs["logits"], "cpu")
        session.run_with_iobinding(binding)
        (logits,) = (value.numpy() for value in binding.get_outputs() if value.shape()[-1] == config["vocab_size"])
        assert logits.shape == (count, 1, config["vocab_size"])
        found.append(logits[:, 0])
    return np.stack(found)


def test_a_size_answers_genais_inputs_as_the_bundles_graph_does(bundle: Bundle, tmp_path: Path) -> None:
    texts = np.random.default_rng(1).integers(0, 64, (2, 9))
    for name, entry in bundle.submodels.items():
        folder = write_genai(bundle, name, tmp_path / name)
        expected = DecoderCall(open_session(bundle.graph_path(name)))
        wanted = [expected(texts[:, :6], [6, 6], [5])[:, 0]]
        wanted += [expected(texts[:, place : place + 1], [place + 1] * 2, [0])[:, 0] for place in range(6, 9)]
        assert rms_error({"logits": fed_by_genai(folder, texts, 6)}, {"logits": np.stack(wanted)}) < 1e-5, name
        assert {p.name for p in folder.iterdir()} == {
            "model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            Path(bundle.weights_path(name)).name,
        }  # fmt: skip
        model = json.loads((folder / "genai_config.json").read_text())["model"]
        said = model["decoder"]
        assert (said["num_hidden_layers"], said["hidden_size"], said["num_attention_heads"]) == tuple(
            entry.axes[axis] for axis in ("num_hidden_layers", "hidden_size", "num_attention_heads")
        )
        assert (model["eos_token_id"], model["bos_token_id"], model["context_length"]) == (2, 1, 32)
    sizes = {name: (tmp_path / name / "weights.bin").stat().st_size for name in bundle.submodels if "int" not in name}
    assert max(sizes.values()) > 1.5 * min(sizes.values())  # a small one has its own weights alone


def test_what_is_not_written_is_refused(bundle: Bundle, tmp_path: Path, bundle_path: Path) -> None:
    with pytest.raises(BundleError, match="'nobody'"):
        write_genai(bundle, "nobody", tmp_path / "out")
    name = next(iter(bundle.submodels))
    write_genai(bundle, name, tmp_path / "out")
    with pytest.raises(BundleError, match="out"):
        write_genai(bundle, name, tmp_path / "out")
    write_genai(bundle, name, tmp_path / "out", overwrite=True)
    (tmp_path / "theirs").mkdir()
    for file in ("genai_config.json", "model.onnx", "model.onnx.data"):  # as genai's own model builder names them
        (tmp_path / "theirs" / file).write_text("{}")
    with pytest.raises(BundleError, match=r"would lose genai_config\.json, model\.onnx, model\.onnx\.data, not written"):
        write_genai(bundle, name, tmp_path / "theirs", overwrite=True)
    pictures = Bundle(bundle_path)
    with pytest.raises(BundleError, match="generates no text; onnxruntime-genai opens language models alone"):
        write_genai(pictures, next(iter(pictures.submodels)), tmp_path / "none")
    assert not (tmp_path / "none").exists()
