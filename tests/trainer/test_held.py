"""A split of few pixels that lie in files is decoded once and held in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exporter.bundle.preprocessing import OpenedImage
from tests.helpers.pictures import write_pictures
from trainer import NestedModel, fit
from trainer.data import load_data, loading
from trainer.data.images import PictureFiles, Pictures
from trainer.families import ResNet


class _Counting:
    """Pictures that note which of them is opened."""

    def __init__(self, pictures: Pictures, read: list[int]) -> None:
        self.pictures, self.read = pictures, read

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return self.pictures.name(index)

    def opened(self, index: int) -> OpenedImage:
        self.read.append(index)
        return self.pictures.opened(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_small_folder_is_read_once_and_trains_to_the_same_bits_as_one_that_is_streamed(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path, suffix=".jpg", per_class=12, size=(20, 24))
    data = load_data(f"image-folder:{tmp_path}")
    weights, opened = [], []
    for limit in (loading.HELD_BYTES, len(data.train) * 3 * 20 * 24 - 1):
        monkeypatch.setattr(loading, "HELD_BYTES", limit)
        read: list[int] = []
        train = data.train
        assert isinstance(train, PictureFiles)
        monkeypatch.setattr(train, "pictures", _Counting(train.pictures, read))
        torch.manual_seed(0)
        nested = NestedModel(ResNet.for_data(data.spec, channels=[4], blocks=[1], widths=[1.0], multiple=4))
        fit(nested, train, data.validation, epochs=3, batch_size=6, workers=workers, augment=data.augment, show_progress=False)
        weights.append(nested.full.state_dict())
        opened.append(len(read))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    if not workers:  # of which each counts for itself
        assert opened[0] == len(data.train) + 1  # whose first says how large they are
        assert opened[1] > 3 * len(data.train)
