"""Bundles that generate text: small decoders of random weights over one byte-level tokenizer, with a profile written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import MANIFEST_FILE, Bundle
from exporter.bundle.manifest import FORMAT_VERSION, sealed
from selector.run.decode import opening
from selector.run.decode.adaptive import Adaptive, Costs
from selector.run.decode.speculation import Proved
from selector.run.generate import GenerationOptions
from tests.helpers.decoders import Tiny
from tests.helpers.decoding import profile_of

START, END, STOP = "<|start|>", "<|end|>", "<|stop|>"
BYTES = 256
VOCABULARY = BYTES + 3
EOS, BOS = VOCABULARY - 1, None
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIZES = {
    "small": {"layers": 1, "intermediate": 32, "groups": 1},
    "shallow": {"layers": 1},
    "middle": {"layers": 2},
    "full": {"layers": 3},
}
"""Axes by sub-model. All but the first differ only in depth."""
WEIGHTS = {"small": 0.2, "shallow": 0.4, "middle": 0.7, "full": 1.0}
"""Of which 1 takes 10 ms per token and more."""
QUIET: dict[str, Any] = {"sensors": False, "battery": lambda: None, "threads": 1, "load_ahead": False}
"""Options of a Generator that nothing of the machine disturbs."""


CALLS = {1: 1.0, 2: 1.01, 3: 1.02, 4: 1.03, 5: 1.04, 6: 1.05, 8: 1.06, 12: 1.07}
"""What calls over so many tokens cost, where every guess is worth it."""


def always_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever there is to guess, whatever else this machine does."""
    monkeypatch.setattr(opening, "proved", lambda *given: Proved("", Costs([dict(CALLS)])))
    monkeypatch.setattr(Costs, "observe", lambda *given: None)
    monkeypatch.setattr(Adaptive, "length", lambda self, kind, most: max(n - 1 for n in CALLS if n - 1 <= most))


def options(tokens: int = 20, **more: Any) -> GenerationOptions:
    """So many tokens, whatever they are."""
    return GenerationOptions(max_tokens=tokens, ignore_eos=True, **more)


def tokenizer() -> Any:
    """A token for each byte, and three special ones: most characters but ASCII are of several tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in (START, END, STOP)])
    return made


def tiny(name: str, **options: Any) -> Tiny:
    """The decoder of a sub-model."""
    sizes: dict[str, Any] = {"vocabulary": VOCABULARY, "context": 512, "eos": (EOS,), **SIZES[name], **options}
    return Tiny(**sizes)


def write_bundle(
    path: Path,
    *,
    template: str | None = TEMPLATE,
    profiled: bool = True,
    text: bool = True,
    odd: str = "",
    verifies: Sequence[str] = (),
    **options: Any,
) -> Bundle:
    """A bundle of SIZES; the larger, the better. Figures are those of `tests.helpers.decoding`. `odd`: one that has weights of
    its own, whatever its axes say. `verifies`: those that verify guesses."""
    models = path / "models"
    models.mkdir(parents=True)
    (models / "weights.bin").write_bytes(b"\0" * 64)  # each graph has its own here
    decoders = {name: tiny(name, **options, **({"seed": 9} if name == odd else {})) for name in SIZES}
    for name, decoder in decoders.items():
        decoder.write(models / f"{name}.onnx")
        if name in verifies:
            decoder.write(models / f"{name}.padded.onnx", padded=True)
    np.savez(path / "selftest.npz", **{"input/input_ids": np.zeros((1, 1), np.int64)})
    if text:
        (path / "tokenizer.json").write_text(tokenizer().to_str(), encoding="utf-8")
    if template is not None:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    (path / MANIFEST_FILE).write_text(json.dumps(sealed(_manifest(path, decoders, verifies))), encoding="utf-8")
    bundle = Bundle(path)
    if profiled:
        bundle.save_profile(profile_of(WEIGHTS, bundle.fingerprint))
    return bundle


def _manifest(path: Path, decoders: Mapping[str, Tiny], verifies: Sequence[str]) -> dict[str, Any]:
    full = decoders["full"]
    submodels = [
        {
            "id": name,
            "axes": {"num_hidden_layers": one.layers, "intermediate_size": one.intermediate, "groups": one.groups},
            "params": 1000 * (place + 1),
            "macs": 1000 * (place + 1),
            "quality": 0.1 + 0.1 * place,
            "metrics": {"perplexity": 9.0 - place},
            "graph": f"models/{name}.onnx",
            "topology": "0" * 64,
            "precision": "fp32",
            **({"speculation": {"graph": f"models/{name}.padded.onnx"}} if name in verifies else {}),
        }
        for place, (name, one) in enumerate(decoders.items())
    ]
    files = [p for p in path.rglob("*") if p.is_file()]
    listed = {
        str(p.relative_to(path)): {"sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "bytes": p.stat().st_size}
        for p in files
    }
    return {
        "format_version": FORMAT_VERSION,
        "family": "llama",
        "axes": {"num_hidden_layers": [1, 2, 3]},
        "task": {"kind": "language-modelling", "metric": "likelihood", "name": "language-modelling"},
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", "rows", full.vocabulary]}],
        "submodels": submodels,
        "weights": "models/weights.bin",
        "selftest": {"file": "selftest.npz", "tolerance": 0.001},
        "decoder": {
            "layers": full.layers,
            "kv_heads": full.groups,
            "head_size": full.head_size,
            "context": full.context,
            "vocabulary": full.vocabulary,
            "eos": list(full.eos),
            "bos": BOS,
            "graph": {name: {"layers": one.layers, "kv_heads": one.groups} for name, one in decoders.items()},
        },
        "files": listed,
        "training": {},
        "created_with": {},
    }
