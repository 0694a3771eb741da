"""`cascades.json`: the cascades of a bundle, as data.

The file is written after the export and is not in the manifest, as profiles are not: `{"cascades": […], "sha256": …}`, sealed
as they are; a list alone is one from before there were checksums. What a cascade costs on a device is in
`selector.choose.candidates`, how it is run in `selector.run.program`, how it is found in `selector.run.calibrating`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from device_profiles.atomic import check_writable, text_of
from device_profiles.schema import Share
from device_profiles.seal import check_seal, write_sealed
from device_profiles.wrong import first_wrong
from exporter.bundle import CASCADES_FILE, Bundle
from exporter.bundle.written import locked, recording
from selector.choose.budget import ACCURACY, BudgetError

__all__ = ["CASCADES_FILE", "Cascade", "add_cascade", "check_cascades", "read_cascades", "write_cascades"]


class Cascade(BaseModel):
    """Two sub-models and when the second is asked: where the first's margin, its largest softmax probability less its second
    largest, is below the threshold. Raises pydantic.ValidationError (a ValueError) naming the field and the value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    first: str
    then: str
    threshold: Share
    escalation: Share  # of the certifying examples, how many were passed on
    accuracy: Share  # on the certifying examples
    floor: Share  # what the accuracy is above, with this confidence
    confidence: Share
    examples: Annotated[int, Field(ge=1)]
    then_accuracy: Share | None = None  # of the second alone, on the certifying examples
    first_accuracy: Share | None = None  # of the first alone, likewise; not in older files

    def quality(self, qualities: Mapping[str, float | None]) -> float:
        """Its accuracy on the split that the sub-models' `qualities` are of, the test split, as is to be expected: that on the
        certifying examples, with what its sub-models are better or worse there, each as often as it answers. So a cascade and a
        sub-model are compared on one scale. Where only the second's accuracies are known it counts alone, without them none."""
        known, first = qualities.get(self.then), qualities.get(self.first)
        if known is None or self.then_accuracy is None:
            return self.accuracy
        change = known - self.then_accuracy
        if first is not None and self.first_accuracy is not None:
            change = self.escalation * change + (1 - self.escalation) * (first - self.first_accuracy)
        return min(1.0, max(0.0, self.accuracy + change))

    @property
    def split(self) -> str:
        """What `quality` is of, in words."""
        return "of the validation split" if self.then_accuracy is None else "expected on the test split"

    @property
    def words(self) -> str:
        """For a reason: which sub-models it asks, and how often the second."""
        return f"a cascade: {self.first}, and where that is not sure ({self.escalation:.0%}) {self.then}"


def read_cascades(bundle: Bundle) -> list[Cascade]:
    """Those of the bundle; none where there is no file. Raises BudgetError naming the field when the file is damaged or
    altered, two have the same name, one names what is not in the bundle, or the bundle's metric is not accuracy."""
    try:
        found = TypeAdapter(list[Cascade]).validate_python(_listed(bundle.path / CASCADES_FILE))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BudgetError(f"{CASCADES_FILE}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise BudgetError(f"{CASCADES_FILE}: {first_wrong(error, 'document')}") from None
    if found and bundle.metric != ACCURACY:
        raise BudgetError(f"{CASCADES_FILE}: cascades keep an accuracy, the metric of this bundle is {bundle.metric}")
    names: set[str] = set()
    for cascade in found:
        for name in (cascade.first, cascade.then):
            if name not in bundle.submodels:
                raise BudgetError(f"{CASCADES_FILE}: {cascade.id} names {name!r}, which is not in this bundle")
        if cascade.id in bundle.submodels or cascade.id in names:
            raise BudgetError(f"{CASCADES_FILE}: id = {cascade.id!r}: there is another one of that name; allowed is each once")
        names.add(cascade.id)
    return found


def write_cascades(bundle: Bundle, cascades: Sequence[Cascade]) -> Path:
    """Replaces the file in one step. Raises BudgetError when it cannot be written, and where another bundle was put in the
    place of this one."""
    with _alone(bundle):
        return _write(bundle, cascades)


def check_cascades(bundle: Bundle, *, overwrite: bool = False) -> None:
    """Looks, before the search, whether a cascade can be added. Raises BudgetError when the bundle cannot be written to, and
    without `overwrite` when its file is damaged."""
    try:
        check_writable(bundle.path)
    except OSError as error:
        raise BudgetError(f"{CASCADES_FILE}: cannot be written to {str(bundle.path)!r}: {error.strerror}") from None
    _standing(bundle, overwrite)


def add_cascade(bundle: Bundle, cascade: Cascade, *, overwrite: bool = False) -> Path:
    """Adds one to the bundle's cascades. One of the same sub-models and floor is replaced where it was certified alike.

    Raises BudgetError as `check_cascades`, where another bundle was put in this one's place, and without `overwrite` where the
    other was certified with another confidence or on another number of examples.
    """
    with _alone(bundle):
        others = _standing(bundle, overwrite)
        for other in others:
            for name in ("confidence", "examples"):
                there, here = getattr(other, name), getattr(cascade, name)
                if other.id == cascade.id and there != here and not overwrite:
                    raise BudgetError(
                        f"{CASCADES_FILE}: {other.id} is there with {name} = {there:g}, this one has {here:g}; replace it with "
                        "--overwrite"
                    )
        return _write(bundle, [*(other for other in others if other.id != cascade.id), cascade])


@contextmanager
def _alone(bundle: Bundle) -> Iterator[None]:
    """No other writes into the bundle, which is still the one that was opened: a cascade says nothing of another's weights."""
    with locked(bundle.path):
        if not bundle.stands:
            raise BudgetError(f"{CASCADES_FILE}: another bundle was put in {str(bundle.path)!r}; find the cascade again")
        yield


def _write(bundle: Bundle, cascades: Sequence[Cascade]) -> Path:
    path = bundle.path / CASCADES_FILE
    document = {"cascades": [cascade.model_dump(mode="json") for cascade in cascades]}
    try:
        with recording(bundle.path, CASCADES_FILE, document):
            write_sealed(document, path)
    except OSError as error:
        raise BudgetError(f"{CASCADES_FILE}: cannot be written to {str(bundle.path)!r}: {error.strerror}") from None
    return path


def _standing(bundle: Bundle, overwrite: bool) -> list[Cascade]:
    try:
        return read_cascades(bundle)
    except BudgetError as error:
        if overwrite:
            return []
        raise BudgetError(f"{error}; --overwrite replaces the file") from None


def _listed(path: Path) -> Any:
    """What should be the list. Raises OSError, BudgetError."""
    try:
        document = json.loads(text_of(path.read_bytes()))
        if not isinstance(document, dict):
            return document
        check_seal(document)
        return document.get("cascades")
    except UnicodeDecodeError:
        raise BudgetError(f"{CASCADES_FILE}: document: is no text; allowed is JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:  # no JSON, no text, a checksum that does not fit
        raise BudgetError(f"{CASCADES_FILE}: {error}") from None
