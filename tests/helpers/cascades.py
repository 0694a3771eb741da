"""A bundle with a cascade that only the test has certified, and what it costs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from device_profiles import Measurement, Profile
from exporter.bundle import Bundle
from selector import Budget, Runtime
from selector.choose.candidates import Candidates
from selector.choose.cascades import Cascade, write_cascades
from selector.run.calibrating import logits_of
from selector.run.program import CascadeProgram, GraphProgram, Session


@pytest.fixture
def with_cascade(bundle_path: Path, tmp_path: Path) -> tuple[Bundle, Cascade]:
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "bundle"))
    names = sorted(bundle.submodels, key=lambda name: bundle.submodels[name].macs)
    cascade = Cascade(
        id=f"{names[0]}+{names[-1]}",
        first=names[0],
        then=names[-1],
        threshold=0.8,
        escalation=0.25,
        accuracy=0.999,
        floor=0.9,
        confidence=0.95,
        examples=1000,
    )
    write_cascades(bundle, [cascade])
    return Bundle(bundle.path), cascade


def program_of(cascade: Cascade, first: Session, then: Session) -> CascadeProgram:
    stages = (cascade.first, first), (cascade.then, then)
    return CascadeProgram(cascade, *(GraphProgram(name, session, ["logits"]) for name, session in stages))


def costs_of(profile: Profile, bundle: Bundle, cascade: Cascade) -> Measurement:
    """What it is expected to cost."""
    (costs,) = (offer.costs for offer in Candidates.of(bundle, [profile], [cascade]) if offer.submodel == cascade.id)
    return costs


def cascades_of(runtime: Runtime) -> list[str]:
    return [offer.submodel for offer in runtime.candidates if offer.stages]


CHEAP = Budget(min_accuracy=0.995)
"""What only the cascade keeps."""


def judged(bundle: Bundle, path: Path) -> Path:
    """600 examples, of which the largest sub-model is right about nine in ten."""
    largest = max(bundle.submodels.values(), key=lambda entry: entry.macs).id
    images = np.random.default_rng(0).random((600, 1, 8, 8), dtype=np.float32)
    labels = logits_of(bundle, largest, {"input": images}).argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % 10
    np.savez(path, input=images, labels=labels)
    return path


class Fixed:
    """A session that always gives these logits."""

    def __init__(self, *logits: float) -> None:
        self.logits = np.array([logits], np.float32)

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        return [np.repeat(self.logits, len(feed["input"]), axis=0)]
