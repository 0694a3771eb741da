"""Engines that take turns: each in a process of its own, the one after the other, so that what disturbs one disturbs all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

Figures = dict[str, float]
CONTEXTS = (256, 1024)
PROMPT = 512
THREADS = {1: "processor", 2: "wall"}
"""Numbers of threads, and which time is theirs: one thread's is the processor's, which others do not change; of two it would
count what they wait for."""
ROUNDS, TOKENS, PROMPTS = 9, 12, 5
PAUSE = 0.02  # seconds, in which threads of the one before go to sleep

WORKER, ROOT = Path(__file__).with_name("worker.py"), Path(__file__).parents[2]


@dataclass(frozen=True)
class Entrant:
    """An engine, the Python of its environment, and what it decodes."""

    engine: str
    model: str
    python: Path = Path(sys.executable)


class Worker:
    """Its process. Use as a context manager."""

    def __init__(self, entrant: Entrant, threads: int) -> None:
        self.entrant = entrant
        settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        if entrant.engine == "ours":
            settings["PYTHONPATH"] = str(ROOT)
        command = [str(entrant.python), str(WORKER), entrant.engine, entrant.model, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Raises RuntimeError where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.entrant.engine} of {self.entrant.model} ended: what it said is above")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


Seconds = dict[str, float]
"""Of an entrant by its name: the median over rounds."""


def compare(
    entrants: Mapping[str, Entrant],
    threads: int,
    contexts: Sequence[int] = CONTEXTS,
    prompt: int | None = PROMPT,
    rounds: int = ROUNDS,
) -> dict[str, list[Seconds]]:
    """Rounds in which each decodes TOKENS tokens in turn, the order turned round each time. By what was done ("256": a token
    after so many, "prompt"): of each round what each entrant took, in seconds of the time that is these threads'."""
    clock, names = THREADS[threads], list(entrants)
    tasks = {str(context): {"do": "tokens", "context": context, "count": TOKENS} for context in contexts}
    counts = dict.fromkeys(tasks, rounds)
    if prompt is not None:
        tasks["prompt"], counts["prompt"] = {"do": "prompt", "count": prompt}, min(rounds, PROMPTS)
    found: dict[str, list[Seconds]] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(entrant, threads)) for name, entrant in entrants.items()}
        for what, task in tasks.items():
            for worker in workers.values():
                worker.ask(**task)  # the first one opens and warms
            found[what] = []
            for number in range(counts[what]):
                took: Seconds = {}
                for name in names if number % 2 else names[::-1]:
                    time.sleep(PAUSE)
                    took[name] = float(np.median(workers[name].ask(**task)[clock]))
                found[what].append(took)
    return found


def times_as_fast(rounds: Sequence[Seconds], ours: str, theirs: str) -> float:
    """The median over rounds of what theirs took over what ours did."""
    return float(np.median([took[theirs] / took[ours] for took in rounds]))


def milliseconds(rounds: Sequence[Seconds], name: str) -> float:
    return float(np.median([took[name] for took in rounds])) * 1e3
