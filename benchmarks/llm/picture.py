"""A picture of `sortednet generate --watch` while a load comes and goes: docs/generate-watch.svg.

    python -m benchmarks.llm.picture BUNDLE [PROMPT]

The bundle has a profile of this machine (`sortednet profile`). The limit per token is what the best size keeps while nothing
else runs; after LOADED tokens another process begins to count, after FREE it ends.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console, Group

from benchmarks.load import SPINNING, Competitors
from selector import Budget
from selector.run.generate import GenerationOptions, Generator
from sortednet.watch_text import Screen

PICTURE = Path("docs/generate-watch.svg")
PROMPT = "Why do leaves change their colour in autumn? Explain it to a child."
TOKENS, LOADED, FREE = 160, 60, 110
SLACK = 1.3
WIDTH = 104


def record(bundle: Path, prompt: str = PROMPT, tokens: int = TOKENS, beside: int = 1) -> Group:
    """What is on the screen at the end. `beside`: so many processes."""
    with Generator(bundle, battery=lambda: None) as generator, Competitors(SPINNING, beside) as others:
        best = generator.runtime.select(Budget())
        assert best.latency_ms is not None  # of a bundle with a profile
        budget = Budget(token_ms=round(SLACK * best.latency_ms, 1))
        asked = [{"role": "user", "content": prompt}] if generator.described.template else prompt
        options = GenerationOptions(max_tokens=tokens)
        with generator.generate(asked, options, budget) as text:
            screen = Screen(generator, text, budget)
            for number, piece in enumerate(text, 1):
                screen.add(piece)
                if number in (LOADED, FREE):
                    others.set(beside if number == LOADED else 0)
            return screen.picture()


def draw(shown: Group, path: Path = PICTURE, command: str = "sortednet generate bundle --chat --watch") -> None:
    """As a terminal shows it."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(shown)
    console.save_svg(str(path), title=command, unique_id="generate-watch")


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit("python -m benchmarks.llm.picture BUNDLE [PROMPT]")
    draw(record(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else PROMPT))
    print(PICTURE)


if __name__ == "__main__":
    main()
