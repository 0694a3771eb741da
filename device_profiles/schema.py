"""The schema of a profile: `profiles/<device>.json` in a bundle, and what the REST service exchanges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from device_profiles.atomic import text_of
from device_profiles.seal import SealError, check_seal, sealed, write_sealed

Source = Literal["measured", "predicted", "declared"]
"""Where a figure comes from. Nothing in a profile is without one."""

Figure = Literal["latency_ms", "load_ms", "memory_mb", "energy_mj"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
NAME_ALLOWED = "allowed are 1 to 128 of A-Z a-z 0-9 . _ -, the first a letter or digit"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""Of a whole, 0 to 1: never per cent."""


MAX_LENGTH, MAX_LENGTHS = 2**20, 64
"""Of an input, and how many of them a profile holds."""

MAX_DRIFT = 256
"""Stretches of steady work that a profile tells of."""

Length = Annotated[int, Field(ge=1, le=MAX_LENGTH)]
"""Of one example's free axis: the tokens of a text, the frames of a sound."""

Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, hexadecimal."""


class ProfileError(ValueError):
    """A profile that is missing, damaged or contradicts itself."""

    exit_code = 2


FORMAT_VERSION = 1
"""Of a profile's document. A newer version may add fields without another number: what is not known here is ignored."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DeviceInfo(_Model):
    """The device, and how it was used while measuring."""

    name: Name
    cpu: str
    cores: Annotated[int, Field(ge=1)]  # physical
    threads: Annotated[int, Field(ge=1)]  # that one inference uses
    ram_mb: Annotated[int, Field(ge=1)]
    os: str
    onnxruntime: str
    execution_provider: str
    spinning: bool = True  # its idle threads waited actively for a while
    energy: str = ""  # what the energy was read from, if it is known
    label: str = ""  # in words, what this is and under which conditions it was measured


PERCENTILES = (50, 90, 99)
"""Of the latency that a profile holds."""


class LatencyMs(_Model):
    """Milliseconds of one inference at batch size 1, over n runs."""

    p50: Positive
    p90: Positive
    p99: Positive
    mean: Positive
    n: Annotated[int, Field(ge=0)]  # 0 where they are predicted

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not self.p50 <= self.p90 <= self.p99:
            raise ValueError(f"percentiles descend: p50 {self.p50}, p90 {self.p90}, p99 {self.p99}")
        return self


def _nothing(value: Any) -> bool:
    """Not written: a profile of inputs of one size stays the document that it was before there were lengths."""
    return not value


ByTokens = Annotated[dict[Length, LatencyMs], Field(min_length=1, max_length=MAX_LENGTHS)]


class Decoding(_Model):
    """What a language model takes to generate text, one sequence at a time."""

    prefill: ByTokens  # by tokens of the prompt: from an empty cache to the logits of its last token
    token: ByTokens  # by tokens that are in the cache before it: one further token


class Measurement(_Model):
    """What one sub-model costs on this device. `source` says of every figure where it comes from; that of the latency holds
    for `lengths` and `decoding` too. Of a model that generates text, latency and energy are those of one token."""

    latency_ms: LatencyMs  # where there are lengths, at the profile's reference length; of a decoder, at its longest context
    lengths: Annotated[dict[Length, LatencyMs], Field(max_length=MAX_LENGTHS, exclude_if=_nothing)] = {}  # of the input
    decoding: Annotated[Decoding | None, Field(exclude_if=_nothing)] = None
    load_ms: NotNegative | None = None  # to open the sub-model's session, median
    memory_mb: NotNegative | None = None  # private memory that the open session and its first (longest) run added, median
    energy_mj: NotNegative | None = None  # of one inference, at the reference length; of a decoder per token, as its latency is
    source: dict[Figure, Source]

    @property
    def by_length(self) -> dict[int, LatencyMs]:
        """The latency by length of the input, or of one token by those before it; none where it is known at one only."""
        return self.lengths if self.decoding is None else self.decoding.token

    @field_validator("source", mode="before")
    @classmethod
    def _of_figures_known_here(cls, given: Any) -> Any:
        return _known(given)

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Self:
        figures = {name for name in ("latency_ms", "load_ms", "memory_mb", "energy_mj") if getattr(self, name) is not None}
        if set(self.source) != figures:
            raise ValueError(f"source names {sorted(self.source)}; allowed is one for each figure given: {sorted(figures)}")
        return self


