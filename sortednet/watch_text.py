"""`sortednet generate --watch`: the text as it comes, which size says it and why, and how the device is doing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from selector.choose.budget import Budget
from selector.run.generate import Generation, Generator, Piece

RECENT = 20
"""Tokens that the figures are of."""
LINES = 12
"""Of the text, that are shown."""
_COLOURS = ("green", "cyan", "yellow", "magenta", "blue", "red")


class Screen:
    """What is to be seen of a text: its pieces so far, each in the colour of the size that said it."""

    def __init__(self, generator: Generator, text: Generation, budget: Budget) -> None:
        self._generator, self._text, self._budget = generator, text, budget
        self._colours: dict[str, str] = {}
        self._said: list[str] = []
        self._shown = Text()  # without what a terminal would obey
        self._recent: deque[Piece] = deque(maxlen=RECENT)

    @property
    def said(self) -> str:
        return "".join(self._said)

    def add(self, piece: Piece) -> None:
        self._recent.append(piece)
        self._said.append(piece.text)
        colour = self._colours.setdefault(piece.submodel, _COLOURS[len(self._colours) % len(_COLOURS)])
        self._shown.append(piece.text, style=f"{colour} underline" if piece.guessed else colour)

    def picture(self) -> Group:
        sensors, pace = self._generator.runtime.sensors.shown(), _pace(self._generator, self._text)
        return picture(self._text, self._shown, self._recent, self._budget, self._colours, sensors, pace)


def watch_text(generator: Generator, text: Generation, budget: Budget, console: Console) -> str:
    """Generates it to its end, or until Ctrl-C, and returns it."""
    screen = Screen(generator, text, budget)
    with Live(console=console, refresh_per_second=8) as live:
        shown_at = 0.0
        try:
            for piece in text:
                screen.add(piece)
                if time.monotonic() - shown_at > 0.12:
                    live.update(screen.picture())
                    shown_at = time.monotonic()
        except KeyboardInterrupt:
            text.stop()
        live.update(screen.picture())
    return screen.said


def picture(
    text: Generation,
    shown: Text,
    recent: Sequence[Piece],
    budget: Budget,
    colours: Mapping[str, str],
    readings: Mapping[str, str],
    pace: float | None,
) -> Group:
    """What is on the screen: the text in the colour of the size that said it, the choice, the latest tokens, the sensors."""
    table = Table.grid(padding=(0, 3))
    selection = text.selection
    table.add_row("size", Text(selection.submodel, style=f"bold {colours.get(selection.submodel, '')}".strip()))
    table.add_row("why", selection.reason)
    if len(recent) > 1:
        took = [piece.ms for piece in recent]
        limit = "" if budget.token_ms is None else f", limit {budget.token_ms:g} ms"
        table.add_row(
            "tokens", f"{len(text.tokens)}, lately {1e3 * len(took) / sum(took):.1f}/s, {median(took):.1f} ms each{limit}"
        )
    if guessed := text.guesses.words:
        table.add_row("guesses", guessed)
    if pace is not None:
        table.add_row("slow-down", f"{pace:.2f} times the profile")
    for switch in text.switches[-3:]:
        tokens = f"{switch.computed} token{'' if switch.computed == 1 else 's'} computed for it"
        table.add_row(f"after {switch.token}", f"{switch.before} → {switch.after}, {tokens}")
    table.add_row("sensors", ", ".join(f"{name.replace('_', ' ')} {said}" for name, said in readings.items()) or "none")
    lines = shown.split("\n", allow_blank=True)
    tail = Text("\n").join(lines[-LINES:])
    return Group(Panel(tail, title=f"{text.prompt_tokens} tokens of prompt"), table)


def _pace(generator: Generator, text: Generation) -> float | None:
    controller = generator.runtime.controller
    return None if controller is None else controller.slow_down(text.selection.device)
