"""From a picture file to an input: sizes, crops, channels, orientation, and what is no picture."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from exporter.bundle.preprocessing import ImageError, ImagePreprocessing, read_image

RANDOM = np.random.default_rng(0)


def smooth(height: int, width: int) -> NDArray[Any]:
    """Red grows to the right, green to the bottom, blue is 100."""
    down, right = np.mgrid[0:height, 0:width]
    return np.stack([right * 255 / width, down * 255 / height, np.full((height, width), 100)], axis=2).astype(np.uint8)


def saved(pixels: NDArray[Any], path: Path, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_picture_of_the_right_size_is_its_pixels(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = read_image(saved(pixels, tmp_path / "a.png"), ImagePreprocessing(size=(5, 7), channels=3))
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.float32, (1, 3, 5, 7), True)
    assert np.array_equal(found[0], pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    assert np.array_equal(
        read_image(io.BytesIO((tmp_path / "a.png").read_bytes()), ImagePreprocessing(size=(5, 7), channels=3)), found
    )


@pytest.mark.parametrize(
    ("fields", "left", "right", "top", "bottom"),
    [
        ({}, 0.25, 0.75, 0.0, 1.0),  # the largest square in the middle of 40 x 80
        ({"resize": 32}, 0.375, 0.625, 0.25, 0.75),  # resized to 32 x 64, then 16 x 16 of it
        ({"crop": "none"}, 0.0, 1.0, 0.0, 1.0),
    ],
)
def test_resize_and_crop(fields: dict[str, Any], left: float, right: float, top: float, bottom: float, tmp_path: Path) -> None:
    path = saved(smooth(40, 80), tmp_path / "a.png")
    red, green, blue = read_image(path, ImagePreprocessing(size=(16, 16), channels=3, **fields))[0]
    for values, first, last in ((red[0], left, right), (green[:, 0], top, bottom)):
        step = (last - first) / 16
        assert values[[0, -1]] == pytest.approx([first + step / 2, last - step / 2], abs=0.02)
        assert (np.diff(values) > 0).all()
    assert blue == pytest.approx(100 / 255, abs=0.005)


def test_interpolations_differ_and_nearest_takes_pixels_as_they_are(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (21, 21, 3), dtype=np.uint8)
    path = saved(pixels, tmp_path / "a.png")
    found = {
        name: read_image(path, ImagePreprocessing(size=(7, 7), channels=3, interpolation=name))  # type: ignore[arg-type]
        for name in ("nearest", "bilinear", "bicubic", "lanczos")
    }
    assert len({values.tobytes() for values in found.values()}) == 4
    assert np.array_equal(found["nearest"][0], pixels[1::3, 1::3].transpose(2, 0, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_photo_is_turned_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    """As a camera stores it that was held otherwise, and says so in EXIF."""
    upright = smooth(48, 96)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    spec = ImagePreprocessing(size=(12, 20), channels=3)
    stored = saved(np.ascontiguousarray(undo[orientation](upright)), tmp_path / f"a{suffix}", exif=exif, **quality)
    plain = saved(upright, tmp_path / f"b{suffix}", **quality)
    assert np.abs(read_image(stored, spec) - read_image(plain, spec)).max() < 0.02


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    spec = ImagePreprocessing(size=(12, 20), channels=3)
    stored, plain = saved(smooth(48, 96), tmp_path / "a.png", exif=exif), saved(smooth(48, 96), tmp_path / "b.png")
    assert np.array_equal(read_image(stored, spec), read_image(plain, spec))


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path: Path) -> None:
    pixels = smooth(960, 1280)
    path = saved(pixels, tmp_path / "a.jpg", quality=100, subsampling=0)
    spec = ImagePreprocessing(size=(32, 32), resize=40, channels=3)
    exact = read_image(saved(pixels, tmp_path / "a.png"), spec)
    assert np.abs(read_image(path, spec) - exact).max() < 0.02


@pytest.mark.parametrize(
    ("mode", "channels", "wanted"),
    [
        ("L", 3, [[90, 90, 90]]),
        ("RGB", 1, [[round(0.299 * 10 + 0.587 * 90 + 0.114 * 200)]]),
        ("RGBA", 3, [[10, 90, 200]]),
        ("RGBA", 1, [[round(0.299 * 10 + 0.587 * 90 + 0.114 * 200)]]),
        ("LA", 1, [[90]]),
        ("P", 3, [[10, 90, 200]]),
        ("1", 1, [[255]]),
        ("I;16", 1, [[90]]),
    ],
)
def test_channels(mode: str, channels: int, wanted: list[list[int]], tmp_path: Path) -> None:
    values = {"L": 90, "RGB": (10, 90, 200), "RGBA": (10, 90, 200, 128), "LA": (90, 128), "1": 1}
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 4), 90 * 256 + 200, dtype=np.uint16))
    elif mode == "P":
        picture = Image.new("RGB", (4, 4), (10, 90, 200)).quantize(4)
        picture.info["transparency"] = b"\0\xff"
    else:
        picture = Image.new(mode, (4, 4), values[mode])
    picture.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", ImagePreprocessing(size=(4, 4), channels=channels))  # type: ignore[arg-type]
    assert (found[0, :, 0, 0] * 255).round().tolist() == pytest.approx(wanted[0], abs=1)


def test_values_are_scaled_where_the_network_does_not_do_it(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path = saved(pixels, tmp_path / "a.png")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    found = read_image(path, ImagePreprocessing(size=(4, 4), channels=3, value_range=(-1, 3), mean=mean, std=std))[0]
    wanted = (pixels / 255 * 4 - 1 - np.array(mean)) / np.array(std)
    assert found.transpose(1, 2, 0) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no picture", "is no picture; allowed are JPEG and PNG"),
        (b"", "is no picture"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as a picture|is no picture"),
        (b"GIF89a" + bytes(20), "is no picture"),
    ],
)
def test_what_is_no_picture_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: ({problem})"):
        read_image(path, ImagePreprocessing(size=(4, 4), channels=3))
    with pytest.raises(ImageError, match=f"^picture: ({problem})"):
        read_image(io.BytesIO(content), ImagePreprocessing(size=(4, 4), channels=3))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.95])
def test_a_truncated_picture_is_named(suffix: str, kept: float, tmp_path: Path) -> None:
    path = saved(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8), tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: "):
        read_image(path, ImagePreprocessing(size=(64, 64), channels=3))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png: cannot be read as a picture: .*No such file"):
        read_image(tmp_path / "nothing.png", ImagePreprocessing(size=(4, 4), channels=3))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"resize": 8, "size": (16, 8)}, "resize = 8: allowed is 16 and more"),
        ({"resize": 20, "crop": "none"}, "resize = 20: allowed with crop = 'center'"),
        ({"mean": (0.5,)}, "mean: 1 values; allowed is one for each of 3 channels"),
        ({"channels": 2}, "channels"),
        ({"size": (0, 4)}, "size"),
        ({"size": (4, 100_000)}, "size"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ImagePreprocessing(**{"size": (4, 4), "channels": 3, **fields})
