"""Every graph says what it is, to whoever opens it without the manifest."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from exporter.bundle import Bundle
from exporter.subset import subset


def said(graph: Path) -> dict[str, str]:
    """As ONNX Runtime shows it."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


def test_every_graph_says_its_name_task_and_precision(untrained_path: Path) -> None:
    manifest = Bundle(untrained_path).manifest
    assert {entry.precision for entry in manifest.submodels} == {"fp32", "int8"}
    for entry in manifest.submodels:
        found = said(untrained_path / entry.graph)
        assert {name: value for name, value in found.items() if name.startswith("sortednet.")} == {
            "sortednet.family": manifest.family,
            "sortednet.submodel": entry.id,
            "sortednet.task": manifest.task.kind,
            "sortednet.metric": manifest.task.metric,
            "sortednet.precision": entry.precision,
            "sortednet.version": version("sortednet"),
        }


def test_the_bytes_are_those_of_a_graph_written_at_once(untrained_path: Path) -> None:
    for entry in Bundle(untrained_path).manifest.submodels:
        content = (untrained_path / entry.graph).read_bytes()
        assert onnx.load_from_string(content).SerializeToString(deterministic=True) == content
        plain = onnx.load_from_string(content)
        del plain.metadata_props[:]
        assert len(content) - plain.ByteSize() < 320


def test_a_part_that_is_pulled_says_it_too(bundle_path: Path, tmp_path: Path) -> None:
    entry = Bundle(bundle_path).manifest.submodels[0]
    cut = subset(Bundle(bundle_path), [entry.id], tmp_path / "cut")
    assert said(cut.graph_path(entry.id)) == said(bundle_path / entry.graph)


def test_the_parts_of_a_language_model_say_whose_they_are(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from exporter.decoder.export import DecodingOptions, export_decoder
    from tests.helpers.language import language_family, mixed

    family = language_family(num_attention_heads=4, head_dim=16, hidden_size=64)
    family.axes = {**family.axes, "hidden_size": (32, 64)}
    nested = mixed(family)
    largest = nested.family.largest
    options = DecodingOptions(segments=(1,), speculation=True, exits=(1,))
    made = export_decoder(nested, tmp_path / "bundle", submodels=[largest], options=options, show_progress=False)
    (entry,) = made.manifest.submodels
    assert len(entry.graphs) == 1 + 2 + 1 + 2 + 1  # whole, in two parts, verifying the same, and the head of exits
    for graph in entry.graphs:
        properties = {one.key: one.value for one in onnx.load(made.path / graph, load_external_data=False).metadata_props}
        assert properties["sortednet.submodel"] == entry.id
        assert properties["sortednet.task"] == made.manifest.task.kind
