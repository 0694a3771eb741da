"""`image-folder:PATH`: JPEG and PNG files, one folder per class, read as they are needed.

Shapes: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from exporter.bundle.preprocessing import SUFFIXES, ImageError, ImagePreprocessing, OpenedImage
from trainer.data import augment as augmentations
from trainer.data.augment import Augmentation
from trainer.data.dataset import INPUT, Batch, DataSet, pixels
from trainer.data.folders import ClassFiles, class_files, has_class_files
from trainer.data.sources import Source, register_source
from trainer.data.splits import Array
from trainer.data.statistics import channel_statistics
from trainer.family import DataSpec
from trainer.submodel import TrainerError

USUAL_SIDE = 224
"""Where no size is asked for and the pictures are of several, or of one with a side above `LARGEST_OWN_SIDE`."""

LARGEST_OWN_SIDE = 512
FEW = 256  # pictures that are not worth starting worker processes for
HEADERS = 10_000  # that are looked at before the training, evenly spaced over all files

AUGMENTATIONS: Mapping[str, Callable[[int], Augmentation | None]] = {
    "flip-and-shift": lambda side: augmentations.flip_and_shift(max(1, side // 8)),
    "shift": lambda side: augmentations.shift(max(1, side // 8)),
    "random-resized-crop": lambda side: augmentations.random_resized_crop(),
    "none": lambda side: None,
}
"""By name: the augmentation of pictures whose shorter side is so long."""

USUAL_AUGMENTATION = "flip-and-shift"
"""Of pictures whose targets are classes, where none is asked for."""


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are read: the fields of `ImagePreprocessing`, where they are not to be told from the pictures."""

    size: int | Sequence[int] | None = None  # one number, or height and width
    resize: int | None = None
    crop: str = "center"
    interpolation: str = "bilinear"
    augment: str | None = None  # None: the usual one where the targets are classes of the whole picture, else "none"
    channels: int | None = None


