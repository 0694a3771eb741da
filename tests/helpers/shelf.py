"""A service without HTTP: what `pull` asks of one, answered from folders. And new versions of a bundle, good and bad."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporter.bundle import CANARY_FILE, MANIFEST_FILE, Bundle
from exporter.bundle.manifest import sealed
from exporter.bundle.session import open_session, run_session
from selector.fetch.pull import Pulled, PullOptions, pull
from selector.fetch.transfer import Client, GoneError


@dataclass(frozen=True)
class Shelf(Client):
    """Of one bundle, whatever its name. `asked`: paths and numbers of bytes that were given."""

    bundle: Path = Path()
    asked: list[tuple[str, int]] = field(default_factory=list)

    def content(self, path: str, known: str | None = None) -> bytes | None:
        found = self._read(path)
        if hashlib.sha256(found).hexdigest() == known:
            return None
        self.asked.append((path, len(found)))
        return found

    def document(self, path: str, body: Mapping[str, Any] | None = None, *, token: str | None = None) -> Any:
        return json.loads(self._read(path))

    def file(
        self,
        path: str,
        sha256: str,
        size: int,
        target: Path,
        advance: Callable[[int], None],
        *,
        begin: int = 0,
        good: Callable[[Path], bool] | None = None,
    ) -> None:
        self.asked.append((path, size))
        target.write_bytes(self._read(path)[begin : begin + size])
        advance(size)

    def _read(self, path: str) -> bytes:
        place = self.bundle / path.partition("/files/")[2]
        if not place.is_file():
            raise GoneError(f"{path}: has no file of this name", 2)
        return place.read_bytes()


def shelf(bundle: Path) -> Shelf:
    return Shelf("http://shelf", bundle=bundle)


def broken(bundle: Path) -> None:
    """The smallest sub-model's graph has an operator that there is not."""
    import onnx

    graph = bundle / min(Bundle(bundle).manifest.submodels, key=lambda entry: entry.macs).graph
    model = onnx.load(graph, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    graph.write_bytes(model.SerializeToString())
    rewritten(bundle)


def rewritten(bundle: Path) -> None:
    """The manifest says what the files are now, as if they had been exported so."""
    document = json.loads((bundle / MANIFEST_FILE).read_bytes())
    for name in [*document["files"], *(path.name for path in bundle.glob(CANARY_FILE))]:
        content = (bundle / name).read_bytes()
        document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / MANIFEST_FILE).write_text(json.dumps(sealed(document), indent=1) + "\n")


def with_canary(bundle: Path, examples: int = 40) -> None:
    """Labelled examples, whose labels the largest sub-model says: it gets all right."""
    (spec,) = Bundle(bundle).manifest.inputs
    inputs = np.random.default_rng(0).normal(size=(examples, *(int(size) for size in spec.shape[1:]))).astype(spec.dtype)
    largest = max(Bundle(bundle).manifest.submodels, key=lambda entry: entry.macs)
    (answers,) = run_session(open_session(bundle / largest.graph), {spec.name: inputs}).values()
    np.savez(bundle / CANARY_FILE, **{f"input/{spec.name}": inputs, "labels": answers.argmax(-1)})
    rewritten(bundle)


def other_weights(bundle: Path, change: Callable[[np.ndarray[Any, Any]], None], *, selftest: bool = True) -> None:
    """The bundle of another training: the weights are changed in place; the self-test expects what they give now, or not."""
    opened = Bundle(bundle)
    path = bundle / opened.manifest.weights
    weights = np.fromfile(path, np.float32)
    change(weights)
    path.write_bytes(weights.tobytes())
    if selftest:
        inputs, _ = opened.selftest()
        arrays = {f"input/{name}": array for name, array in inputs.items()}
        for entry in opened.manifest.submodels:
            outputs = run_session(open_session(bundle / entry.graph), inputs)
            arrays |= {f"output/{entry.id}/{name}": array for name, array in outputs.items()}
        np.savez(bundle / opened.manifest.selftest.file, **arrays)  # type: ignore[arg-type]
    rewritten(bundle)


def fetched(source: Path, out: Path, options: PullOptions, *submodels: str) -> tuple[Pulled, Shelf]:
    client = shelf(source)
    return pull(client, "digits", out, submodels=submodels or None, options=options), client


def larger(weights: np.ndarray[Any, Any], times: float) -> None:
    """The first few of them."""
    weights[:8] *= times
