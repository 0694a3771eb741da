"""Language models as graphs that decode: equal to torch at every size, in whole, in parts, in every precision.

Shapes: N texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("transformers")

from exporter import ExportError, export
from exporter.bundle import Bundle, BundleError
from exporter.bundle.decoding import KEPT, selftest_outputs
from exporter.bundle.manifest import sealed
from exporter.bundle.session import open_session, relative_error, rms_error
from exporter.bundle.verify import self_test
from exporter.decoder import PRECISIONS, shape_of, write_decoder
from exporter.decoder.check import example_texts, problem_of
from exporter.decoder.export import DecodingOptions, export_decoder
from exporter.decoder.rotary import rotary_caches
from exporter.subset import subset
from selector.choose.inspection import inspect
from tests.helpers.language import DECODER_SIZES as SIZES
from tests.helpers.language import decoder_model as nested_model
from tests.helpers.language import sequences
from trainer import NestedModel
from trainer.evaluate import scores_of

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "with biases, and a head of its own": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "positions scaled linearly": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "positions scaled dynamically": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "positions as LLaMA 3": ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}}),
    "positions as YaRN": ("llama", {"rope_scaling": YARN}),
    "a window": ("mistral", {"sliding_window": 6}),
    "biases of queries, and windows above": (
        "qwen2",
        {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "normed queries and keys": ("qwen3", {}),
    "a layer without positions": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
}


def logits(nested: NestedModel, name: str, texts: np.ndarray) -> np.ndarray:
    sub = next(sub for sub in nested.submodels if sub.id == name)
    with torch.no_grad():
        found: np.ndarray = nested.eval().outputs({"input_ids": torch.from_numpy(texts)}, sub)["logits"].numpy()
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_of_every_variant_equal_torch(variant: str, tmp_path: Path) -> None:
    kind, config = VARIANTS[variant]
    nested = nested_model(kind, **config)
    found = nested.family.architecture  # type: ignore[attr-defined]
    subs = [nested.submodels[0], nested.submodels[-1]]
    sizes = {sub.id: shape_of(found.config(sub), found.head_dim) for sub in subs}
    full = sizes[subs[-1].id]
    rotary = rotary_caches(nested.full.model.rotary_emb, full.context)  # type: ignore[union-attr]
    tensors = dict(nested.full.named_parameters(remove_duplicate=False))
    written = write_decoder(tmp_path, full, tensors, rotary, sizes)
    texts = example_texts(full.vocabulary, full.context)
    for one in written:
        expected = logits(nested, one.id, texts)
        assert problem_of(open_session(one.graph), texts, expected, 1e-4) == ""
        wrong = expected.copy()
        wrong[0, -1, 0] += 0.01 * np.abs(expected).max()
        assert "differs from torch by 1.00e-02" in problem_of(open_session(one.graph), texts, wrong)


@pytest.fixture(scope="module")
def nested() -> NestedModel:
    return nested_model()


@pytest.fixture(scope="module")
def bundle(nested: NestedModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three sizes in every precision, in two parts too."""
    chosen = [nested.submodels[0], nested.submodels[-4], nested.submodels[-1]]
    return export_decoder(
        nested,
        tmp_path_factory.mktemp("decoder") / "bundle",
        test_data=sequences(),
        precisions=PRECISIONS,
        options=DecodingOptions(segments=(1,)),
        submodels=chosen,
        files={"tokenizer.json": b"{}"},
        show_progress=False,
    )


