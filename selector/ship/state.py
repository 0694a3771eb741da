"""`state.json` beside a bundle: what a device remembers of its versions, what a trial of one has shown, and the lock under
which one is put in place. `Report` is what of it a device tells the service that the versions come from.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from device_profiles.atomic import replacing
from device_profiles.schema import Name, Positive, Share
from exporter.bundle import Bundle, BundleError
from exporter.bundle.atomic import workplace

STATE_FILE = "state.json"
LONGEST_REASON = 500

Content = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
"""What a version holds, whichever of its sub-models are here: the first of the whole manifest's hash."""


State = Literal["trying", "accepted", "taken back"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Figures(_Document):
    """What a trial has shown of a new version, and of the one before it; None where nothing was seen."""

    runs: Annotated[int, Field(ge=0)] = 0  # on the new version
    submodel: Annotated[str, Field(max_length=255)] | None = None  # whose latencies these are; None: of all
    p50_ms: Positive | None = None
    p50_ms_before: Positive | None = None
    missed: Share | None = None  # of the runs, after their deadline
    missed_before: Share | None = None
    quality: Share | None = None  # on the labelled examples: of the sub-model that lost most
    quality_before: Share | None = None


class Tried(_Document):
    """A version that is or was tried. `published`: what the service calls it; that which it holds where none says."""

    content: Content
    published: Content
    number: int | None  # of its signature
    figures: Figures = Figures()


class Trial(Tried):
    """It is being tried. `new` and `previous`: its id and that of the version before."""

    new: str
    previous: str


class Outcome(Tried):
    """It was tried. `reason`: why it was taken back; None: it stays."""

    reason: str | None


class Remembered(_Document):
    """What a device remembers of a bundle's versions."""

    order: tuple[str, ...] = ()  # ids in the order in which they came
    newest: int = 0  # the greatest version number that stayed here; of signed bundles
    refused: dict[str, str] = {}  # by what a version holds: why it was taken back
    trial: Trial | None = None
    outcome: Outcome | None = None  # of the version that was tried last


class Report(_Document):
    """What a device tells: its model, and of the version that is tried or was tried last, how that goes. `tries`: whether it
    would try one; a device that has no version yet has nothing to compare it with."""

    model_config = ConfigDict(extra="forbid")

    model: Name  # see `device_profiles.models`
    tries: bool = True
    version: Content | None = None
    state: State | None = None
    reason: Annotated[str, Field(max_length=LONGEST_REASON)] | None = None
    figures: Figures = Figures()

    @model_validator(mode="after")
    def _of_a_version(self) -> Self:
        if (self.version is None) != (self.state is None):
            raise ValueError("version and state: allowed are both or none")
        return self


def trial_of(target: Path) -> Trial | None:
    """Of the version that is at `target`. One that was begun for another is none: who put that there was killed. Raises
    BundleError where there is no bundle."""
    trial = read_state(target).trial
    return trial if trial is not None and trial.new == id_of(Bundle(target, verify=False)) else None


def report_of(target: Path, model: str, *, tries: bool = True) -> Report:
    """Of the bundle at `target`, if there is one, by a device of that model."""
    outcome = read_state(target).outcome
    try:
        if (trial := trial_of(target)) is not None:
            return Report(model=model, version=trial.published, state="trying", figures=trial.figures)
        Bundle(target, verify=False)
    except BundleError:
        tries = False
    if outcome is None:
        return Report(model=model, tries=tries)
    said = None if outcome.reason is None else outcome.reason[:LONGEST_REASON]
    state: State = "accepted" if said is None else "taken back"
    return Report(model=model, tries=tries, version=outcome.published, state=state, reason=said, figures=outcome.figures)


def id_of(bundle: Bundle) -> str:
    """Of a version with the sub-models that are here: the first of its manifest's hash."""
    return bundle.manifest.sha256[:12]


def folder_of(target: Path) -> Path:
    """Where the versions of the bundle at `target` are."""
    target = target.resolve()
    return workplace(target).with_name(f".{target.name}.versions")


def read_state(target: Path) -> Remembered:
    """Empty where there is none. A damaged one is begun anew: it says nothing that a bundle could not be opened without."""
    try:
        return Remembered.model_validate_json((folder_of(target) / STATE_FILE).read_bytes())
    except (OSError, ValidationError):
        return Remembered()


def write_state(target: Path, state: Remembered) -> None:
    """Raises OSError."""
    with replacing(folder_of(target) / STATE_FILE) as partial:
        partial.write_text(state.model_dump_json(indent=1) + "\n", encoding="utf-8")


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """No other process puts a version in place. Raises BundleError where one does."""
    folder = folder_of(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise BundleError(f"{str(target)!r}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BundleError(f"{str(target)!r}: another version is just being put there") from None
        yield
