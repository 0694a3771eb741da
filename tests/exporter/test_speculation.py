"""Graphs that verify drafts: the plain ones' answers, and of a token the same to the bit however many are computed with it."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("transformers")

from exporter import ExportError
from exporter.bundle import Bundle, BundleError
from exporter.bundle.decoding import DecoderCall, padded_outputs, rows_problem
from exporter.bundle.session import SessionOptions, open_session, rms_error
from exporter.bundle.verify import self_test
from exporter.decoder import PRECISIONS
from exporter.decoder.export import DecodingOptions, export_decoder
from exporter.subset import subset
from tests.helpers.language import decoder_model

LAYERS = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The full size and the smallest, in every precision, with exits after layers 1 and 2."""
    nested = decoder_model()
    return export_decoder(
        nested,
        tmp_path_factory.mktemp("speculation") / "bundle",
        submodels=[nested.submodels[0], nested.submodels[-1]],
        precisions=PRECISIONS,
        options=DecodingOptions(speculation=True, exits=(1, 2), exit_tokens=40),
        show_progress=False,
    )


def test_rows_are_the_same_however_many_there_are(bundle: Bundle) -> None:
    """In whole and in parts, with one thread and two; and the same as the plain graph's but for rounding. Not of 4 bits."""
    inputs, expected = bundle.selftest()
    assert bundle.decoder is not None
    sizes = bundle.decoder.vocabulary, bundle.decoder.context
    for name, entry in bundle.submodels.items():
        found = entry.speculation
        assert (found is None) == (entry.precision == "int4")
        if found is None:
            continue
        assert found.problem == ""
        layers = bundle.decoder.graph[name].layers
        bounds = [0, *(layer for layer in (1, 2) if layer < layers), layers]
        parts = [(part.first, part.last) for part in found.parts]
        assert parts == ([] if layers == 1 else list(pairwise(bounds)))
        for threads in (1, 2):
            for paths in [[found.graph], *([[part.graph for part in found.parts]] if parts else [])]:
                sessions = [open_session(bundle.path / path, SessionOptions(threads=threads)) for path in paths]
                assert rows_problem(sessions, *sizes) == ""
                assert rms_error(padded_outputs(sessions, inputs), expected[name]) < 0.02


def test_the_head_of_an_exit_is_the_model_s_of_the_first_tokens(bundle: Bundle) -> None:
    name = next(name for name, entry in bundle.submodels.items() if entry.precision == "fp32" and entry.speculation.parts)
    found = bundle.submodels[name].speculation
    assert found is not None
    assert found.head is not None
    assert found.head_tokens == 40
    below, above = (open_session(bundle.path / part.graph) for part in (found.parts[0], found.parts[-1]))
    hidden = DecoderCall(below)(np.array([[3, 4, 5]]), [3], [2])
    logits = open_session(bundle.path / found.head).run(None, {"hidden": hidden})[0]
    assert logits.shape == (1, 3, 40)
    inside = open_session(bundle.path / found.graph)
    assert np.isfinite(logits).all()
    assert above.get_outputs()[0].name == inside.get_outputs()[0].name == "logits"


def test_a_device_says_what_cannot_be_verified_on_it(bundle: Bundle, tmp_path: Path) -> None:
    """A graph without padding stands for kernels that differ: rows of it depend on how many there are."""
    assert self_test(bundle).speculation == {name: "" for name, entry in bundle.submodels.items() if entry.precision != "int4"}
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle.path, damaged)
    name = next(name for name, entry in bundle.submodels.items() if entry.precision == "int8-rows")
    entry = bundle.submodels[name]
    assert entry.speculation is not None
    shutil.copyfile(damaged / entry.graph, damaged / entry.speculation.graph)
    plain = open_session(damaged / entry.graph)
    assert bundle.decoder is not None
    wanted = rows_problem([plain], bundle.decoder.vocabulary, bundle.decoder.context)
    assert self_test(Bundle(damaged, verify=False)).speculation[name] == wanted


def test_a_graph_that_is_another_model_is_noticed(bundle: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle.path, damaged)
    entry = next(iter(bundle.submodels.values()))
    assert entry.speculation is not None
    path = damaged / entry.speculation.graph
    model = onnx.load(path, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "QuickGelu").attribute[0].f = -3.0
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="off by"):
        self_test(Bundle(damaged, verify=False))


def test_a_part_of_a_bundle_verifies_too(bundle: Bundle, tmp_path: Path) -> None:
    name = (
        list(bundle.submodels)[-1] if bundle.submodels[list(bundle.submodels)[-1]].speculation else next(iter(bundle.submodels))
    )
    part = subset(bundle, [name], tmp_path / "part")
    assert self_test(part).speculation == {name: ""}


@pytest.mark.parametrize(
    ("precisions", "given", "said"),
    [
        (("int4",), {"speculation": True}, "speculation = True: with precision int4 guesses cannot be verified exactly"),
        (
            ("fp32",),
            {"speculation": True, "exits": (1, 3)},
            "exits = 3: allowed are layers below 3, which the deepest size has",
        ),
        (("fp32",), {"segments": (4,)}, "segments = 4: allowed are layers below 3"),
    ],
)
def test_what_no_graph_would_have_is_refused(
    precisions: tuple[str, ...], given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=said):
        export_decoder(decoder_model(), tmp_path / "bundle", precisions=precisions, options=DecodingOptions(**given))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"exits": (1,)}, r"exits = \(1,\): allowed with speculation"),
        ({"speculation": True, "exits": (0,)}, r"exits = \(0,\): allowed are numbers of layers, from 1"),
        ({"speculation": True, "exit_tokens": 0}, r"exit_tokens = 0: allowed are whole numbers from 1"),
    ],
)
def test_options_that_are_none(given: dict[str, object], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        DecodingOptions(**given)  # type: ignore[arg-type]
