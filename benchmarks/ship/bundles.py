"""The bundles that are shipped here: a network that is made, not trained, signed in two versions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter.bundle import Bundle
from selector.fetch.pull import Pulled, PullOptions, pull
from selector.ship.signed import Trust
from sortednet.signing import sign
from tests.helpers.figures import accuracies_of, write_accuracies
from tests.helpers.keys import Keys, made
from tests.helpers.shelf import Shelf, other_weights, shelf, with_canary


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
def shipped(channels: Sequence[int] = (16, 24, 32)) -> Iterator[Shipped]:
    """In a folder that is gone at the end."""
    with TemporaryDirectory(prefix="sortednet-ship-") as folder:
        scratch = Path(folder)
        keys = made(scratch)
        first = scratch / "first" / "digits"
        made_new(first, channels)
        with_canary(first, 200)
        second = scratch / "second" / "digits"
        shutil.copytree(first, second)

        def change(weights: object) -> None:
            weights[:64] *= 1.001  # type: ignore[index]

        other_weights(second, change)
        sign(Bundle(first), key=keys.private, version=1)
        sign(Bundle(second), key=keys.private, version=2)
        yield Shipped(first, second, keys, scratch)


def made_new(target: Path, channels: Sequence[int]) -> None:
    """Exports a network of six sub-models, of random weights."""
    from exporter import export
    from tests.helpers.exports import calibrated
    from trainer.families import ResNet

    family = ResNet(channels=list(channels), blocks=[2, 2, 2], widths=[0.5, 0.75, 1.0], depths=[1, 2], classes=10)
    export(calibrated(family), target, show_progress=False)


def measured(target: Path, channels: Sequence[int] = (16, 32, 64)) -> None:
    """The same with accuracies that are written down, and a profile of this machine with one thread: what answers queries with
    a deadline."""
    from selector.run.profiling import profile_bundle

    made_new(target, channels)
    write_accuracies(target, accuracies_of(Bundle(target)))
    bundle = Bundle(target)
    bundle.save_profile(profile_bundle(bundle, threads=1, repeats=100, show_progress=False))
