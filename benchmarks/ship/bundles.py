"""The bundles that are shipped here: a network that is made, not trained, signed in two versions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter import export
from exporter.bundle import Bundle
from selector.fetch.pull import Pulled, PullOptions, pull
from selector.ship.signed import Trust
from sortednet.signing import sign
from tests.helpers.keys import Keys, made
from tests.helpers.shelf import Shelf, other_weights, shelf, with_canary
from trainer import NestedModel
from trainer.families import ResNet


@dataclass(frozen=True)
class Shipped:
    """Two versions of a bundle, each signed by the same key; the second's first parameters are other ones."""

    first: Path
    second: Path
    keys: Keys
    scratch: Path

    @property
    def trust(self) -> Trust:
        return Trust(self.keys.public)

    def fetch(self, source: Path, out: Path, *submodels: str, trial: bool = False, older: bool = True) -> tuple[Pulled, Shelf]:
        """Pulls without a network."""
        client = shelf(source)
        options = PullOptions(trust=self.trust, trial=trial, older=older)
        return pull(client, "digits", out, submodels=submodels or None, options=options), client


@contextmanager
def shipped(widths: tuple[float, ...] = (0.5, 0.75, 1.0), channels: tuple[int, ...] = (16, 24, 32)) -> Iterator[Shipped]:
    """In a folder that is gone at the end."""
    with TemporaryDirectory(prefix="sortednet-ship-") as folder:
        scratch = Path(folder)
        keys = made(scratch)
        family = ResNet(channels=list(channels), blocks=[2, 2, 2], widths=list(widths), depths=[1, 2], classes=10)
        first = scratch / "first" / "digits"
        export(NestedModel(family).eval(), first, show_progress=False)
        with_canary(first, 200)
        second = scratch / "second" / "digits"
        shutil.copytree(first, second)

        def change(weights: object) -> None:
            weights[:64] *= 1.001  # type: ignore[index]

        other_weights(second, change)
        sign(Bundle(first), key=keys.private, version=1)
        sign(Bundle(second), key=keys.private, version=2)
        yield Shipped(first, second, keys, scratch)
