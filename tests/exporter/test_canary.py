"""Labelled examples that come with a bundle."""

from __future__ import annotations

import io

import numpy as np
import pytest

from exporter.canary import canary_file
from exporter.selftest import ExportError
from trainer import NestedModel
from trainer.data import DataSet


def test_labelled_examples_are_spread_over_the_test_split(untrained: NestedModel, digits: DataSet) -> None:
    with np.load(io.BytesIO(canary_file(untrained, digits.test, 20))) as arrays:
        assert arrays["input/input"].shape[0] == len(arrays["labels"]) == 20
        assert len(set(arrays["labels"].tolist())) > 4
    with pytest.raises(ExportError, match="canary = 100000: allowed are 1 to"):
        canary_file(untrained, digits.test, 100_000)
    with pytest.raises(ExportError, match="allowed are 1 to 0"):
        canary_file(untrained, None, 3)