def test_a_device_is_told_what_its_loop_needs(bundle: Bundle) -> None:
    found = bundle.decoder
    assert found is not None
    assert (found.layers, found.kv_heads, found.head_size, found.context, found.vocabulary) == (3, 2, 16, 64, 64)
    assert (found.bos, found.eos, found.pad) == (1, (2,), 0)
    assert {name: (g.layers, g.kv_heads) for name, g in found.graph.items()} == {
        name: (entry.axes["num_hidden_layers"], int(entry.axes["num_attention_heads"]) // 2)  # type: ignore[arg-type]
        for name, entry in bundle.submodels.items()
    }
    assert bundle.manifest.task.kind == "language-modelling"
    assert {entry.precision for entry in bundle.manifest.submodels} == set(PRECISIONS)
    assert inspect(bundle)["decoder"]["graph"].keys() == bundle.submodels.keys()
    deeper = [entry for entry in bundle.manifest.submodels if entry.axes["num_hidden_layers"] != 1]
    assert deeper
    assert all([s.layer for s in entry.segments] == [1] for entry in deeper)


def test_every_precision_is_near_torch_at_every_size(nested: NestedModel, bundle: Bundle) -> None:
    """As near at a small size as at the full one: its weights are prefixes of that one's, factors included."""
    inputs, expected = bundle.selftest()
    texts = np.concatenate([inputs["input_ids"], inputs["next_ids"]], axis=1)
    allowed = {"fp32": 1e-5, "int8-rows": 0.15, "int8": 0.1, "int4": 0.6}
    for name, entry in bundle.submodels.items():
        truth = logits(nested, entry.fp32_id, texts)
        wanted = {"prefill": truth[:, -2], "step": truth[:, -1]}
        found = selftest_outputs(open_session(bundle.graph_path(name)), inputs)
        assert rms_error(found, wanted) <= allowed[entry.precision], name
        assert relative_error(expected[entry.fp32_id], wanted) < 1e-5
        assert (entry.int8_error is None) == (entry.precision == "fp32")
        for segment in entry.segments:
            parts = [open_session(bundle.path / path) for path in (segment.lower, segment.upper)]
            assert rms_error(selftest_outputs(parts[0], inputs, parts[1]), found) <= allowed[entry.precision] / 2, name


def test_a_self_test_keeps_some_logits_of_a_large_vocabulary(bundle: Bundle, tmp_path: Path) -> None:
    """The same ones everywhere. Bundles of earlier versions kept all, and are verified by these."""
    small = nested_model(vocab_size=3000)
    subs = [small.submodels[0], small.submodels[-1]]
    made = export_decoder(small, tmp_path / "bundle", submodels=subs, precisions=("fp32", "int4"), show_progress=False)
    inputs, expected = made.selftest()
    texts = np.concatenate([inputs["input_ids"], inputs["next_ids"]], axis=1)
    for sub in subs:
        truth = logits(small, sub.id, texts)[:, -1]
        kept = np.linspace(0, 2999, KEPT).astype(int)
        assert expected[sub.id]["step"].shape == (2, KEPT)
        np.testing.assert_allclose(expected[sub.id]["step"], truth[:, kept], atol=1e-4 * np.abs(truth).max())
    assert self_test(made).submodels == 4
    every = {f"input/{name}": array for name, array in inputs.items()}
    for name in made.submodels:
        found = selftest_outputs(open_session(made.graph_path(name)), inputs, most=3000)
        every |= {f"output/{name}/{output}": array for output, array in found.items()}
    np.savez(made.path / "selftest.npz", **every)  # type: ignore[arg-type]
    earlier = Bundle(made.path, verify=False)
    assert earlier.selftest()[1][subs[0].id]["step"].shape == (2, 3000)
    assert self_test(earlier).submodels == 4
    every[f"output/{subs[0].id}/step"][:, 1] *= 9  # one that is not kept today
    np.savez(made.path / "selftest.npz", **every)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="are off by"):
        self_test(Bundle(made.path, verify=False))


def test_quality_is_that_of_torch(nested: NestedModel, bundle: Bundle) -> None:
    subs = [sub for sub in nested.submodels if sub.id in bundle.submodels]
    for sub, score in scores_of(nested.eval(), subs, sequences()).items():
        entry = bundle.submodels[sub.id]
        assert entry.quality == pytest.approx(score.quality, rel=1e-4)
        assert entry.metrics["perplexity"] == pytest.approx(score.metrics["perplexity"], rel=1e-4)
    assert bundle.submodels[subs[-1].id].metrics["agreement"] == 1
    assert all(0 <= entry.metrics["agreement"] <= 1 for entry in bundle.manifest.submodels)
    assert bundle.decoder is not None
    assert bundle.decoder.quality_tokens == 6 * 9 - 5 - 8


def test_all_sizes_share_one_file_for_each_precision(nested: NestedModel, bundle: Bundle) -> None:
    parameters = sum(p.numel() for p in nested.full.parameters())
    sizes = {precision: (bundle.path / bundle.manifest.weights_of(precision)).stat().st_size for precision in PRECISIONS}
    assert len({bundle.manifest.weights_of(precision) for precision in PRECISIONS}) == 4
    angles = 2 * 4 * 64 * 8
    for precision, of_weight in {"fp32": 4, "int8-rows": 1.15, "int8": 1.15, "int4": 0.66}.items():
        assert sizes[precision] - angles <= 1.1 * parameters * of_weight, precision
    assert bundle.weights_bytes == sum(sizes.values())


