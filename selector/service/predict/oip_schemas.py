"""Documents of the Open Inference Protocol, version 2: what `/v2` takes and answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from selector.service.web.schemas import MAX_NAME

MAX_ID = 256
MAX_TENSORS = 64
Parameters = Annotated[dict[str, bool | int | float | str], Field(max_length=64)]
Name = Annotated[str, Field(max_length=MAX_NAME)]


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InferInput(_Given):
    """One tensor: `data` in JSON, flat or nested, or `parameters.binary_data_size` of the bytes that follow the JSON."""

    name: Name
    shape: Annotated[list[int], Field(max_length=16)]
    datatype: Annotated[str, Field(max_length=16)]
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferOutput(_Given):
    """One that is wanted. `parameters.binary_data`: its values follow the JSON, in little-endian bytes."""

    name: Name
    parameters: Parameters | None = None


class InferRequest(_Given):
    """`parameters`: `timeout` in microseconds is the deadline of the whole request; the fields of a budget by their names."""

    id: Annotated[str, Field(max_length=MAX_ID)] | None = None
    parameters: Parameters | None = None
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[list[InferOutput], Field(max_length=MAX_TENSORS)] | None = None


class TensorDocument(BaseModel):
    """A tensor that is answered."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None  # binary_data_size, where its values follow the JSON
    data: list[Any] | None = None  # flat


class InferAnswer(BaseModel):
    """`parameters` say which sub-model it was, why, and how long it took."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, bool | int | float | str]
    outputs: list[TensorDocument]


class TensorMetadata(BaseModel):
    """An input or output; -1 is a free axis."""

    name: str
    datatype: str
    shape: list[int]


class ModelDocument(BaseModel):
    """A bundle, as a model. Its version begins its manifest's hash."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str]


class ServerDocument(BaseModel):
    """The service."""

    name: str
    version: str
    extensions: list[str]


class LiveDocument(BaseModel):
    """Of a process that is alive."""

    live: bool


class ReadyDocument(BaseModel):
    """Of a service that can answer."""

    ready: bool


class ModelReadyDocument(BaseModel):
    """Of a bundle that is served as it lies in its folder."""

    name: str
    ready: bool
