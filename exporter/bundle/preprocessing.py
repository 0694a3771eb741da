"""What a device needs to feed a model: how a picture, a sound or a text becomes an input. Needs neither torch nor onnx.

`read_image` is what the training read pictures with too: a photo is resized on a device exactly as it was there.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:  # Pillow comes with the extra `image`; opening a bundle needs neither it nor numpy
    from numpy.typing import NDArray
    from PIL.Image import Image

Side = Annotated[int, Field(ge=1, le=4096)]
FORMATS = ("JPEG", "PNG")
SUFFIXES = (".jpg", ".jpeg", ".png")

_ORIENTATION = 0x0112  # EXIF's: how a camera was held
_SWAPPED = 5  # from this orientation on rows are columns
_DRAFT_MARGIN = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is still so many times the size that is needed


class ImageError(ValueError):
    """A file that is no picture, or cannot be read to its end."""

    exit_code = 2


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImagePreprocessing(_Model):
    """From a picture to (1, C, H, W) float32: turned upright (EXIF), converted to gray or RGB, resized, cropped, scaled."""

    kind: Literal["image"] = "image"
    size: tuple[Side, Side]  # (H, W) of the input
    resize: Side | None = None  # the shorter side before the crop; None: as small as the crop allows
    crop: Literal["center", "none"] = "center"  # none: resized to `size` whatever its proportions
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"  # antialiased, as Pillow's
    channels: Literal[1, 3]
    value_range: tuple[float, float] = (0.0, 1.0)  # of black and white
    mean: tuple[float, ...] | None = None  # per channel, subtracted; None: where that is the network's own business
    std: tuple[float, ...] | None = None  # divided by
    layout: Literal["NCHW"] = "NCHW"

    @model_validator(mode="after")
    def _fits_together(self) -> ImagePreprocessing:
        if self.resize is not None and self.crop == "none":
            raise ValueError(f"resize = {self.resize}: allowed with crop = 'center', which keeps proportions")
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(f"resize = {self.resize}: allowed is {max(self.size)} and more, from which {self.size} is cropped")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name}: {len(values)} values; allowed is one for each of {self.channels} channels")
        return self


class AudioPreprocessing(_Model):
    """From a sound to (1, samples) float32, full scale 1: its channels averaged, resampled, cut or filled up with zeros."""

    kind: Literal["audio"] = "audio"
    sample_rate: Annotated[int, Field(ge=1)]  # Hz
    samples: Annotated[int, Field(ge=1)]
    channels: Annotated[int, Field(ge=1)] = 1


class TextPreprocessing(_Model):
    """From texts to (N, T) int64 by the tokenizer that the bundle carries; what is longer than `max_tokens` is cut at its end.

    The fields after `max_tokens` are of encoders that know padding; bundles from before them fill every text up.
    """

    kind: Literal["text"] = "text"
    tokenizer: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # a file of the bundle
    max_tokens: Annotated[int, Field(ge=1)]  # with those that the tokenizer adds
    mask: str | None = None  # the input that is 1 at a token and 0 at padding
    types: str | None = None  # the input that is 1 at the tokens of a second text and 0 elsewhere
    padding: Literal["longest", "max"] = "max"  # T: of the longest text of a batch, or always `max_tokens`
    pad_id: Annotated[int, Field(ge=0)] = 0
    pair: bool = False  # two texts make one input
    bos_id: Annotated[int, Field(ge=0)] | None = None  # of a language model: what a text begins with, where something does
    eos_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()  # that end an answer
    chat_template: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None  # a file of the bundle


Preprocessing = Annotated[ImagePreprocessing | AudioPreprocessing | TextPreprocessing, Field(discriminator="kind")]


def read_image(source: str | Path | BinaryIO, spec: ImagePreprocessing) -> NDArray[Any]:
    """The picture as an input, (1, C, H, W) float32. Raises ImageError naming a file that is no JPEG or PNG, or damaged."""
    import numpy as np

    with OpenedImage(source) as image:
        values = image.pixels(spec).transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    low, high = spec.value_range
    if (low, high) != (0.0, 1.0):
        values = values * np.float32(high - low) + np.float32(low)
    if spec.mean is not None:
        values = values - np.array(spec.mean, dtype=np.float32)[:, None, None]
    if spec.std is not None:
        values = values / np.array(spec.std, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray(values)


class OpenedImage:
    """A picture of which only the header has been read. Raises ImageError, also where its pixels are read."""

    def __init__(self, source: str | Path | BinaryIO, name: str = "picture") -> None:
        """`name`: what errors call it where it is no file."""
        from PIL import Image, UnidentifiedImageError

        self.name = str(source) if isinstance(source, (str, Path)) else name
        try:
            self._image: Image.Image = Image.open(source, formats=FORMATS)
        except UnidentifiedImageError:
            raise ImageError(f"{self.name}: is no picture; allowed are {' and '.join(FORMATS)}") from None
        except Exception as error:  # a damaged header raises whatever Pillow's readers meet
            raise ImageError(f"{self.name}: cannot be read as a picture: {_why(error)}") from None

    def __enter__(self) -> OpenedImage:
        return self

    def __exit__(self, *_: object) -> None:
        self._image.close()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        width, height = self._image.size
        late = self._image.format == "PNG" and "exif" not in self._image.info  # behind the pixels, which would be read for it
        return (height, width) if late or _orientation(self._image) < _SWAPPED else (width, height)

    @property
    def channels(self) -> int:
        """1 for shades of gray, 3 for colours; transparency does not count."""
        return 1 if self._image.mode in ("1", "L", "LA", "I", "F") or self._image.mode.startswith("I;") else 3

    def pixels(self, spec: ImagePreprocessing) -> NDArray[Any]:
        """(H, W, C) uint8, before values are scaled."""
        import numpy as np

        try:
            values = np.asarray(_upright_and_resized(self._image, spec))
        except Exception as error:  # a damaged file raises whatever Pillow's readers meet
            raise ImageError(f"{self.name}: cannot be read as a picture: {_why(error)}") from None
        return values if values.ndim == 3 else values[:, :, None]


def _upright_and_resized(image: Image, spec: ImagePreprocessing) -> Image:
    from PIL import Image as Images

    orientation = _orientation(image)
    height, width = spec.size if orientation < _SWAPPED else spec.size[::-1]
    box = _box(image.size, (width, height), spec)
    if image.format == "JPEG":
        scale = max(width / (box[2] - box[0]), height / (box[3] - box[1])) * _DRAFT_MARGIN
        stored = image.size
        image.draft(None, (int(stored[0] * scale), int(stored[1] * scale)))
        if image.size != stored:
            box = _box(image.size, (width, height), spec)
    converted = _converted(image, "L" if spec.channels == 1 else "RGB")
    if box != (0, 0, *converted.size) or converted.size != (width, height):
        converted = converted.resize((width, height), Images.Resampling[spec.interpolation.upper()], box)
    return converted.transpose(Images.Transpose[_TURNS[orientation]]) if orientation in _TURNS else converted


_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""By EXIF orientation: the `PIL.Image.Transpose` that undoes it."""


def _box(stored: tuple[int, int], wanted: tuple[int, int], spec: ImagePreprocessing) -> tuple[float, float, float, float]:
    """The part of a picture (width, height) that is resized to the wanted size: left, top, right, bottom."""
    if spec.crop == "none":
        return 0, 0, *stored
    shrunk = max(w / s for w, s in zip(wanted, stored, strict=True))
    scale = shrunk if spec.resize is None else max(shrunk, spec.resize / min(stored))
    kept = [min(float(s), w / scale) for w, s in zip(wanted, stored, strict=True)]
    left, top = ((s - k) / 2 for s, k in zip(stored, kept, strict=True))
    return left, top, left + kept[0], top + kept[1]


def _converted(image: Image, mode: str) -> Image:
    import numpy as np
    from PIL import Image as Images

    if image.mode.startswith("I"):  # 16 bits; Pillow would cut everything above 255 off
        image = Images.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data: the pixels may be whole
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