class Pictures(Protocol):
    """Where pictures come from. Worker processes get a copy."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """As errors call it."""

    def opened(self, index: int) -> OpenedImage:
        """Raises ImageError naming it."""


def _image_folder(
    name: str,
    path: str,
    *,
    size: int | Sequence[int] | None = None,
    resize: int | None = None,
    crop: str = "center",
    interpolation: str = "bilinear",
    augment: str | None = None,
    channels: int | None = None,
) -> DataSet:
    """Options: those of `PictureOptions`."""
    options = PictureOptions(size, resize, crop, interpolation, augment, channels)
    check_options(options)
    files = class_files(Path(path), what="image", suffixes=SUFFIXES)
    _refuse_other_classes(files)
    pictures = PicturePaths(files.paths)
    return picture_set(name, pictures, torch.from_numpy(files.labels), files.classes, files.parts, options, files.record(name))


def check_options(options: PictureOptions) -> None:
    """Before anything is read. Raises TrainerError naming a wrong value."""
    if options.augment is not None and options.augment not in AUGMENTATIONS:
        raise TrainerError(f"data option augment = {options.augment!r}: allowed are {', '.join(AUGMENTATIONS)}")
    if options.size is not None:
        _size(options.size)


def picture_set(
    name: str,
    pictures: Pictures,
    targets: Tensor,
    classes: Sequence[str],
    parts: Mapping[str, Array],
    options: PictureOptions,
    record: Mapping[str, Any],
    *,
    count: int | None = None,
) -> DataSet:
    """Pictures with targets (N, …), in parts, as a data set. `count`: of the classes, where they have no names.

    `record`: what is to be remembered beside how pictures are read. Raises TrainerError naming a picture that cannot be read,
    and for an augmentation that moves pictures away from their targets.
    """
    count = len(classes) if count is None else count
    augment, notes = _augmentation(options.augment, targets, count)
    found_channels, found_size = _headers(pictures, options.channels)
    spec = _preprocessing(
        size=found_size if options.size is None else _size(options.size),
        resize=options.resize,
        crop=options.crop,
        interpolation=options.interpolation,
        channels=found_channels if options.channels is None else options.channels,
    )
    strict = options.channels is None
    split = {part: PictureFiles(pictures, indices, targets, spec, strict=strict) for part, indices in parts.items()}
    train = split["train"]
    mean, std = channel_statistics(train, workers=-1 if len(train) > FEW else 0)
    described = spec.model_dump(mode="json")
    return DataSet(
        name,
        DataSpec((spec.channels, *spec.size), count, mean, std, target_shape=tuple(targets.shape[1:])),
        train,
        split["validation"],
        split["test"],
        AUGMENTATIONS[augment](min(spec.size)),
        {**record, "preprocessing": described},
        labels=tuple(classes),
        preprocessing={INPUT: described},
        notes=notes,
    )


def _augmentation(asked: str | None, targets: Tensor, classes: int) -> tuple[str, tuple[str, ...]]:
    """Its name, and what the user should know. All of them move what is in a picture: a mask or points would stay behind."""
    if asked is not None:
        if asked != "none" and targets.ndim > 2:
            raise TrainerError(
                f"data option augment = {asked!r}: would move the pictures and not their targets, of shape "
                f"{tuple(targets.shape[1:])} each; allowed is none"
            )
        return asked, ()
    if (targets.ndim == 1 and classes > 0) or (targets.ndim == 2 and bool(((targets == 0) | (targets == 1)).all())):
        return USUAL_AUGMENTATION, ()
    where = f"; where they do not: --data-option augment={USUAL_AUGMENTATION}" if targets.ndim <= 2 else ""
    return "none", (f"Pictures are not augmented: the targets may say where something is{where}.",)


class PicturePaths:
    """Pictures that are files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        # As one array: of a million Python strings every worker process would soon have a copy, made by counting references.
        self._names = np.array([os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return os.fsdecode(bytes(self._names[index]))

    def opened(self, index: int) -> OpenedImage:
        return OpenedImage(self.name(index))


class PictureFiles:
    """Some of the pictures, decoded and resized when a batch of them is asked for.

    `strict`: a picture with another number of channels is refused, not converted.
    """

    reads_files = True

    def __init__(self, pictures: Pictures, indices: Array, targets: Tensor, spec: ImagePreprocessing, *, strict: bool) -> None:
        self.pictures, self.indices, self.spec, self.strict = pictures, indices, spec, strict
        self.targets = targets[torch.from_numpy(indices)]

    def __len__(self) -> int:
        return len(self.targets)

    def path(self, index: int) -> str:
        return self.pictures.name(int(self.indices[index]))

    def batch(self, indices: Tensor) -> Batch:
        """(N, C, H, W) float32 in [0, 1], and labels. Raises TrainerError naming a picture that cannot be read."""
        packed = self.packed_batch(indices)
        return Batch({name: pixels(tensor) for name, tensor in packed.inputs.items()}, packed.targets)

    def packed_batch(self, indices: Tensor) -> Batch:
        """The same with the pixels as bytes."""
        values = np.empty((len(indices), *self.spec.size, self.spec.channels), dtype=np.uint8)
        for place, index in enumerate(indices.tolist()):
            values[place] = self._read(int(self.indices[index]))
        return Batch({INPUT: torch.from_numpy(values).permute(0, 3, 1, 2)}, self.targets[indices])

    def _read(self, index: int) -> Any:
        try:
            with self.pictures.opened(index) as image:
                if self.strict and image.channels != self.spec.channels:
                    raise _other_channels(self.pictures.name(index), image.channels, self.spec.channels)
                return image.pixels(self.spec)
        except ImageError as error:
            raise TrainerError(str(error)) from None


def _headers(pictures: Pictures, channels: int | None) -> tuple[int, tuple[int, int]]:
    """The channels that the pictures have, and the size (H, W) that they are given where none is asked for.

    Raises TrainerError naming a picture whose channels are not those of the others, where it is not said how to convert it.
    """
    looked_at = np.linspace(0, len(pictures) - 1, min(len(pictures), HEADERS)).astype(int)
    of_channels: dict[int, int] = {}
    counts: Counter[int] = Counter()
    sizes = set()
    for index in looked_at.tolist():
        try:
            with pictures.opened(index) as image:
                sizes.add(image.size)
                counts[image.channels] += 1
                of_channels.setdefault(image.channels, index)
        except ImageError as error:
            raise TrainerError(str(error)) from None
    usual = counts.most_common(1)[0][0]
    for other, index in of_channels.items():
        if other != usual and channels is None:
            raise _other_channels(pictures.name(index), other, usual)
    own = next(iter(sizes))
    return usual, own if len(sizes) == 1 and max(own) <= LARGEST_OWN_SIDE else (USUAL_SIDE, USUAL_SIDE)


def _other_channels(path: str, found: int, usual: int) -> TrainerError:
    return TrainerError(
        f"{path}: a picture with {_named(found)} among others with {_named(usual)}; allowed is one kind, "
        f"or say how to convert them: --data-option channels=1 (gray) or channels=3"
    )


def _named(channels: int) -> str:
    return f"{channels} channel{'s' if channels != 1 else ''}"


def _size(size: Any) -> tuple[int, int]:
    sides = [size, size] if type(size) is int else size
    if not isinstance(sides, (list, tuple)) or [type(s) for s in sides] != [int, int] or not all(1 <= s <= 4096 for s in sides):
        raise TrainerError(f"data option size = {size!r}: allowed are one number or [height, width], each from 1 to 4096")
    return sides[0], sides[1]


def _preprocessing(**options: Any) -> ImagePreprocessing:
    try:
        return ImagePreprocessing(**options)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        problem = first["msg"].removeprefix("Value error, ")
        raise TrainerError(f"data option {f'{field} = {options[field]!r}: ' if field else ''}{problem}") from None


def _refuse_other_classes(files: ClassFiles) -> None:
    """A part with a folder of its own that lacks a class was put together otherwise; one split off may lack a rare class."""
    for part in (part for part, origin in files.split.items() if origin.endswith("/")):
        indices = files.parts[part]
        missing = sorted(set(range(len(files.classes))) - set(files.labels[indices].tolist()))
        if missing:
            have = f"{len(files.classes) - len(missing)} of {len(files.classes)} classes"
            raise TrainerError(f"image folder {str(files.root)!r}: {part} has {have}, not {files.classes[missing[0]]!r}")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


register_source(Source("image-folder", _image_folder, "PATH", lambda path: has_class_files(path, _is_picture)))
