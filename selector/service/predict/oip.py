"""Tensors and parameters of the Open Inference Protocol: in JSON, or as raw bytes after it (its extension for binary data).

Nothing is allocated because a body says so: datatype and shape are compared with what the bundle takes first, and the bytes
that are there with what the shape needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from exporter.bundle import Bundle
from exporter.bundle.manifest import TensorSpec
from selector.service.predict.arrays import Array, ArrayError, ShapeLimits, finite_lists, from_lists
from selector.service.predict.oip_schemas import InferInput, InferRequest, TensorDocument, TensorMetadata
from selector.service.predict.schemas import PredictQuery
from selector.service.web.bodies import validated
from selector.service.web.problems import Problem, field_errors, wrong_field
from selector.service.web.schemas import QueryBudget

DATATYPES = {
    "bool": "BOOL",
    **{f"{kind}int{bits}": f"{kind.upper()}INT{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
"""By numpy's names."""
TEXT = "BYTES"
TEXTS = ("text", "text_pair")
"""Inputs of that datatype, of a bundle that reads texts."""
BINARY = "binary_data_output"
_BUDGET = [name for name in QueryBudget.model_fields if name != "plan"]
_BATTERY = ("battery_percent", "battery_discharging")
PARAMETERS = ("timeout", *_BUDGET, "device", *_BATTERY, BINARY)
"""Of a request; what else is given is refused: a limit that nobody heeds would be worse."""


def datatype_of(dtype: str) -> str:
    """Of numpy's name. Raises Problem 501 for one that the protocol has no word for."""
    if dtype not in DATATYPES:
        raise Problem(501, f"the protocol has no datatype for {dtype}; POST /v1/predict takes it")
    return DATATYPES[dtype]


def metadata_of(specs: Sequence[TensorSpec]) -> list[TensorMetadata]:
    return [
        TensorMetadata(
            name=spec.name,
            datatype=datatype_of(spec.dtype),
            shape=[size if isinstance(size, int) else -1 for size in spec.shape],
        )
        for spec in specs
    ]


def split_body(data: bytes, header: str | None, json_bytes: int) -> tuple[InferRequest, bytes]:
    """The document, and the raw bytes after it. `header`: how long the document is, where bytes follow. Raises Problem."""
    name = "Inference-Header-Content-Length"
    length = len(data)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 16 and int(header) <= len(data)):
            raise wrong_field(name, header, f"allowed are 0 to {len(data)}, the bytes of the body")
        length = int(header)
    if length > json_bytes:
        raise Problem(413, f"{length} bytes of JSON; allowed are {json_bytes}, and more as binary data")
    return validated(InferRequest, data[:length]), data[length:]


def query_of(bundle: Bundle, given: Mapping[str, Any]) -> PredictQuery:
    """What the parameters ask for. Raises Problem 422 naming the parameter, its value and what is allowed."""
    for name, value in given.items():
        if name not in PARAMETERS:
            raise wrong_field(f"parameters.{name}", value, f"is unknown; allowed are {', '.join(PARAMETERS)}")
    flag(given, BINARY, "parameters")
    budget = {name: given[name] for name in _BUDGET if name in given}
    if "timeout" in given:
        timeout = given["timeout"]
        if type(timeout) is not int or timeout < 0:
            message = "allowed are whole numbers of microseconds from 0, which sets none"
            raise wrong_field("parameters.timeout", timeout, message)
        if timeout and "latency_ms" in budget:
            raise wrong_field("parameters.timeout", timeout, "stands beside latency_ms; allowed is one of both")
        budget |= {"latency_ms": timeout / 1e3} if timeout else {}
    battery = {name.removeprefix("battery_"): given[name] for name in _BATTERY if name in given}
    document = {"bundle": bundle.name, "budget": budget, "device": given.get("device"), "battery": battery or None}
    try:
        return PredictQuery.model_validate(document)
    except ValidationError as error:
        errors = field_errors(error)
        for one in errors:
            place, _, rest = one["field"].partition(".")
            one["field"] = "parameters." + (rest if place == "budget" else f"battery_{rest}" if place == "battery" else place)
        raise Problem(422, "the parameters do not fit their schema", errors=errors) from None


