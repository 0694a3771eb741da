"""What goes into and comes out of `POST /v1/generate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from selector.adapt.energy import EnergySource
from selector.service.web.schemas import MAX_NAME, QueryBudget, SelectionDocument

MAX_MESSAGES = 4096
MAX_PROMPT_IDS = 2**20
MAX_STOPS = 64

Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
StopTexts = (
    Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)]
)
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1, max_length=MAX_PROMPT_IDS)]


class Message(BaseModel):
    """What was said in a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class OptionsDocument(BaseModel):
    """How the next token is drawn, and when the text ends. Without any: always the most probable token, until the model ends
    its text or the service's own limit is reached."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    top_p: Annotated[Share, Field(gt=0)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    seed: Seed | None = None
    stop: StopTexts | None = None
    ignore_eos: bool | None = None
    speculative: Literal["auto", "off", "ngram", "exit"] | None = None
    early_exit: Annotated[Share, Field(gt=0)] | None = None

    def given(self) -> dict[str, Any]:
        """Those that are given."""
        return self.model_dump(exclude_none=True)


class GenerateRequest(BaseModel):
    """What is asked. `prompt`: a text, or token ids; `messages`: a conversation, by the bundle's chat template; one of the two.

    `budget.first_token_ms` counts from when the server had the request: what it has waited is taken off. The prompt's own
    length and the context that it makes are what the size is chosen for. `stream` false: one JSON document at the end.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = Field(default=None, max_length=MAX_NAME)
    device: str | None = Field(default=None, max_length=MAX_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    prompt: str | TokenIds | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    options: OptionsDocument = OptionsDocument()
    budget: QueryBudget = QueryBudget()
    stream: bool = True

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        given = [name for name in ("prompt", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'neither'} given; needed is one of prompt and messages")
        return self

    @property
    def text(self) -> str | list[int] | list[dict[str, str]]:
        """The prompt, as a `Generator` takes it."""
        if self.messages is not None:
            return [message.model_dump() for message in self.messages]
        assert self.prompt is not None
        return self.prompt


class PieceDocument(BaseModel):
    """One event of a stream: what one token added. `text` may be empty, where it is part of a character or of what may be a
    stop string. `ms`: of the first one with the prompt."""

    text: str
    tokens: list[int]
    submodel: str
    ms: float


class SwitchDocument(BaseModel):
    """Another size in the middle of the text: after how many tokens, and for how many keys and values were computed anew."""

    token: int
    before: str
    after: str
    computed: int
    reason: str


class UsageDocument(BaseModel):
    """Tokens; `reused_tokens` of the prompt were known from an earlier text."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int


class GuessesDocument(BaseModel):
    """Tokens that were guessed before they were computed, and how many of them came; the text is the same. `exited`: those that
    an exit said unverified (`early_exit`); of those `checked` the whole model thought another one likeliest `differed` times.
    `problem`: why this device guesses nothing."""

    mode: str
    calls: int
    drafted: int
    accepted: int
    by: dict[str, int]
    exited: int
    checked: int
    differed: int
    problem: str


class EndDocument(BaseModel):
    """The last event of a stream, named `end`. `finish`: stop (the model's own end, or a stop string), length (`max_tokens`),
    context, memory or stopped. `selection`: the size that generated last, and why. `token_ms`: the mean after the first.
    `energy_mj`: of the prompt and the text, estimated by the profile's energies, whose origin is `energy_source`."""

    finish: str
    usage: UsageDocument
    selection: SelectionDocument
    switches: list[SwitchDocument]
    guesses: GuessesDocument
    first_token_ms: float
    token_ms: float | None
    queued_ms: float
    energy_mj: float | None
    energy_source: EnergySource


class GenerateAnswer(EndDocument):
    """The whole text at once."""

    text: str
    tokens: list[int]
