"""Perplexity on held-out text: of each precision as `export` measures it, of the original, of a peer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.llm.measured import PRECISIONS, Measured, checkpoint, held_out
from benchmarks.llm.turns import Entrant, Figures, Worker
from exporter.bundle.session import open_session
from exporter.decoder.quality import QUALITY_TOKENS, HeldOut
from exporter.decoder.write import identifier
from trainer.tasks.checks import IGNORED

NOTES = {
    "perplexity.original": "of SmolLM2-135M-Instruct in torch, on windows of 512 tokens of BBC's test part, "
    f"{QUALITY_TOKENS} tokens that count",
    "perplexity.fp32": "of the full size's graph, measured as `export --quality-tokens` does",
}


def of_ours(given: Measured, tokens: int = QUALITY_TOKENS) -> Figures:
    texts = held_out(given, tokens)
    found = {"perplexity.original": of_torch(original(), texts)}
    for precision in PRECISIONS:
        graph = given.bundle(precision).graph_path(identifier(given.full, precision))
        found[f"perplexity.{precision}"] = texts.score(open_session(graph)).metrics["perplexity"]
    return found


def original() -> torch.nn.Module:
    """In torch."""
    from transformers import AutoModelForCausalLM

    file = checkpoint()
    found: torch.nn.Module = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return found.eval()


@torch.inference_mode()
def of_torch(module: torch.nn.Module, texts: HeldOut) -> float:
    lost, count = 0.0, 0
    for ids, targets in texts.texts:
        logits = module(input_ids=torch.from_numpy(ids)).logits[0].float()
        wanted = torch.from_numpy(targets[0].astype(np.int64))
        lost += float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum"))
        count += int((wanted != IGNORED).sum())
    return float(np.exp(lost / count))


def of_worker(entrant: Entrant, given: Measured, tokens: int = QUALITY_TOKENS) -> float:
    """Of an engine in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.npz"
        arrays: dict[str, Any] = {}
        for number, (ids, targets) in enumerate(held_out(given, tokens).texts):
            arrays |= {f"ids{number}": ids[0], f"targets{number}": targets[0]}
        np.savez(file, **arrays)
        with Worker(entrant, 1) as worker:
            return float(worker.ask(do="score", texts=str(file))["perplexity"])