def flag(parameters: Mapping[str, Any], name: str, place: str) -> bool:
    """Of a parameter; false where it is not given. Raises Problem 422."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise wrong_field(f"{place}.{name}", value, "allowed are true and false")
    return value


def tensors_of(query: InferRequest, rest: bytes, bundle: Bundle, limits: ShapeLimits) -> dict[str, Array]:
    """The inputs by name. Raises Problem 422 naming the field, the value and what is allowed."""
    specs = {spec.name: spec for spec in bundle.manifest.inputs}
    found: dict[str, Array] = {}
    for given, raw in _with_bytes(query.inputs, rest):
        if given.name not in specs or given.name in found:
            allowed = f"allowed are {', '.join(specs)}, once each"
            raise wrong_field("inputs.name", given.name, allowed, f"inputs: {given.name!r} given; {allowed}")
        found[given.name] = _tensor(given, raw, specs[given.name], limits)
    return found


def texts_of(query: InferRequest, rest: bytes) -> list[Any] | None:
    """The texts that the inputs are, or pairs of them; None where they are numbers. Raises Problem 422."""
    if all(given.datatype != TEXT for given in query.inputs):
        return None
    found: dict[str, list[str]] = {}
    for given, raw in _with_bytes(query.inputs, rest):
        if given.datatype != TEXT or given.name not in TEXTS or given.name in found:
            message = f"datatype {given.datatype}; texts are {' and '.join(TEXTS)} of datatype {TEXT}, once each"
            raise wrong_field(f"inputs.{given.name}", given.datatype, message)
        texts = given.data if raw is None else _strings(given.name, raw)
        if not isinstance(texts, list) or any(not isinstance(text, str) for text in texts):
            raise wrong_field(f"inputs.{given.name}.data", None, "allowed is a list of texts")
        if given.shape not in ([len(texts)], [len(texts), 1]):
            message = f"holds {len(texts)} texts; allowed is shape [{len(texts)}]"
            raise wrong_field(f"inputs.{given.name}.shape", str(given.shape), message)
        found[given.name] = texts
    if "text" not in found:
        raise wrong_field("inputs.text", None, "Field required: text")
    if "text_pair" not in found:
        return list(found["text"])
    if len(found["text_pair"]) != len(found["text"]):
        message = f"has {len(found['text_pair'])} texts; allowed is one for each of {len(found['text'])} in text"
        raise wrong_field("inputs.text_pair", None, message)
    return list(zip(found["text"], found["text_pair"], strict=True))


def wanted_of(query: InferRequest, bundle: Bundle) -> dict[str, bool]:
    """The outputs that are wanted, in order, and whether each is to come as raw bytes. Raises Problem 422."""
    names = [spec.name for spec in bundle.manifest.outputs]
    binary = flag(query.parameters or {}, BINARY, "parameters")
    if not query.outputs:
        return dict.fromkeys(names, binary)
    found: dict[str, bool] = {}
    for output in query.outputs:
        if output.name not in names or output.name in found:
            raise wrong_field("outputs.name", output.name, f"allowed are {', '.join(names)}, once each")
        own, place = output.parameters or {}, f"outputs.{output.name}.parameters"
        if unknown := [name for name in own if name != "binary_data"]:
            raise wrong_field(f"{place}.{unknown[0]}", own[unknown[0]], "is unknown; allowed is binary_data")
        found[output.name] = flag(own, "binary_data", place) if "binary_data" in own else binary
    return found


def answered(outputs: Mapping[str, Array], wanted: Mapping[str, bool]) -> tuple[list[TensorDocument], bytes]:
    """The tensors as they are answered, and the raw bytes that follow. Raises ArrayError for numbers that JSON has none for."""
    documents, raw = [], bytearray()
    for name, binary in wanted.items():
        array = np.ascontiguousarray(outputs[name])
        document = TensorDocument(name=name, datatype=datatype_of(array.dtype.name), shape=list(array.shape))
        if binary:
            content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            document.parameters = {"binary_data_size": len(content)}
            raw += content
        else:
            document.data = finite_lists(name, array.ravel())
        documents.append(document)
    return documents, bytes(raw)


def _with_bytes(inputs: Sequence[InferInput], rest: bytes) -> list[tuple[InferInput, bytes | None]]:
    """Each input, and its raw bytes where it has such: they lie one after the other, in the inputs' order. Raises Problem."""
    found: list[tuple[InferInput, bytes | None]] = []
    place = 0
    for given in inputs:
        own, field = given.parameters or {}, f"inputs.{given.name}.parameters"
        if unknown := [name for name in own if name != "binary_data_size"]:
            raise wrong_field(f"{field}.{unknown[0]}", own[unknown[0]], "is unknown; allowed is binary_data_size")
        size = own.get("binary_data_size")
        if (size is None) == (given.data is None):
            message = "allowed is one of data and parameters.binary_data_size"
            raise wrong_field(f"inputs.{given.name}.data", None, message)
        if size is None:
            found.append((given, None))
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - place:
            message = f"allowed are 0 to {len(rest) - place}, the bytes that are left of the body"
            raise wrong_field(f"{field}.binary_data_size", size, message)
        found.append((given, rest[place : place + size]))
        place += size
    if place != len(rest):
        message = f"{len(rest)} bytes follow the JSON, of which the inputs have {place}; allowed are as many"
        raise wrong_field("binary_data_size", place, message)
    return found


