"""Two versions of a bundle, signed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter.bundle import Bundle
from selector.fetch.pull import PullOptions
from selector.ship.signed import Trust
from sortednet.signing import sign
from tests.helpers.keys import Keys, made
from tests.helpers.shelf import larger, other_weights, with_canary


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return made(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def first(bundle_path: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1, with labelled examples. Tests must not change it."""
    copied = Path(shutil.copytree(bundle_path, tmp_path_factory.mktemp("first") / "digits"))
    with_canary(copied)
    sign(Bundle(copied), key=keys.private, version=1)
    return copied


@pytest.fixture(scope="module")
def second(first: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2, as good: one of its weights is a little larger. Tests must not change it."""
    copied = Path(shutil.copytree(first, tmp_path_factory.mktemp("second") / "digits"))
    other_weights(copied, lambda weights: larger(weights, 1.0001))
    sign(Bundle(copied), key=keys.private, version=2)
    return copied


@pytest.fixture
def options(keys: Keys) -> PullOptions:
    return PullOptions(trust=Trust(keys.public))
