"""The model card of a repository of Hugging Face's hub: what the hub reads at its top, then what a person does."""

from __future__ import annotations

import json
from collections.abc import Iterator

from exporter.bundle import Bundle
from selector.choose.metrics import metric_name, shown
from sortednet.console import short
from sortednet.formats.figures import Figures

FRONTIER = "frontier.png"
_BY_INPUT = {
    ("classification", "image"): "image-classification",
    ("classification", "text"): "text-classification",
    ("classification", "audio"): "audio-classification",
    ("segmentation", "image"): "image-segmentation",
    ("token-classification", "text"): "token-classification",
    ("question-answering", "text"): "question-answering",
    ("embedding", "text"): "feature-extraction",
    ("language-modelling", "text"): "text-generation",
}
"""The hub's name of a task, by ours and by what becomes an input."""
_MOST = 200
"""Sub-models in the table; of more only those on the frontier."""


def pipeline_of(bundle: Bundle) -> str | None:
    """The hub's name of the bundle's task; None where it has none."""
    kinds = {str(spec.get("kind", "image")) for spec in bundle.manifest.preprocessing.values()} or {"image"}
    return _BY_INPUT.get((bundle.manifest.task.kind, next(iter(kinds)))) if len(kinds) == 1 else None


def card_of(bundle: Bundle, figures: Figures, name: str, *, picture: bool) -> str:
    """The text of README.md. The same bundle and profile give the same text."""
    metric, count = metric_name(bundle.metric), len(bundle.submodels)
    where = f"latency measured on {figures.device}" if figures.device else "costs are multiply-accumulates: not measured yet"
    parts = [
        "---",
        *_front(bundle, name),
        "---",
        f"# {name}",
        f"One nested {bundle.manifest.family} model; each of its {count} sizes is a prefix of it and runs by itself, from the "
        "same weights file. A device picks the best one for the budget of each call.",
        "## Sizes",
        f"Quality is {metric} on the test split; {where}. In bold: the frontier, what is chosen for some budget.",
        *([f"![{metric} over cost]({FRONTIER})"] if picture else []),
        "\n".join(_table(figures, metric)),
        "## Use",
        _USE.format(graph=_graph(figures)),
        "## Files",
        _FILES,
    ]
    head = parts.index("---", 1) + 1
    return "\n".join(parts[:head]) + "\n\n" + "\n\n".join(parts[head:]) + "\n"


_USE = """With sortednet (`pip install sortednet`) this folder is a bundle:

```python
from huggingface_hub import snapshot_download
from sortednet import Budget, Runtime

runtime = Runtime(snapshot_download("OWNER/NAME"))
result = runtime.run(inputs, Budget(latency_ms=5))
```

Without it, each graph opens in ONNX Runtime:

```python
import onnxruntime

session = onnxruntime.InferenceSession("{graph}")
```"""
_FILES = """`onnx/`: a graph for each size and the weights once; `onnx/model.onnx` is the largest.
`model.safetensors`: the same weights by the names that the largest graph gives them.
`manifest.json`: every file's hash. `profiles/`: what was measured."""


def _graph(figures: Figures) -> str:
    chosen = [line for line in figures.lines if line.chosen] or list(figures.lines)
    return f"onnx/{chosen[0].entry.graph.rpartition('/')[2]}"


def _front(bundle: Bundle, name: str) -> Iterator[str]:
    """YAML, whose quoted texts are JSON's."""
    pipeline, said = pipeline_of(bundle), bundle.manifest.training.get("data", {})
    data = json.dumps(str(said.get("name", "unknown")) if isinstance(said, dict) else "unknown")
    yield "library_name: sortednet"
    yield from ("tags:", "- onnx", "- sortednet", "- nested", "- edge")
    if pipeline:
        yield f"pipeline_tag: {pipeline}"
    known = [entry for entry in bundle.manifest.submodels if entry.quality is not None]
    if not known:
        return
    yield "model-index:"
    for entry in known:
        yield f"- name: {json.dumps(f'{name} {entry.id}')}"
        yield "  results:"
        yield "  - task:"
        yield f"      type: {pipeline or bundle.manifest.task.kind}"
        yield "    dataset:"
        yield f"      type: {data}"
        yield f"      name: {data}"
        yield "    metrics:"
        yield f"    - type: {json.dumps(bundle.metric)}"
        yield f"      value: {entry.quality:.6g}"


def _table(figures: Figures, metric: str) -> Iterator[str]:
    yield f"| size | parameters | MACs | {metric} | graph, bytes | {figures.unit if figures.device else 'cost'} |"
    yield "|---|---:|---:|---:|---:|---:|"
    few = len(figures.lines) <= _MOST
    for line in figures.lines:
        if few or line.chosen:
            mark = "**" if line.chosen else ""
            cost = "" if line.cost is None else f"{line.cost:.3g}" if figures.device else short(int(line.cost))
            entry = line.entry
            cells = [f"{mark}{entry.id}{mark}", short(entry.params), short(entry.macs), shown(entry.quality)]
            yield f"| {' | '.join([*cells, short(line.bytes), cost])} |"
