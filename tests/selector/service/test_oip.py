"""The Open Inference Protocol beside `POST /v1/predict`: other people's clients on a real server, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from exporter.bundle import Bundle
from selector.service import create_app
from selector.service.routes.oip import LENGTH
from tests.conftest import DEVICE
from tests.helpers.runtimes import stock
from tests.helpers.server import Server, serving

WHOLE_DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("oip") / "log", bundle_path) as found:
        yield found


@pytest.fixture
def client(bundle: Bundle) -> FlaskClient:
    return create_app([bundle]).test_client()


def request_of(bundle: Bundle, images: np.ndarray, **parameters: Any) -> dict[str, Any]:
    spec = bundle.manifest.inputs[0]
    tensor = {"name": spec.name, "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return {"inputs": [tensor], "parameters": parameters}


def infer(client: FlaskClient, bundle: Bundle, document: Any, raw: bytes | None = None) -> TestResponse:
    content = json.dumps(document).encode()
    headers = {} if raw is None else {LENGTH: str(len(content)), "Content-Type": "application/octet-stream"}
    headers = headers or {"Content-Type": "application/json"}
    return client.post(f"/v2/models/{bundle.name}/infer", data=content + (raw or b""), headers=headers)


def test_tritons_client_gets_what_onnxruntime_answers(server: Server, bundle: Bundle, images: np.ndarray) -> None:
    triton = pytest.importorskip("tritonclient.http")
    name, output = bundle.manifest.inputs[0].name, bundle.manifest.outputs[0].name
    asking = triton.InferenceServerClient(server.url.removeprefix("http://"))
    try:
        assert asking.is_server_live()
        assert asking.is_server_ready()
        assert asking.is_model_ready(bundle.name)
        described = asking.get_model_metadata(bundle.name)
        assert described["inputs"] == [{"name": name, "datatype": "FP32", "shape": [-1, *images.shape[1:]]}]
        given = triton.InferInput(name, list(images.shape), "FP32")
        for binary in (True, False):
            given.set_data_from_numpy(images, binary_data=binary)
            for wanted in (None, [triton.InferRequestedOutput(output, binary_data=binary)]):
                found = asking.infer(bundle.name, [given], outputs=wanted, request_id="7", timeout=WHOLE_DAY_US)
                said = found.get_response()
                assert (said["id"], said["parameters"]["device"], said["parameters"]["feasible"]) == ("7", DEVICE, True)
                expected = stock(bundle, said["parameters"]["submodel"], images)
                np.testing.assert_allclose(found.as_numpy(output), expected, rtol=1e-4, atol=1e-4)
        other = triton.InferInput("nothing", list(images.shape), "FP32")
        other.set_data_from_numpy(images)
        with pytest.raises(triton.InferenceServerException, match="'nothing' given; allowed are"):
            asking.infer(bundle.name, [other])
    finally:
        asking.close()


@pytest.mark.filterwarnings("default")  # it is written for pydantic 1
def test_the_client_of_the_protocols_openapi_document_reads_every_answer(
    server: Server, bundle: Bundle, images: np.ndarray
) -> None:
    openapi = pytest.importorskip("open_inference.openapi.client")
    types = pytest.importorskip("open_inference.openapi.types")
    with pytest.importorskip("httpx").Client() as http:
        ask_everything(openapi.OpenInferenceClient(base_url=server.url, httpx_client=http), types, bundle, images)


def ask_everything(asking: Any, types: Any, bundle: Bundle, images: np.ndarray) -> None:
    asking.check_server_liveness()
    asking.check_server_readiness()
    asking.check_model_readiness(bundle.name)
    assert asking.read_server_metadata().name == "sortednet"
    described = asking.read_model_metadata(bundle.name)
    assert described.versions
    asking.check_model_version_readiness(bundle.name, described.versions[0])
    assert asking.read_model_version_metadata(bundle.name, described.versions[0]) == described
    request = types.InferenceRequest(**request_of(bundle, images))
    for found in (
        asking.model_infer(bundle.name, request=request),
        asking.model_version_infer(bundle.name, described.versions[0], request=request),
    ):
        values = np.array(found.outputs[0].data.__root__, dtype=float).reshape(found.outputs[0].shape)
        expected = stock(bundle, found.parameters["submodel"], images)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_parameters_are_a_budget(bundle: Bundle, images: np.ndarray) -> None:
    def said(**parameters: Any) -> dict[str, Any]:  # of a new service, which chooses by the profile and no call before
        client = create_app([bundle]).test_client()
        found: dict[str, Any] = infer(client, bundle, request_of(bundle, images[:1], **parameters)).json["parameters"]
        return found

    best = max((quality, name) for name, quality in bundle.qualities.items() if quality is not None)
    assert said(min_quality=best[0])["submodel"] == best[1]
    assert said(objective="latency")["submodel"] != best[1]
    assert said(timeout=WHOLE_DAY_US)["feasible"] is True
    assert said(timeout=1)["feasible"] is False  # a microsecond: the nearest
    assert "battery" in said(battery_percent=5, battery_discharging=True)["reason"]


def test_nested_flat_and_raw_values_are_the_same_tensor(client: FlaskClient, bundle: Bundle, images: np.ndarray) -> None:
    flat = request_of(bundle, images)
    nested = request_of(bundle, images)
    nested["inputs"][0]["data"] = images.tolist()
    raw = request_of(bundle, images, binary_data_output=True)
    del raw["inputs"][0]["data"]
    content = images.astype("<f4").tobytes()
    raw["inputs"][0]["parameters"] = {"binary_data_size": len(content)}
    answers = [infer(client, bundle, document).json["outputs"][0] for document in (flat, nested)]
    assert answers[0] == answers[1]
    reply = infer(client, bundle, raw, content)
    length = int(reply.headers[LENGTH])
    document = json.loads(reply.data[:length])["outputs"][0]
    assert document["parameters"]["binary_data_size"] == len(reply.data) - length
    values = np.frombuffer(reply.data[length:], "<f4")
    np.testing.assert_allclose(values, np.array(answers[0]["data"]), rtol=1e-6)


def changed(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Of its only input; a field that is None goes."""
    tensor = {**document["inputs"][0], **fields}
    return {**document, "inputs": [{name: value for name, value in tensor.items() if value is not None}]}


