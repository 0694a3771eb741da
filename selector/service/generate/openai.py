"""What clients of OpenAI's interface send and expect: completions, chat completions, models, errors.

What changes nothing here (`user`, `metadata`) is taken and not used; what would change the answer and is not supported is
refused by name. `budget`, `device`, `top_k`, `min_p` and `repetition_penalty` are this service's own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from selector.adapt.energy import Energy, EnergySource
from selector.service.generate.schemas import (
    MAX_MESSAGES,
    Message,
    OptionsDocument,
    Seed,
    Share,
    StopTexts,
    Temperature,
    TokenIds,
    Tokens,
)
from selector.service.web.schemas import MAX_NAME, QueryBudget

FINISH = {"stop": "stop", "length": "length", "context": "length", "memory": "length", "stopped": "stop"}
"""By the reason that a text ended for: its name there."""
COMPLETION_TOKENS = 16
"""Of a completion that nobody says a number for."""

_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class StreamOptions(BaseModel):
    """How a stream ends: `include_usage` adds a chunk with the numbers of tokens."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class _Sampling(BaseModel):
    """What both interfaces have."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, max_length=MAX_NAME)  # a bundle; may be left out where one is served
    temperature: Temperature | None = None  # 1 where it is not given
    top_p: Share | None = None
    stop: StopTexts | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    # The service's own.
    device: str | None = Field(default=None, max_length=MAX_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    budget: QueryBudget = QueryBudget()
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None

    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
    }
    """By field that is not supported: the values that change nothing."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Of fields that are not supported the document has the values that are taken."""
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, harmless in cls.supported.items():
            properties[name] = {"title": properties[name]["title"], "enum": [*harmless, None], "default": None}
        return schema

    @model_validator(mode="after")
    def _only_what_is_supported(self) -> Self:
        for name, harmless in self.supported.items():
            value = getattr(self, name)
            if value is not None and value not in harmless:
                shown = " or ".join(repr(one) for one in harmless)
                raise ValueError(f"{name} = {str(value)[:80]}: is not supported; allowed is {shown or 'none'}")
        return self

    def options(self, max_tokens: int | None) -> dict[str, Any]:
        """For a `Generator`."""
        names = ("top_k", "min_p", "repetition_penalty", "seed", "stop")
        given: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        given["temperature"] = 1.0 if self.temperature is None else self.temperature
        if self.top_p == 0:  # the fewest tokens that there are: the most probable one
            given["top_k"] = 1
        elif self.top_p is not None:
            given["top_p"] = self.top_p
        if max_tokens is not None:
            given["max_tokens"] = max_tokens
        return OptionsDocument.model_validate(given).given()

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Sampling):
    """The body of `POST /v1/completions`: one prompt, a text or token ids."""

    prompt: str | TokenIds | list[str]
    max_tokens: Tokens | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_Sampling.supported,
        "best_of": (1,),
        "echo": (False,),
        "logprobs": (),
        "suffix": ("",),
    }

    @property
    def text(self) -> str | list[int] | None:
        """None where there are several prompts."""
        if isinstance(self.prompt, str):
            return self.prompt
        if all(isinstance(one, int) for one in self.prompt):
            return self.prompt  # type: ignore[return-value]
        return self.prompt[0] if len(self.prompt) == 1 else None  # type: ignore[return-value]


class TextPart(BaseModel):
    """A part of what was said: only text here."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """What was said in a conversation, as a text or in parts."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    def message(self) -> Message:
        """With one text."""
        parts = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=self.role, content=parts)


class ChatRequest(_Sampling):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None

    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_Sampling.supported,
        "logprobs": (False,),
        "top_logprobs": (0,),
        "response_format": ({"type": "text"},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
    }

    @property
    def most(self) -> int | None:
        """Tokens of the answer, by either name."""
        given = [one for one in (self.max_tokens, self.max_completion_tokens) if one is not None]
        return min(given, default=None)

    @property
    def most_by(self) -> str:
        """The name that says `most`."""
        return "max_tokens" if self.max_tokens is not None and self.max_tokens == self.most else "max_completion_tokens"


class Usage(BaseModel):
    """Numbers of tokens; and, which is not of that interface, what the prompt and the text took of the battery, estimated by
    the profile's energies."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]  # cached_tokens: known from an earlier text
    energy_mj: float | None
    energy_source: EnergySource


class CompletionChoice(BaseModel):
    """The text, or what one token adds to it."""

    index: int = 0
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None


class Completion(BaseModel):
    """An answer of `POST /v1/completions`, or a chunk of one. `submodel`: the size that generated it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    submodel: str | None = None


class ChatAnswer(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The answer."""

    index: int = 0
    message: ChatAnswer
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    """An answer of `POST /v1/chat/completions`. `submodel`: the size that generated it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    submodel: str | None = None


class Model(BaseModel):
    """A bundle that generates text."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sortednet"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Failure(BaseModel):
    """What was wrong; `param`: the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class FailureDocument(BaseModel):
    """An error."""

    error: Failure


def usage(tokens: Mapping[str, int], energy: Energy) -> Usage:
    """Of a text's own numbers."""
    total = tokens["prompt_tokens"] + tokens["completion_tokens"]
    details = {"cached_tokens": tokens["reused_tokens"]}
    return Usage(
        prompt_tokens=tokens["prompt_tokens"],
        completion_tokens=tokens["completion_tokens"],
        total_tokens=total,
        prompt_tokens_details=details,
        energy_mj=energy.mj,
        energy_source=energy.source,
    )


def chat_chunk(head: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
    """One event of a streamed chat completion."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def head(prefix: str, identifier: str, model: str) -> dict[str, Any]:
    """What an answer and all its chunks begin with."""
    return {"id": f"{prefix}-{identifier}", "created": int(time.time()), "model": model}


def failure(status: int, detail: str, errors: Any = ()) -> tuple[int, dict[str, Any]]:
    """The status and the document of an error. A body that is wrong is answered with 400 there, a wrong field named."""
    first = errors[0] if errors else {}
    message = f"{first['field']}: {first['message']}" if first.get("field") and first["field"] not in detail else detail
    if errors and not first.get("field"):
        message = str(first["message"]).removeprefix("Value error, ")
    param = first.get("field", "").removeprefix("options.") or None
    status = 400 if status == 422 else status
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error")
    code = "model_not_found" if status == 404 and detail.startswith("model ") else None
    return status, {"error": {"message": message.replace("options.", ""), "type": kind, "param": param, "code": code}}