def test_verify_runs_every_graph_and_every_part(bundle: Bundle) -> None:
    found = self_test(bundle)
    assert found.submodels == 12
    assert found.largest_error < 1e-5


@pytest.mark.parametrize("what", ["weights", "part"])
def test_verify_notices_other_numbers(what: str, bundle: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle.path, damaged)
    entry = next(entry for entry in bundle.manifest.submodels if entry.segments)
    if what == "weights":
        path = damaged / bundle.manifest.weights
        content = bytearray(path.read_bytes())
        content[: 4 * 64 * 64] = bytes(4 * 64 * 64)  # the embedding
        path.write_bytes(content)
    else:
        model = onnx.load(damaged / entry.segments[0].upper, load_external_data=False)
        norm = next(node for node in model.graph.node if node.op_type == "SimplifiedLayerNormalization")
        next(a for a in norm.attribute if a.name == "epsilon").f = 10.0
        (damaged / entry.segments[0].upper).write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"outputs on this device are off by"):
        self_test(Bundle(damaged, verify=False))


def test_a_part_of_a_bundle_has_what_its_sizes_read(bundle: Bundle, tmp_path: Path) -> None:
    names = [next(name for name in bundle.submodels if name.endswith("-int4")), next(iter(bundle.submodels))]
    part = subset(bundle, names, tmp_path / "part")
    assert part.decoder is not None
    assert set(part.decoder.graph) == set(names)
    assert set(part.manifest.precision_weights) == {"fp32", "int4"}
    assert part.weights_bytes < bundle.weights_bytes / 2
    assert self_test(part).submodels == 2
    only = subset(bundle, names[:1], tmp_path / "only")
    assert self_test(only).largest_int8_error < 1e-3
    assert only.manifest.weights == bundle.manifest.weights_of("int4")


def test_export_of_a_language_model_decodes(nested: NestedModel, tmp_path: Path) -> None:
    found = export(nested, tmp_path / "bundle", submodels=nested.submodels[:1], show_progress=False)
    assert found.decoder is not None
    assert found.qualities == {nested.submodels[0].id: None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "gemma"}, r"model_type = 'gemma': allowed for decoding are llama"),
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu': allowed is silu"),
        ({"head_dim": 8}, r"head_dim = 8: allowed are multiples of 16"),
        ({"rope_parameters": {"rope_type": "longrope"}}, r"rope_type = 'longrope': allowed are default, linear"),
    ],
)
def test_what_the_graphs_do_not_compute_is_refused(changes: dict[str, Any], said: str) -> None:
    from transformers import AutoConfig

    given = {**SIZES, "num_hidden_layers": 2, "vocab_size": 64, **changes}
    rotary = given.pop("rope_parameters", None)
    config = AutoConfig.for_model(given.pop("kind", "llama"), **given)
    config.rope_parameters = rotary or config.rope_parameters
    with pytest.raises(ExportError, match=said):
        shape_of(config)


def test_a_size_that_blocks_do_not_fit_is_refused_before_anything_is_written(nested: NestedModel, tmp_path: Path) -> None:
    found = nested.family.architecture  # type: ignore[attr-defined]
    full = shape_of(found.full, found.head_dim)
    sizes = {"narrow": dataclasses.replace(full, hidden=48)}
    with pytest.raises(ExportError, match=r"sub-model narrow: hidden = 48: allowed with weights in blocks are multiples of 32"):
        write_decoder(tmp_path / "models", full, {}, (np.zeros(0), np.zeros(0)), sizes, precisions=["fp32", "int4"])
    assert not (tmp_path / "models").exists()
    with pytest.raises(ExportError, match=r"precision 'int2': allowed are fp32, int8-rows, int8, int4"):
        write_decoder(tmp_path / "models", full, {}, (np.zeros(0), np.zeros(0)), sizes, precisions=["int2"])


@pytest.mark.parametrize(("field", "value"), [("segments", (0,)), ("head_bits", 5), ("quality_tokens", -1)])
def test_options_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ExportError, match=rf"{field} = .*allowed are"):
        DecodingOptions(**{field: value})


def test_a_manifest_whose_decoder_does_not_know_a_size_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    document = json.loads(path.read_text())
    missing = sorted(document["decoder"]["graph"])[0]
    del document["decoder"]["graph"][missing]
    path.write_text(json.dumps(sealed(document)))
    with pytest.raises(BundleError, match=rf"decoder.graph and the sub-models differ: {missing}"):
        Bundle(tmp_path / "bundle")
