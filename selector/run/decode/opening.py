"""`DecodingProgram`: a decoder that is open, with the graphs that verify guesses where this device computes them exactly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort

from exporter.bundle import Bundle
from exporter.bundle.manifest import SubModelEntry
from exporter.bundle.session import SessionError, SessionOptions, give_back_memory, open_session
from selector.run.decode.adaptive import Adaptive
from selector.run.decode.buffers import DecoderSpec
from selector.run.decode.calls import Part
from selector.run.decode.decoder import Decoder
from selector.run.decode.options import Mode
from selector.run.decode.speculation import proved
from selector.run.program import GraphProgram, Program

log = logging.getLogger("sortednet.generate")


@dataclass(frozen=True)
class Verifier:
    """What a sub-model's guesses go by. `head`: of its exits, where it is open in parts."""

    adaptive: Adaptive
    above: tuple[Part, ...] = ()
    head: ort.InferenceSession | None = None


class DecodingProgram(GraphProgram):
    """Of a sub-model that generates text. `problem`: why it guesses nothing on this device."""

    def __init__(self, submodel: str, session: ort.InferenceSession, verifier: Verifier | None, problem: str = "") -> None:
        super().__init__(submodel, session, ["logits"])
        self.verifier, self.problem = verifier, problem

    def decoder(self, spec: DecoderSpec) -> Decoder:
        """What generates. `spec`: with room for the row of zeros that graphs write which verify guesses."""
        return Decoder(self.session, spec, above=self.verifier.above if self.verifier else ())


def decoder_spec(bundle: Bundle, submodel: str, spare: int = 0) -> DecoderSpec:
    """Of a sub-model of a bundle that generates text."""
    entry = bundle.manifest.decoder
    assert entry is not None
    own = entry.graph[submodel]
    return DecoderSpec(own.layers, own.kv_heads, entry.head_size, entry.context, entry.vocabulary, entry.eos, spare)


@dataclass
class DecoderOpener:
    """Opens sub-models for a mode of guessing. What was found out about one is remembered, as long as the bundle lies where it
    does: opened again, it is not tested, and goes on with what it has learnt."""

    bundle: Bundle
    options: SessionOptions
    mode: Mode
    _known: dict[tuple[Path, str], Adaptive] = field(default_factory=dict)
    _problems: dict[tuple[Path, str], str] = field(default_factory=dict)

    def __call__(self, submodel: str, plain: Callable[[], Program]) -> Program:
        """`plain`: opens the graph that guesses nothing. Raises what ONNX Runtime raises."""
        entry = self.bundle.submodel(submodel)
        if self.mode == "off" or entry.speculation is None:
            return plain()
        key = self.bundle.path, submodel
        problem = self._problems.get(key)
        if problem is None:
            try:
                program = self._opened(entry)
            except SessionError:
                raise
            except Exception as error:  # ONNX Runtime has one exception type per status code; the next opening tries again
                problem = f"the graphs that verify guesses do not run on this device: {error}"
            else:
                if not program.problem:
                    return program
                problem = self._problems[key] = program.problem
                del program  # its weights, before the others are read
            log.warning("%s guesses no tokens: %s", submodel, problem)
        unguessing = plain()
        assert isinstance(unguessing, GraphProgram)
        return DecodingProgram(submodel, unguessing.session, None, problem)

    def _opened(self, entry: SubModelEntry) -> DecodingProgram:
        found = entry.speculation
        assert found is not None

        def opened(path: str) -> ort.InferenceSession:
            return open_session(Path(self.bundle.path) / path, self.options)

        in_parts = bool(found.parts) and self.mode != "ngram"
        session = opened(found.parts[0].graph if in_parts else found.graph)
        above = tuple(Part(opened(part.graph), part.first, part.last) for part in found.parts[1:]) if in_parts else ()
        head = opened(found.head) if in_parts and found.head is not None else None
        key = self.bundle.path, entry.id
        adaptive = self._known.get(key)
        if adaptive is None:
            tested = proved(Decoder(session, decoder_spec(self.bundle, entry.id, 1), above=above), head)
            give_back_memory()  # what the test took
            if tested.problem:
                return DecodingProgram(entry.id, session, None, tested.problem)
            adaptive = self._known[key] = Adaptive(tested.costs)
        return DecodingProgram(entry.id, session, Verifier(adaptive, above, head))
