"""Augmentation: what it changes, what it leaves alone, and that it is reproducible."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from trainer.data.augment import Augmentation, flip_and_shift, mask_tokens, random_resized_crop, shift

IMAGES = 0.1 + 0.9 * torch.rand(64, 2, 6, 5, generator=Generator().manual_seed(0))
TOKENS = torch.randint(2, 50, (64, 20), generator=Generator().manual_seed(0)).where(torch.arange(20) < 15, 0)


def of_one(augmentation: Augmentation, batch: Tensor) -> Tensor:
    return augmentation({"input": batch}, torch.zeros(len(batch)), Generator().manual_seed(0))[0]["input"]


@pytest.mark.parametrize(
    ("augmentation", "batch"),
    [
        (shift(2), IMAGES),
        (flip_and_shift(2), IMAGES),
        (flip_and_shift(0), IMAGES),
        (random_resized_crop(), IMAGES),
        (mask_tokens(0.3), TOKENS),
    ],
)
def test_augmentation_changes_values_reproducibly_and_nothing_else(augmentation: Augmentation, batch: Tensor) -> None:
    before, extra = batch.clone(), torch.arange(64)
    rest = {"lengths": extra}

    def augmented(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        inputs, targets = augmentation({"first": batch, **rest}, extra, Generator().manual_seed(seed))
        return inputs["first"], inputs["lengths"], targets

    (once, kept, targets), (again, *_), (other, *_) = (augmented(seed) for seed in (1, 1, 2))
    assert (once.shape, once.dtype) == (batch.shape, batch.dtype)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once, batch)
    assert torch.equal(batch, before)  # the data itself stays as it is
    assert kept is extra
    assert targets is extra


def test_shift_moves_images_by_whole_pixels_and_fills_with_zeros() -> None:
    moved = of_one(shift(1), IMAGES)
    padded = torch.nn.functional.pad(IMAGES, (1, 1, 1, 1))
    places = []
    for image, source in zip(moved, padded, strict=True):
        windows = {(y, x): source[:, y : y + 6, x : x + 5] for y in range(3) for x in range(3)}
        places += [place for place, window in windows.items() if torch.equal(window, image)]
    assert len(places) == len(IMAGES)  # every image is exactly one window of its own
    assert set(places) == {(y, x) for y in range(3) for x in range(3)}


def test_flip_mirrors_about_half_of_the_images() -> None:
    flipped = of_one(flip_and_shift(0), IMAGES)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, IMAGES, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_a_random_part_is_resized_to_the_whole() -> None:
    """Of a picture that is darker to the right and to the bottom, with its place written into its pixels."""
    down, right = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    cropped = of_one(random_resized_crop((0.2, 0.5)), torch.stack([down, right]).expand(400, 2, 20, 30).contiguous())
    height = cropped[:, 0, -1, 0] - cropped[:, 0, 0, 0]
    width = cropped[:, 1, 0, -1] - cropped[:, 1, 0, 0]  # negative where it is mirrored
    shares = (
        (height + height / 19) / 20 * (width.abs() + width.abs() / 29) / 30
    )  # the corners' pixels reach half a pixel further
    assert 0.19 <= shares.min() < 0.22
    assert 0.48 < shares.max() <= 0.51
    assert 150 < (width < 0).sum() < 250
    assert cropped[:, 0].min() >= 0 <= cropped[:, 1].min()  # nothing from outside comes in
    assert cropped[:, 0].max() <= 19
    assert cropped[:, 1].max() <= 29
    assert (cropped[:, 0, 0, 0] > 5).any()  # wherever it lies
    assert (cropped[:, 0, -1, 0] < 14).any()
    whole = of_one(random_resized_crop((1.0, 1.0), (1.0, 1.0)), IMAGES)
    assert all(
        torch.allclose(a, b, atol=1e-5) or torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(whole, IMAGES, strict=True)
    )


def test_masked_tokens_become_unknown_and_padding_stays() -> None:
    masked = of_one(mask_tokens(0.3), TOKENS)
    changed = masked != TOKENS
    assert (masked[changed] == 1).all()
    assert (masked[TOKENS == 0] == 0).all()
    assert 0.2 < changed[TOKENS != 0].float().mean() < 0.4
