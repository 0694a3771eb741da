"""What a bundle says of the text that it generates: its graphs, its tokenizer, its chat template."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock

from exporter.bundle import Bundle, BundleError
from selector.run.decode import Decoder, DecoderSpec
from selector.run.decode.opening import decoder_spec

log = logging.getLogger("sortednet.generate")

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
DEPTH = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "layers", "depth")
"""Axes by which sub-models differ that have the same keys and values in the layers that they share. Of an axis of another name
nothing is shared, which costs time and is right in any case."""


@dataclass(frozen=True)
class Described:
    """Of a bundle that generates text."""

    bundle: Bundle
    specs: Mapping[str, DecoderSpec]  # by sub-model
    kinds: dict[str, Hashable]  # by sub-model: those of one kind differ only in depth, as far as is known
    widest: dict[Hashable, DecoderSpec]  # by kind: of its deepest
    tokenizer: str  # a file of the bundle
    template: str | None  # the chat template, where there is one
    bos: int | None
    eos: tuple[int, ...]
    _proofs: dict[Hashable, list[bytes]] = field(default_factory=dict)  # by kind: hashes of the keys and values of each layer
    _proved: set[str] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, bundle: Bundle, spare: int = 0) -> Described:
        """`spare`: see `DecoderSpec`. Raises BundleError where the bundle generates no text."""
        entry = bundle.manifest.decoder
        if entry is None:
            raise BundleError(f"{str(bundle.path)!r}: generates no text, its task is {bundle.manifest.task.kind}")
        specs: dict[str, DecoderSpec] = {}
        kinds: dict[str, Hashable] = {}
        widest: dict[Hashable, DecoderSpec] = {}
        for name, sub in bundle.submodels.items():
            if name not in entry.graph:
                raise BundleError(f"manifest.json: decoder.graph says nothing of the sub-model {name!r}")
            own = entry.graph[name]
            specs[name] = decoder_spec(bundle, name, spare)
            widths = tuple(sorted((axis, value) for axis, value in sub.axes.items() if axis not in DEPTH))
            kinds[name] = kind = (sub.precision, own.kv_heads, widths)
            if kind not in widest or widest[kind].layers < own.layers:
                widest[kind] = specs[name]
        described = [one for one in bundle.manifest.preprocessing.values() if one.get("kind") == "text"]
        tokenizer = str(described[0].get("tokenizer", TOKENIZER_FILE)) if described else TOKENIZER_FILE
        return cls(bundle, specs, kinds, widest, tokenizer, _template(bundle), entry.bos, entry.eos)

    def prove(self, submodel: str, decoder: Decoder) -> None:
        """Looks once, before a sub-model has its part in a text, whether its keys and values are those of its kind, to the bit:
        where it has weights of its own, such as norms, it becomes one of a kind of its own."""
        with self._lock:
            if submodel in self._proved:
                return
            cache, kind = decoder.cache(), self.kinds[submodel]
            tokens = [token % decoder.spec.vocabulary for token in range(1, 4)]
            decoder.start(tokens, cache)
            pairs = zip(cache.buffers[::2], cache.buffers[1::2], strict=True)
            found = [sha256(a[:, :, :3].tobytes() + b[:, :, :3].tobytes()).digest() for a, b in pairs]
            before = self._proofs.get(kind, [])
            shared = min(len(found), len(before))
            if found[:shared] != before[:shared]:
                log.info("%s has keys and values of its own", submodel)
                self.kinds[submodel] = kind = (kind, submodel)
                self.widest[kind] = decoder.spec
            elif len(found) > len(before):
                self._proofs[kind] = found
            self._proved.add(submodel)


def _template(bundle: Bundle) -> str | None:
    if TEMPLATE_FILE not in bundle.manifest.files:
        return None
    try:
        return (bundle.path / TEMPLATE_FILE).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{bundle.path / TEMPLATE_FILE}: is not UTF-8: {error}") from None