RAW = {"data": None, "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("fields", "raw", "field", "value", "allowed"),
    [
        ({"datatype": "FP64"}, None, "inputs.{}.datatype", "FP64", "FP32"),
        ({"datatype": "INT8"}, None, "inputs.{}.datatype", "INT8", "FP32"),
        ({"name": "other"}, None, "inputs.name", "other", "allowed are {}"),
        ({"shape": [2, 3]}, None, "inputs.{}.shape", "[2, 3]", "allowed is (batch"),
        ({"data": [1.0, 2.0]}, None, "inputs.{}.data", 2, "allowed are 128"),
        ({"data": ["a"] * 128}, None, "inputs.{}.data", None, "allowed are numbers for float32"),
        (RAW, b"12345678", "inputs.{}.parameters.binary_data_size", 8, "allowed are 512"),
        (RAW, b"1234567", "inputs.{}.parameters.binary_data_size", 8, "allowed are 0 to 7"),
        (RAW, b"123456789", "binary_data_size", 8, "9 bytes follow the JSON"),
        ({}, b"1", "binary_data_size", 0, "1 bytes follow the JSON"),
        ({"data": None, "parameters": {"binary_data_size": -4}}, b"", "inputs.{}.parameters.binary_data_size", -4, "0 to 0"),
        ({"data": None}, None, "inputs.{}.data", None, "one of data and parameters.binary_data_size"),
        ({"parameters": {"other": "x"}}, None, "inputs.{}.parameters.other", "x", "binary_data_size"),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_refused_by_its_field(
    client: FlaskClient,
    bundle: Bundle,
    images: np.ndarray,
    fields: dict[str, Any],
    raw: bytes | None,
    field: str,
    value: Any,
    allowed: str,
) -> None:
    name = bundle.manifest.inputs[0].name
    reply = infer(client, bundle, changed(request_of(bundle, images), **fields), raw)
    assert reply.status_code == 422, reply.data
    (error,) = reply.json["errors"]
    assert (error["field"], error["value"]) == (field.format(name), value)
    assert allowed.format(name) in error["message"]
    assert error["message"] in reply.json["error"]  # all that the protocol's clients show


@pytest.mark.parametrize(
    ("parameters", "field", "allowed"),
    [
        ({"timeout": -1}, "parameters.timeout", "microseconds"),
        ({"timeout": "5"}, "parameters.timeout", "microseconds"),
        ({"timeout": 5, "latency_ms": 5}, "parameters.timeout", "one of both"),
        ({"latency_ms": -1}, "parameters.latency_ms", "greater than 0"),
        ({"min_quality": 70}, "parameters.min_quality", "less than or equal to 1"),
        ({"battery_percent": 101}, "parameters.battery_percent", "less than or equal to 100"),
        ({"sequence_id": 1}, "parameters.sequence_id", "allowed are timeout"),
        ({"binary_data_output": 1}, "parameters.binary_data_output", "true and false"),
        ({"device": ".."}, "parameters.device", "pattern"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_name(
    client: FlaskClient, bundle: Bundle, images: np.ndarray, parameters: dict[str, Any], field: str, allowed: str
) -> None:
    reply = infer(client, bundle, request_of(bundle, images, **parameters))
    assert reply.status_code == 422, reply.data
    (error,) = reply.json["errors"]
    assert error["field"] == field
    assert allowed in error["message"]


def test_unknown_models_versions_outputs_and_lengths_are_refused(
    client: FlaskClient, bundle: Bundle, images: np.ndarray
) -> None:
    document = request_of(bundle, images)
    assert client.get("/v2/models/other").status_code == 404
    assert "is served in version" in client.get(f"/v2/models/{bundle.name}/versions/1").json["error"]
    reply = infer(client, bundle, {**document, "outputs": [{"name": "other"}]})
    assert (reply.status_code, reply.json["errors"][0]["field"]) == (422, "outputs.name")
    reply = infer(client, bundle, {**document, "inputs": document["inputs"] * 2})
    assert "once each" in reply.json["error"]
    for length in ("-1", "1e3", "99999999999", "x"):
        headers = {LENGTH: length, "Content-Type": "application/octet-stream"}
        reply = client.post(f"/v2/models/{bundle.name}/infer", data=b"{}", headers=headers)
        assert (reply.status_code, reply.json["errors"][0]["field"]) == (422, LENGTH)


def test_texts_are_an_input_of_bytes(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from tests.helpers.text_bundles import sentences

    bundle = sentences(tmp_path / "texts")
    client = create_app([bundle]).test_client()
    texts = ["one two", "three"]
    raw = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in texts)
    given = {"name": "text", "shape": [2], "datatype": "BYTES"}
    plain = infer(client, bundle, {"inputs": [{**given, "data": texts}]})
    assert plain.status_code == 200, plain.data
    size = {"parameters": {"binary_data_size": len(raw)}}
    assert infer(client, bundle, {"inputs": [{**given, **size}]}, raw).json["outputs"] == plain.json["outputs"]
    beside = client.post("/v1/predict", json={"text": texts}).json["outputs"]
    (output,) = plain.json["outputs"]
    np.testing.assert_allclose(np.array(beside[output["name"]]).ravel(), output["data"], rtol=1e-5)
    cut = infer(client, bundle, {"inputs": [{**given, "parameters": {"binary_data_size": 6}}]}, raw[:6])
    assert (cut.status_code, cut.json["errors"][0]["field"]) == (422, "inputs.text")


def test_kserve_asks_for_paths_that_are_there(client: FlaskClient) -> None:
    runtime = (Path(__file__).parents[3] / "deploy" / "kserve.yaml").read_text()
    paths = re.findall(r"path: (/[^,]+)", runtime)
    assert paths
    assert [client.get(path).status_code for path in paths] == [200] * len(paths)
    assert "protocolVersions: [v2]" in runtime
