"""What a graph says of itself: ONNX's `metadata_props`, which ONNX Runtime and viewers show without our manifest."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx import ModelProto

KEYS = ("family", "submodel", "task", "metric", "precision", "version")
"""Each with `sortednet.` before it; `version` is this package's. What was measured is not among them: the same network is the
same file, so that profiles, cascades and what devices have fetched stay with it."""


def describe_graphs(folder: Path, document: Mapping[str, Any]) -> None:
    """Adds `properties` to every graph of a manifest's sub-models, which lie in `folder`; the rest of each file stays as it is.

    Done before files are hashed. Protocol Buffers joins messages that stand one after the
    other, and nothing that our graphs have comes after this field: the file is as it would be if written at once.
    """
    described: set[str] = set()
    for entry in document["submodels"]:
        said = ModelProto()
        for key, value in properties(document, entry).items():
            said.metadata_props.add(key=key, value=value)
        parts = [part for segment in entry.get("segments", ()) for part in (segment["lower"], segment["upper"])]
        if speculation := entry.get("speculation"):
            parts += [speculation["graph"], *(part["graph"] for part in speculation["parts"])]
            parts += [speculation["head"]] if speculation.get("head") else []
        for graph in (entry["graph"], *parts):
            if graph in described:
                continue
            described.add(graph)
            with (folder / graph).open("ab") as file:
                file.write(said.SerializeToString(deterministic=True))


def properties(document: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, str]:
    """Of one sub-model. The same export gives the same bytes: neither times nor paths."""
    task = document["task"]
    values = (
        str(document["family"]),
        str(entry["id"]),
        str(task["kind"]),
        str(task["metric"]),
        str(entry["precision"]),
        version("sortednet"),
    )
    return {f"sortednet.{key}": value for key, value in zip(KEYS, values, strict=True)}
