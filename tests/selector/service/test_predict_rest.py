"""What goes into `POST /v1/predict` and what comes out: a real server process on loopback, and ONNX Runtime for comparison."""

from __future__ import annotations

import http.client
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnxruntime as ort
import pytest
from numpy.lib import format as npy
from typer.testing import CliRunner

import sortednet
from exporter.bundle import Bundle
from selector.service import PredictOptions, create_app
from tests.conftest import DEVICE
from tests.helpers.predict_client import JSON, NPY, NPZ, Reply, budget_path, input_name, npy_of, refused, send, send_json
from tests.helpers.runtimes import unmeasured
from tests.helpers.server import Server, serving

MOST = 64  # examples in one request
BODY_BYTES, JSON_BYTES = 16 * 2**20, 4 * 2**20


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("predict") / "log", bundle_path) as found:
        yield found


def announce(server: Server, length: int, kind: str) -> Reply:
    """Says that so many bytes will come, and sends none."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.putrequest("POST", "/v1/predict")
        connection.putheader("Content-Type", kind)
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def npz_of(compressed: bool = False, **arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def by_onnxruntime(bundle: Bundle, submodel: str, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(bundle.graph_path(submodel), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {bundle.manifest.inputs[0].name: images})
    return np.asarray(found)


@pytest.mark.parametrize("budget", [{}, {"latency_ms": 60_000}, {"objective": "latency"}, {"min_accuracy": 0.2}])
def test_outputs_are_those_of_onnxruntime_on_the_chosen_graph(
    server: Server, bundle: Bundle, images: np.ndarray[Any, Any], budget: dict[str, Any]
) -> None:
    reply = send_json(server, {"budget": budget, "inputs": {input_name(bundle): images.tolist()}})
    assert (reply.status, reply.headers.get_content_type()) == (200, JSON)
    found = reply.document
    assert found["selection"]["feasible"]
    assert found["selection"]["device"] == DEVICE
    assert found["latency_ms"] > 0
    assert found["queued_ms"] > 0
    expected = by_onnxruntime(bundle, found["selection"]["submodel"], images)
    (outputs,) = found["outputs"].values()
    np.testing.assert_allclose(np.array(outputs), expected, rtol=1e-4, atol=1e-4)


def test_arrays_go_in_and_come_out_as_npy_and_npz(server: Server, bundle: Bundle, images: np.ndarray[Any, Any]) -> None:
    budget = {"latency_ms": 60_000}
    name, output = input_name(bundle), bundle.manifest.outputs[0].name
    bodies = {
        NPY: [npy_of(images), npy_of(np.asfortranarray(images)), npy_of(images.astype(">f4"))],
        NPZ: [npz_of(**{name: images}), npz_of(compressed=True, **{name: images})],
    }
    for kind, body in [(kind, body) for kind, several in bodies.items() for body in several]:
        for accept, answered in (
            (None, kind),
            ("*/*", kind),
            (NPY, NPY),
            (NPZ, NPZ),
            (JSON, JSON),
            (f"{NPY};q=0.5, {JSON}", JSON),
        ):
            headers = {} if accept is None else {"Accept": accept}
            reply = send(server, budget_path(budget), body, Content_Type=kind, **headers)
            assert (reply.status, reply.headers.get_content_type()) == (200, answered), reply.body
            if answered == JSON:
                selection, found = reply.document["selection"], np.array(reply.document["outputs"][output])
            else:
                selection = json.loads(reply.headers["Sortednet-Selection"])
                assert float(reply.headers["Sortednet-Latency-Ms"]) > 0
                assert float(reply.headers["Sortednet-Queued-Ms"]) > 0
                loaded = np.load(io.BytesIO(reply.body), allow_pickle=False)
                found = loaded[output] if answered == NPZ else loaded
            np.testing.assert_allclose(found, by_onnxruntime(bundle, selection["submodel"], images), rtol=1e-4, atol=1e-4)


def test_an_output_that_is_no_number_is_a_problem_in_json_and_itself_in_arrays(
    server: Server, bundle: Bundle, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    """Of inputs that are finite, but so large that what is computed of them is not."""
    huge, output = np.full_like(images, 3e38), bundle.manifest.outputs[0].name
    reply = send_json(server, {"inputs": {input_name(bundle): huge.tolist()}})
    assert f"output {output!r}" in refused(reply, 500)["detail"]
    assert "NaN" not in reply.body.decode().replace("are NaN or infinite", "")
    arrays = send(server, "/v1/predict", npy_of(huge), Content_Type=NPY)
    assert arrays.status == 200
    assert not np.isfinite(np.load(io.BytesIO(arrays.body))).all()
    np.save(tmp_path / "huge.npy", huge)
    ran = CliRunner().invoke(sortednet.app, ["run", str(bundle.path), "--input", str(tmp_path / "huge.npy"), "--json"])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert f"output {output!r}" in ran.stderr


@pytest.mark.parametrize("size", ["True", "False", "1.0", "None", "-1"])
def test_a_size_that_is_no_number_is_refused(server: Server, images: np.ndarray[Any, Any], size: str) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': (2, {size}, 8, 8), }}".ljust(117) + "\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(2 * 64 * 4)
    assert refused(send(server, "/v1/predict", body, Content_Type=NPY), 422)


def chosen(ask: Callable[[], Reply]) -> dict[str, Any]:
    """The selection, once nothing else is run in its place because it is being opened."""
    while "is being opened" in (found := ask().document["selection"])["reason"]:
        pass
    return dict(found)


def test_the_budget_may_come_in_a_header_and_a_battery_saves(
    server: Server, bundle: Bundle, images: np.ndarray[Any, Any]
) -> None:
    fastest, body = {"objective": "latency"}, npy_of(images)
    header = {"Content_Type": NPY, "Accept": JSON, "Sortednet_Budget": json.dumps(fastest)}
    by_header = chosen(lambda: send(server, "/v1/predict", body, **header))
    by_query = chosen(lambda: send(server, budget_path(fastest), body, Content_Type=NPY, Accept=JSON))
    assert by_header == by_query
    saving = {"battery": {"percent": 5, "discharging": True}, "inputs": {input_name(bundle): images.tolist()}}
    low = chosen(lambda: send_json(server, saving))
    assert "battery at 5 %" in low["reason"]
    asked = server.post("/v1/select", {"battery": {"percent": 5, "discharging": True}}).document
    assert low["submodel"] == asked["submodel"]


def test_wrong_inputs_are_a_problem_that_names_the_input(server: Server, bundle: Bundle, images: np.ndarray[Any, Any]) -> None:
    name, lists = input_name(bundle), images.tolist()
    wrong: list[tuple[Any, str]] = [
        ({}, "nothing given"),
        ({"nope": lists}, "'nope'"),
        ({name: [1.0, [2.0]]}, f"input {name!r}"),
        ({name: [["1.5"]]}, f"input {name!r}"),
        ({name: [None]}, f"input {name!r}"),
        ({name: []}, f"input {name!r}"),
        ({name: lists[0]}, f"input {name!r}: shape"),
        ({name: np.array(lists, dtype=object).astype(bool).tolist()}, "true or false"),
        ({name: np.full(images.shape, 1e300).tolist()}, "infinite"),
        ({name: [[[[1]]]] * (MOST + 1)}, "shape"),
        ({name: np.zeros((MOST + 1, *images.shape[1:]), int).tolist()}, f"allowed are 1 to {MOST} per request"),
    ]
    for inputs, message in wrong:
        error = refused(send_json(server, {"inputs": inputs}), 422)
        assert error["field"].startswith("inputs")
        assert message in error["message"]
    for body, message in (
        (npy_of(images.astype(np.float64)), "dtype float64; allowed is float32"),
        (npy_of(images[0]), "shape"),
        (npy_of(np.array([None])), "dtype object"),
        (npy_of(np.zeros((MOST + 1, *images.shape[1:]), np.float32)), f"allowed are 1 to {MOST}"),
        (npy_of(images)[:-4], "bytes"),
        (npy_of(images) + b"more", "bytes"),
        (npy_of(np.full_like(images, np.nan)), "NaN"),
        (b"", "cannot be read as .npy"),
        (b"\x80\x04K\x05.", "cannot be read as .npy"),  # a pickle
    ):
        error = refused(send(server, "/v1/predict", body, Content_Type=NPY), 422)
        assert f"input {name!r}" in error["message"]
        assert message in error["message"]


def test_a_header_that_lies_allocates_nothing(server: Server, bundle: Bundle, images: np.ndarray[Any, Any]) -> None:
    lies = [(10**12, *images.shape[1:]), (2**62, *images.shape[1:]), (-1, *images.shape[1:]), (MOST, *images.shape[1:])]
    for shape in lies:
        buffer = io.BytesIO()
        npy.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": "<f4"})
        refused(send(server, "/v1/predict", buffer.getvalue() + images.tobytes(), Content_Type=NPY), 422)
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{'descr': '<f4'}"
    refused(send(server, "/v1/predict", long, Content_Type=NPY), 422)
    deep = b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000
    refused(send(server, "/v1/predict", deep, Content_Type=NPY), 422)
    assert send(server, "/v1/predict", npy_of(images), Content_Type=NPY).status == 200


def test_a_zip_bomb_is_refused_by_what_it_says_it_holds(server: Server, bundle: Bundle, images: np.ndarray[Any, Any]) -> None:
    name, zeros = input_name(bundle), bytes(64 * 2**20)
    bomb = zip_of({f"{name}.npy": zeros})
    assert len(bomb) < 2**20
    assert "unpacked" in refused(send(server, "/v1/predict", bomb, Content_Type=NPZ), 422)["message"]
    lying = bytearray(bomb)
    at = bytes(lying).rfind(b"PK\x01\x02") + 24  # the directory's field of the unpacked size
    lying[at : at + 4] = struct.pack("<I", 100)
    refused(send(server, "/v1/predict", bytes(lying), Content_Type=NPZ), 422)
    good = npy_of(images)
    for body in (
        zip_of({f"{name}.npy": good, "x.npy": good}),
        zip_of({"../x.npy": good}),
        zip_of({f"{name}.npy": good}, zipfile.ZIP_LZMA),
        zip_of({f"{i}.npy": b"" for i in range(5000)}),
        zip_of({f"{name}.npy": good})[:-1],
        zip_of({}),
        b"no zip",
        b"",
    ):
        refused(send(server, "/v1/predict", body, Content_Type=NPZ), 422)
    assert send(server, "/v1/predict", zip_of({f"{name}.npy": good}), Content_Type=NPZ).status == 200


def test_too_large_another_type_and_a_wrong_query_are_problems(
    server: Server, bundle: Bundle, images: np.ndarray[Any, Any]
) -> None:
    for most, kind in ((BODY_BYTES, NPY), (BODY_BYTES, NPZ), (JSON_BYTES, JSON)):
        refused(announce(server, most + 1, kind), 413)  # before any of it has come
        refused(send(server, "/v1/predict", iter([bytes(most), b"no end"]), Content_Type=kind), 413)  # in chunks
    refused(send(server, "/v1/predict", npy_of(images), Content_Type="application/octet-stream"), 415)
    refused(send(server, "/v1/predict", npy_of(images), Content_Type=NPY, Accept="image/png"), 406)
    good = npy_of(images)
    for query, field in (
        ("budget={", "budget"),
        ("budget=%7B%22latency_ms%22:-1%7D", "budget.latency_ms"),
        ("budget=5", "budget"),
        ("battery=%7B%22percent%22:101%7D", "battery.percent"),
        ("latency_ms=5", "latency_ms"),
        ("bundle=a&bundle=b", "bundle"),
    ):
        assert refused(send(server, f"/v1/predict?{query}", good, Content_Type=NPY), 422)["field"] == field
    inputs = {"inputs": {input_name(bundle): images.tolist()}}
    beside = send(server, budget_path({"latency_ms": 5}), json.dumps(inputs).encode(), Content_Type=JSON)
    assert refused(beside, 422)["field"] == "budget"  # a limit that would go unheeded
    assert refused(send_json(server, inputs, Sortednet_Budget="{}"), 422)["field"] == "Sortednet-Budget"
    for path in ("bundle=nope", "device=phone"):
        refused(send(server, f"/v1/predict?{path}", good, Content_Type=NPY), 404)
    plan = {"budget": {"plan": {"per_hour": 60, "for_hours": 2}}, "inputs": {input_name(bundle): images.tolist()}}
    assert refused(send_json(server, plan), 422)["field"] == "budget.plan"


def test_a_service_may_leave_predict_out(bundle_path: Path, bundle: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path, options=("--no-predict",)) as server:
        assert server.post("/v1/predict", {}).status == 404
        assert server.get(f"/v1/bundles/{bundle.name}/runtime").status == 404
        assert server.get("/v2").status == 404
        assert server.post("/v1/select", {}).status == 200


def test_onnxruntime_is_not_imported_before_the_server_forks(bundle_path: Path) -> None:
    program = (
        "import sys; from exporter.bundle import Bundle; from selector import service; "
        f"service.create_app([Bundle({str(bundle_path)!r})]); sys.exit('onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == 0


def test_a_bundle_that_nobody_measured_is_run_where_nothing_is_limited(bundle_path: Path, tmp_path: Path) -> None:
    client = create_app([Bundle(unmeasured(bundle_path, tmp_path))], predict=PredictOptions()).test_client()
    inputs = {input_name(Bundle(bundle_path)): np.zeros((1, 1, 8, 8)).tolist()}
    assert client.post("/v1/predict", json={"inputs": inputs}).get_json()["selection"]["feasible"]
    limited = client.post("/v1/predict", json={"inputs": inputs, "budget": {"latency_ms": 5}})
    assert (limited.status_code, "has not been measured" in limited.get_json()["detail"]) == (422, True)