class Drift(_Model):
    """What runs took in a stretch of steady work, which began so long after that did."""

    seconds: NotNegative
    p50: Positive  # ms
    energy_mj: NotNegative | None = None  # of one run


class Sustained(_Model):
    """What a device holds that is kept busy: one sub-model was run without a pause for so long. The same drift is taken to meet
    the others (`device_profiles.sustained`)."""

    submodel: str
    minutes: Positive
    first: LatencyMs  # in the first minute
    after: LatencyMs  # since the drift had settled, or in the last minute where it had not
    first_energy_mj: NotNegative | None = None
    after_energy_mj: NotNegative | None = None
    settled_minutes: NotNegative | None = None  # from then on runs took what they took at the end; None: still drifting there
    drift: Annotated[tuple[Drift, ...], Field(max_length=MAX_DRIFT)] = ()


class PredictionError(_Model):
    """Of a predicted figure, relative to it: from predicting each measured sub-model from the others."""

    median: NotNegative
    p95: NotNegative


class Profile(_Model):
    """One device's measurements of one bundle."""

    format_version: Annotated[int, Field(ge=1)] = FORMAT_VERSION
    device: DeviceInfo
    bundle: Checksum  # the bundle's fingerprint: its networks, not its weights
    measured_at: AwareDatetime
    submodels: Annotated[dict[str, Measurement], Field(min_length=1)]
    length: Annotated[Length | None, Field(exclude_if=_nothing)] = None
    """The reference: the longest that was measured, of inputs, or of contexts where text is generated."""
    prediction: dict[Figure, PredictionError] = {}  # by figure, where some are predicted
    sustained: Annotated[Sustained | None, Field(exclude_if=_nothing)] = None  # the figures above are of the first minute
    # The document's own checksum (`device_profiles.seal`). It is of the text that was read, whose reader checks it with
    # `check_seal` and which a profile does not keep: always None here.
    sha256: Annotated[Checksum | None, AfterValidator(lambda _: None)] = Field(default=None, exclude=True)

    @field_validator("format_version")
    @classmethod
    def _not_newer(cls, given: int) -> int:
        if given > FORMAT_VERSION:
            raise ValueError(f"{given} is newer than this sortednet, which knows {FORMAT_VERSION}: update it, or measure again")
        return given

    @field_validator("prediction", mode="before")
    @classmethod
    def _of_figures_known_here(cls, given: Any) -> Any:
        return _known(given)


def _known(by_figure: Any) -> Any:
    """Without figures that a newer version has."""
    if not isinstance(by_figure, dict):
        return by_figure
    return {figure: value for figure, value in by_figure.items() if figure in get_args(Figure)}


def read_profile(path: str | Path) -> Profile:
    """Raises ProfileError naming the file and the first field that is wrong, or that the checksum in it does not fit."""
    try:
        content = text_of(Path(path).read_bytes())
        profile = Profile.model_validate_json(content)
        check_seal(json.loads(content))
        return profile
    except UnicodeDecodeError:
        raise ProfileError(f"profile {Path(path).name}: document: is no text; allowed is JSON in UTF-8") from None
    except SealError as error:
        raise ProfileError(f"profile {Path(path).name}: {error}") from None
    except OSError as error:
        raise ProfileError(f"profile {str(path)!r}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ProfileError(f"profile {Path(path).name}: {place or 'document'}: {first['msg']}") from None


def write_profile(profile: Profile, path: str | Path) -> None:
    """Replaces the file in one step, sealed. Raises ProfileError when it cannot be written."""
    try:
        write_sealed(profile.model_dump(mode="json"), path)
    except OSError as error:
        raise ProfileError(f"profile {str(path)!r}: cannot be written: {error.strerror}") from None
    except SealError as error:
        raise ProfileError(f"profile {str(path)!r}: {error}") from None


def profile_document(profile: Profile) -> dict[str, Any]:
    """The JSON object that `write_profile` writes, with its checksum. Raises SealError where it has no canonical form."""
    return sealed(profile.model_dump(mode="json"))
