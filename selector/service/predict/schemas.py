"""What goes into and comes out of `POST /v1/predict` and `GET /v1/bundles/{name}/runtime`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from selector.adapt.energy import EnergySource
from selector.choose.battery import Battery
from selector.service.web.schemas import MAX_NAME, QueryBudget, SelectionDocument


class PredictQuery(BaseModel):
    """What is asked, without the inputs: in the query string where the body is a .npy or .npz file.

    `budget.latency_ms` is the deadline of the whole request, counted from when the server had it: what it has waited is taken
    off before a sub-model is chosen. The other limits are per example. `battery` is the caller's.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = Field(default=None, max_length=MAX_NAME)
    device: str | None = Field(default=None, max_length=MAX_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    budget: QueryBudget = QueryBudget()
    battery: Battery | None = None


class PredictRequest(PredictQuery):
    """The JSON body: each input by name as nested lists of numbers, the batch outermost; or, for a bundle that takes texts, one
    text or several instead, `text_pair` being the second text of each pair."""

    inputs: dict[str, list[Any]] | None = Field(default=None, max_length=64)
    text: str | list[str] | None = None
    text_pair: str | list[str] | None = None


class ClassDocument(BaseModel):
    """A class that an example may be of."""

    label: str  # its name, or its number where the classes have none
    probability: float


class WordDocument(BaseModel):
    """A word of a text and what it most probably is; `start` and `end`: where it stands, in characters."""

    word: str
    start: int
    end: int
    label: str
    probability: float


class SpanDocument(BaseModel):
    """The part of a text that answers a question."""

    text: str
    start: int
    end: int
    probability: float


class PredictAnswer(BaseModel):
    """`queued_ms`: from the server's receipt to the start of the run; `latency_ms`: of the run itself, the whole batch.
    `energy_mj`: of the whole batch, estimated by the profile's energies, whose origin is `energy_source`.
    `answers`: of a classification the most probable classes of each example. Of texts: `tokens` of each, how many of them were
    `truncated`, for token classification the `words` of each, for question answering its `spans`, one or none."""

    outputs: dict[str, list[Any]]
    answers: list[list[ClassDocument]] | None = None
    tokens: list[int] | None = None
    truncated: int | None = None
    words: list[list[WordDocument]] | None = None
    spans: list[list[SpanDocument]] | None = None
    selection: SelectionDocument
    latency_ms: float
    queued_ms: float
    energy_mj: float | None
    energy_source: EnergySource


class RunDocument(BaseModel):
    """One run, as the runtime keeps it: latency, limit and estimated energy are per example of its batch."""

    at: float  # seconds since 1970
    submodel: str
    device: str
    latency_ms: float
    limit_ms: float | None
    met: bool
    slow_down: float
    battery_percent: float | None
    reason: str
    energy_mj: float | None


class RuntimeDocument(BaseModel):
    """One runtime of the answering process."""

    device: str  # the profile that it goes by, "" for none
    sessions: list[str]  # the sub-models that are open
    memory_mb: float  # of those, by the profile
    slow_down: dict[str, float]  # by profile: how many times longer runs take now than it says
    battery: Battery | None  # this machine's
    sensors: dict[str, float | None]
    history: list[RunDocument]  # the latest last


class RuntimeAnswer(BaseModel):
    """What the process that answers has to tell of a bundle; with several workers each tells of itself."""

    bundle: str
    process: int
    workers: int
    running: int  # requests, of all bundles of this process
    queued: int
    slots: int  # cores that runs may use at once
    deadlines: dict[str, int]  # met, missed, refused; since this process began
    runtimes: list[RuntimeDocument]
