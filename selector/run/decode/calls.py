"""`Call`: one call of a decoder's graph, or of its parts one after the other, over arrays that stay in place.

Shapes: B texts, T tokens of each in one call, R of them that get logits, V tokens of the vocabulary, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporter.bundle import BundleError

Array = NDArray[Any]


class Halted(Exception):
    """A call of the graph was ended by `Halt.set`."""


class Halt:
    """Ends a text from another thread, in the middle of a call."""

    def __init__(self) -> None:
        self.is_set = False
        self.plain, self.shrinking = ort.RunOptions(), ort.RunOptions()
        self.shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def set(self) -> None:
        self.is_set = True
        self.plain.terminate = self.shrinking.terminate = True


@dataclass(frozen=True)
class Part:
    """A graph that is open, of these layers: the first one takes token ids, the last one gives logits."""

    session: ort.InferenceSession
    first: int
    last: int  # exclusive


class PartCall:
    """A part over these tokens. `given`: ids (B, T) or hidden states (B, T, d); `answer`: hidden states (B, T, d), or logits
    (B, R, V) of the last R tokens; `rows`: how many these are, default one; `into`: where they go, (1, R or more, V)."""

    def __init__(self, part: Part, buffers: Sequence[Array], tokens: int, rows: int = 1, into: Array | None = None) -> None:
        texts = len(buffers[0])
        self._session, self._binding = part.session, part.session.io_binding()
        self._last, self._total = np.zeros(texts, np.int32), np.zeros((), np.int32)
        inputs = {one.name: one for one in part.session.get_inputs()}
        hidden = inputs.get("hidden")
        self.given: Array = (
            np.zeros((texts, tokens), np.int64) if hidden is None else np.zeros((texts, tokens, hidden.shape[2]), np.float32)
        )
        gives_logits = "rows" in inputs
        lengths: dict[str, Array] = {"seqlens_k": self._last, "total_length": self._total}
        if gives_logits:
            lengths["rows"] = np.arange(tokens - rows, tokens, dtype=np.int64)
        first = part.session.get_outputs()[0]
        if gives_logits and into is not None:
            self.answer: Array = into[:, :rows]
        else:
            self.answer = np.empty((texts, rows if gives_logits else tokens, first.shape[2]), np.float32)
        self._values: list[ort.OrtValue] = []  # the binding does not keep them alive
        bind = self._binding
        for name, array in {"input_ids" if hidden is None else "hidden": self.given, **lengths}.items():
            self._bind(bind.bind_ortvalue_input, name, array)
        self._bind(bind.bind_ortvalue_output, first.name, self.answer)
        for place in range(2 * part.first, 2 * part.last):
            name = f"{place // 2}.{'value' if place % 2 else 'key'}"
            self._bind(bind.bind_ortvalue_input, f"past.{name}", buffers[place])
            self._bind(bind.bind_ortvalue_output, f"present.{name}", buffers[place])

    def __call__(self, lengths: Array, options: ort.RunOptions | None) -> Array:
        """The answer. `lengths` (B,): of each text, after the call. Raises Halted where the options' flag is set, BundleError
        where ONNX Runtime cannot compute it: what it was given was looked at before."""
        np.subtract(lengths, 1, out=self._last)
        self._total[...] = lengths.max()
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:  # ONNX Runtime has one exception type per status code
            if options is not None and options.terminate:
                raise Halted from None
            raise BundleError(f"this graph could not be computed: {error}") from error
        return self.answer

    def _bind(self, bind: Any, name: str, array: Array) -> None:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._values.append(value)
        bind(name, value)


class Call:
    """All parts. `ids` (B, T); `lengths` (B,): of each text, after the call; `logits` (B, R, V): of the last R tokens."""

    def __init__(self, parts: Sequence[Part], buffers: Sequence[Array], tokens: int, rows: int = 1) -> None:
        self._calls = [PartCall(part, buffers, tokens, rows) for part in parts]
        self.ids, self.logits = self._calls[0].given, self._calls[-1].answer
        self.lengths = np.zeros(len(buffers[0]), np.int32)
        for below, above in zip(self._calls, self._calls[1:], strict=False):
            assert below.answer.shape == above.given.shape

    def __call__(self, options: ort.RunOptions | None) -> None:
        """Raises Halted where the options' flag is set."""
        value = self.ids
        for call in self._calls:
            if call.given is not value:
                call.given[...] = value
            value = call(self.lengths, options)
