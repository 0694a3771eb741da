"""What goes in and out over HTTP. Budget, battery, profile and manifest are the same models as everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Self, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from device_profiles.schema import Measurement, Name, Profile
from exporter.bundle.manifest import AxisValue, SubModelEntry, TensorSpec
from selector.choose.battery import Battery
from selector.choose.budget import Budget, Selection
from selector.choose.cascades import Cascade

MAX_NAME = 128
MAX_QUERIES = 1000
"""In one call."""

MAX_PREDICTED = 8
"""Queries with `measured` in one call: a prediction takes some tenths of a second."""

MAX_MEASURED = 64
"""Sub-models that others are predicted from: a few tell as much."""


class QueryBudget(Budget):
    """What one inference may cost, and what is wanted within that; all fields are optional."""

    plan: None = None

    @field_validator("plan", mode="before")
    @classmethod
    def _without_a_plan(cls, plan: object) -> object:
        if plan is not None:
            raise ValueError("allowed is none here; the device's runtime keeps a plan's account")
        return plan


class SelectRequest(BaseModel):
    """One query of `POST /v1/select`. `bundle` may be left out when one is served, `device` as on the command line.

    Instead of `device` there may be a `profile`, or, of a device that is not known, a few `measured` sub-models. With
    `cascades` those of the bundle are candidates too; the answer may then be one, made of several `stages`.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = Field(default=None, max_length=MAX_NAME)
    device: str | None = Field(default=None, max_length=MAX_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    profile: Profile | None = None
    measured: dict[Name, Measurement] | None = Field(default=None, min_length=1, max_length=MAX_MEASURED)
    budget: QueryBudget = QueryBudget()
    battery: Battery | None = None
    cascades: bool = False

    @model_validator(mode="after")
    def _one_device(self) -> Self:
        given = [name for name in ("device", "profile", "measured") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} given; allowed is one of device, profile and measured")
        return self


class SelectMany(BaseModel):
    """Many queries in one call."""

    model_config = ConfigDict(extra="forbid")

    queries: list[SelectRequest] = Field(min_length=1, max_length=MAX_QUERIES)

    @field_validator("queries")
    @classmethod
    def _few_predictions(cls, queries: list[SelectRequest]) -> list[SelectRequest]:
        if (count := sum(query.measured is not None for query in queries)) > MAX_PREDICTED:
            raise ValueError(f"{count} with measured; allowed are {MAX_PREDICTED}, because each is a prediction")
        return queries


SelectionDocument = create_model(
    "Selection",
    __doc__="The answer of `POST /v1/select`: which sub-model, what it is expected to cost, and why. `stages`: the sub-models "
    "that a cascade asks, the second where the first's two largest softmax probabilities differ by less than `threshold`. "
    "`quality` is by the `metric`, 0 to 1; `accuracy` is there where the metric is that, `token_ms` and `first_token_ms` where "
    "text is generated: latency and energy are then those of one token.",
    accuracy=(float | None, None),
    token_ms=(float | None, None),
    **{name: (kind, None if name == "first_token_ms" else ...) for name, kind in get_type_hints(Selection).items()},  # type: ignore[call-overload]
)


class FieldProblem(BaseModel):
    """What is wrong with one field of a body; `field` is its path with dots, empty for the document itself."""

    field: str
    value: str | float | bool | None
    message: str


class ProblemDocument(BaseModel):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(title="Problem", extra="allow")

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldProblem] = Field(default=[], json_schema_extra={"description": "Where fields are wrong."})


class SelectionsDocument(BaseModel):
    """The answer to many queries, in their order."""

    selections: list[SelectionDocument | ProblemDocument]  # type: ignore[valid-type]


class Health(BaseModel):
    """Of a process that is alive."""

    status: str


class Readiness(Health):
    """Of a process that can answer: the bundles that it serves."""

    bundles: list[str]


class BundleSummary(BaseModel):
    """One line of the list of bundles; `submodels` is their number."""

    name: str
    family: str
    submodels: int
    bytes_total: int
    devices: list[str]


class BundleList(BaseModel):
    bundles: list[BundleSummary]


def _with_accuracy(schema: dict[str, Any]) -> None:
    schema["properties"]["accuracy"] = {"type": "number", "description": "Where the metric is that: the quality."}


class SubModelDocument(SubModelEntry):
    """A sub-model; `bytes` are its graph's: what it takes beside the shared weights."""

    model_config = ConfigDict(json_schema_extra=_with_accuracy)

    layers: tuple[tuple[int, int], ...] = Field(default=(), exclude=True)
    bytes: int


class BundleDocument(BaseModel):
    """What `sortednet inspect --json` prints."""

    format_version: int
    family: str
    axes: dict[str, tuple[AxisValue, ...]]
    bytes_total: int
    weights_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    devices: list[str]
    fingerprint: str
    submodels: tuple[SubModelDocument, ...]
    cascades: list[Cascade]


class SubsetRequest(BaseModel):
    """The body of `POST /v1/bundles/{name}/subsets`: sub-models by name, or a budget whose best one is meant. `device` is the
    profile that is selected by, and that comes with the answer."""

    model_config = ConfigDict(extra="forbid")

    submodels: Annotated[list[Annotated[str, Field(max_length=MAX_NAME)]], Field(min_length=1, max_length=10_000)] | None = None
    device: str | None = Field(default=None, max_length=MAX_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    budget: QueryBudget | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        given = [name for name in ("submodels", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'neither'} given; needed is one of submodels and budget")
        return self


class SubsetDocument(BaseModel):
    """A part of a bundle: where its files lie, its manifest, what was selected for the budget, the device's profile of it."""

    bundle: str
    submodels: list[str]
    files: str
    selection: SelectionDocument | None  # type: ignore[valid-type]
    profile: Profile | None
    manifest: dict[str, Any]