def _tensor(given: InferInput, raw: bytes | None, spec: TensorSpec, limits: ShapeLimits) -> Array:
    field, allowed = f"inputs.{given.name}", datatype_of(spec.dtype)
    if given.datatype != allowed:
        message = f"allowed is {allowed}"
        raise wrong_field(f"{field}.datatype", given.datatype, message, f"{field}: datatype {given.datatype!r}; {message}")
    shape, dtype = tuple(given.shape), np.dtype(spec.dtype)
    try:
        limits.check(spec, shape)
    except ArrayError as error:
        raise wrong_field(f"{field}.shape", str(given.shape), str(error), str(error)) from None
    count = math.prod(shape)
    if raw is not None:
        if len(raw) != count * dtype.itemsize:
            message = f"{len(raw)} bytes; allowed are {count * dtype.itemsize}, which shape {given.shape} of {allowed} needs"
            raise wrong_field(f"{field}.parameters.binary_data_size", len(raw), message, f"{field}: {message}")
        if dtype.kind == "b" and raw.strip(b"\0\1"):
            raise wrong_field(field, None, "a byte is neither 0 nor 1; allowed are these for BOOL")
        return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)
    data = given.data or []
    flat = not (data and isinstance(data[0], list))
    if flat and len(data) != count:
        message = f"{len(data)} numbers; allowed are {count}, which shape {given.shape} needs"
        raise wrong_field(f"{field}.data", len(data), message, f"{field}: {message}")
    try:
        return from_lists(data, spec.model_copy(update={"shape": (count,) if flat else shape}), limits).reshape(shape)
    except ArrayError as error:
        raise wrong_field(f"{field}.data", None, str(error), str(error)) from None


def _strings(name: str, raw: bytes) -> list[str]:
    """Each with its length before it, in four bytes. Raises Problem 422."""
    found: list[str] = []
    place = 0
    while place < len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        if place + 4 > len(raw) or end > len(raw):
            raise wrong_field(f"inputs.{name}", None, f"text {len(found)} ends after {end} bytes; there are {len(raw)}")
        try:
            found.append(raw[place + 4 : end].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise wrong_field(f"inputs.{name}", None, f"text {len(found)} is no UTF-8: {error.reason}") from None
        place = end
    return found
