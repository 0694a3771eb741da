"""`POST /v1/predict` as a client meets it: a real server process on loopback, and ONNX Runtime itself for comparison."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import onnxruntime as ort
import pytest
from numpy.lib import format as npy

from device_profiles import LatencyMs, read_profile, write_profile
from exporter.bundle import Bundle
from selector import Budget
from selector.service.gate import Gate, Overloaded
from selector.service.metrics import Metrics
from selector.service.predict_schemas import PredictQuery
from selector.service.predictor import Prediction, PredictOptions, Predictor
from selector.service.schemas import QueryBudget
from tests.conftest import DEVICE
from tests.test_service import ENDS_WITHIN_S, Server, serving

NPY, NPZ, JSON = "application/x-npy", "application/x-npz", "application/json"
BATCH = 2048  # large enough that a run takes a while
BODY_BYTES, JSON_BYTES = 16 * 2**20, 4 * 2**20


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def send(server: Server, path: str, body: bytes | Iterator[bytes], **headers: str) -> Reply:
    """`body`: an iterator is sent in chunks. `headers`: with `_` for `-`."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


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


def send_json(server: Server, document: Any, **headers: str) -> Reply:
    return send(server, "/v1/predict", json.dumps(document).encode(), Content_Type=JSON, **headers)


def npy_of(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


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


def budget_path(budget: dict[str, Any]) -> str:
    return f"/v1/predict?budget={quote(json.dumps(budget))}"


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("predict") / "log", bundle_path, options=("--max-batch", str(BATCH))) as found:
        yield found


@pytest.fixture
def images(bundle: Bundle) -> np.ndarray[Any, Any]:
    (name,) = (spec.name for spec in bundle.manifest.inputs)
    return bundle.selftest_inputs[name][:2]


def by_onnxruntime(bundle: Bundle, submodel: str, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(bundle.graph_path(submodel), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {bundle.manifest.inputs[0].name: images})
    return np.asarray(found)


def input_name(bundle: Bundle) -> str:
    return bundle.manifest.inputs[0].name


def refused(reply: Reply, status: int) -> dict[str, Any]:
    """The problem's only error, or the problem where it lists none."""
    assert (reply.status, reply.headers.get_content_type()) == (status, "application/problem+json"), reply.body[:500]
    document = reply.document
    assert document["status"] == status
    assert document["detail"]
    errors = document.get("errors", [document])
    assert len(errors) == 1
    return dict(errors[0])


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


def test_the_budget_may_come_in_a_header_and_a_battery_saves(
    server: Server, bundle: Bundle, images: np.ndarray[Any, Any]
) -> None:
    fastest = {"objective": "latency"}
    by_header = send(server, "/v1/predict", npy_of(images), Content_Type=NPY, Sortednet_Budget=json.dumps(fastest), Accept=JSON)
    by_query = send(server, budget_path(fastest), npy_of(images), Content_Type=NPY, Accept=JSON)
    assert by_header.document["selection"] == by_query.document["selection"]
    low = send_json(
        server, {"battery": {"percent": 5, "discharging": True}, "inputs": {input_name(bundle): images.tolist()}}
    ).document["selection"]
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
        ({name: [[[[1]]]] * (BATCH + 1)}, "shape"),
        ({name: np.zeros((BATCH + 1, *images.shape[1:]), int).tolist()}, f"allowed are 1 to {BATCH} per request"),
    ]
    for inputs, message in wrong:
        error = refused(send_json(server, {"inputs": inputs}), 422)
        assert error["field"].startswith("inputs")
        assert message in error["message"]
    for body, message in (
        (npy_of(images.astype(np.float64)), "dtype float64; allowed is float32"),
        (npy_of(images[0]), "shape"),
        (npy_of(np.array([None])), "dtype object"),
        (npy_of(np.zeros((BATCH + 1, *images.shape[1:]), np.float32)), f"allowed are 1 to {BATCH}"),
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
    lies = [(10**12, *images.shape[1:]), (2**62, *images.shape[1:]), (-1, *images.shape[1:]), (BATCH, *images.shape[1:])]
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
    for path in ("bundle=nope", "device=phone"):
        refused(send(server, f"/v1/predict?{path}", good, Content_Type=NPY), 404)
    plan = {"budget": {"plan": {"per_hour": 60, "for_hours": 2}}, "inputs": {input_name(bundle): images.tolist()}}
    assert refused(send_json(server, plan), 422)["field"] == "budget.plan"


def slow_on_paper(bundle_path: Path, copy: Path, ms: float) -> Bundle:
    """The bundle with a profile that says that every sub-model takes so long."""
    shutil.copytree(bundle_path, copy)
    file = copy / "profiles" / f"{DEVICE}.json"
    profile = read_profile(file)
    latency = LatencyMs(p50=ms, p90=ms, p99=ms, mean=ms, n=1)
    measured = {name: m.model_copy(update={"latency_ms": latency}) for name, m in profile.submodels.items()}
    write_profile(profile.model_copy(update={"submodels": measured}), file)
    return Bundle(copy)


def test_a_deadline_that_nothing_meets_by_itself_is_answered_by_the_nearest_but_not_one_that_waiting_spoilt(
    bundle_path: Path, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    bundle = slow_on_paper(bundle_path, tmp_path / "slow", 60_000)

    def ask(limit_ms: float, waited_s: float, examples: int = 1) -> Prediction:
        """Each of a runtime of its own, which has learnt nothing yet."""
        query = PredictQuery(budget=QueryBudget(latency_ms=limit_ms))
        given = {input_name(bundle): images[:1].repeat(examples, axis=0)}
        return Predictor(PredictOptions(), Metrics()).predict(bundle, query, given, time.monotonic() - waited_s)

    nearest = ask(50_000, 0)
    assert not nearest.selection.feasible
    assert "nothing fits" in nearest.selection.reason
    assert ask(100_000, 0).selection.feasible
    assert not ask(100_000, 0, examples=2).selection.feasible  # one after the other
    with pytest.raises(Overloaded) as late:
        ask(100_000, 50)
    assert late.value.reason == "too_late_to_fit"  # 60 s are needed, 50 s are left
    with pytest.raises(Overloaded) as passed:
        ask(100_000, 101)
    assert passed.value.reason == "deadline_passed"


def test_a_deadline_that_has_passed_is_refused(server: Server, images: np.ndarray[Any, Any]) -> None:
    passed = send(server, budget_path({"latency_ms": 1e-3}), npy_of(images), Content_Type=NPY)
    assert refused(passed, 503)["reason"] == "deadline_passed"
    assert int(passed.headers["Retry-After"]) >= 1


def test_a_profile_that_is_measured_anew_is_used(bundle_path: Path, images: np.ndarray[Any, Any], tmp_path: Path) -> None:
    bundle = slow_on_paper(bundle_path, tmp_path / "slow", 60_000)
    predictor = Predictor(PredictOptions(), Metrics())
    query = PredictQuery(budget=QueryBudget(latency_ms=50_000))
    inputs = {input_name(bundle): images[:1]}
    assert not predictor.predict(bundle, query, inputs, time.monotonic()).selection.feasible
    shutil.copy(bundle_path / "profiles" / f"{DEVICE}.json", tmp_path / "slow" / "profiles" / "new.json")
    os.replace(tmp_path / "slow" / "profiles" / "new.json", tmp_path / "slow" / "profiles" / f"{DEVICE}.json")
    assert predictor.predict(bundle, query, inputs, time.monotonic()).selection.feasible
    assert len(predictor.opened(bundle)) == 1


@pytest.fixture
def slow_body(images: np.ndarray[Any, Any]) -> bytes:
    """Takes a while: the largest batch."""
    return npy_of(np.repeat(images[:1], BATCH, axis=0))


def live(server: Server, bundle: Bundle) -> dict[str, Any]:
    return dict(server.get(f"/v1/bundles/{bundle.name}/runtime").document)


def wait_for(server: Server, bundle: Bundle, **wanted: int) -> None:
    for _ in range(2000):
        found = live(server, bundle)
        if all(found[name] >= count for name, count in wanted.items()):
            return
        time.sleep(0.005)
    raise AssertionError(f"never {wanted}: {found}")


def test_overload_is_answered_early_and_whoever_was_let_in_is_answered(
    bundle_path: Path, bundle: Bundle, images: np.ndarray[Any, Any], slow_body: bytes, tmp_path: Path
) -> None:
    options = ("--max-batch", str(BATCH))
    with serving(tmp_path / "log", bundle_path, options=options) as server, ThreadPoolExecutor(40) as pool:
        slots = live(server, bundle)["slots"]
        slow = [
            pool.submit(send, server, budget_path({"min_accuracy": 0.2}), slow_body, Content_Type=NPY) for _ in range(5 * slots)
        ]
        wait_for(server, bundle, running=slots, queued=1)
        late = send(server, budget_path({"latency_ms": 20}), npy_of(images), Content_Type=NPY)
        assert refused(late, 503)["reason"] in ("expected_wait", "deadline_passed", "queue_full")
        assert late.headers["Retry-After"].isdigit()
        more = [pool.submit(send, server, "/v1/predict", slow_body, Content_Type=NPY) for _ in range(3 * slots)]
        assert server.get("/healthz").status == 200  # a thread is left for that
        replies = [future.result() for future in more]
        for reply in replies:
            if reply.status == 503:
                assert reply.document["reason"] in ("queue_full", "expected_wait", "deadline_passed")
        answers = [future.result() for future in slow]
        assert {reply.status for reply in answers + replies} <= {200, 503}
        assert 503 in {reply.status for reply in answers + replies}
        assert sum(reply.status == 200 for reply in answers) >= slots
        assert live(server, bundle)["deadlines"]["refused"] >= 1
        assert send(server, "/v1/predict", npy_of(images), Content_Type=NPY).status == 200  # it is over


def test_waiting_is_taken_off_the_deadline(
    server: Server, bundle: Bundle, images: np.ndarray[Any, Any], slow_body: bytes
) -> None:
    with ThreadPoolExecutor(8) as pool:
        slots = live(server, bundle)["slots"]
        slow = [pool.submit(send, server, "/v1/predict", slow_body, Content_Type=NPY) for _ in range(slots)]
        wait_for(server, bundle, running=slots)
        reply = send(server, budget_path({"latency_ms": 60_000}), npy_of(images[:1]), Content_Type=NPY, Accept=JSON)
        assert all(future.result().status == 200 for future in slow)
    found = reply.document
    assert reply.status == 200, found
    latest = live(server, bundle)["runtimes"][0]["history"]
    limits = [run["limit_ms"] for run in latest if run["limit_ms"] is not None]
    assert any(limit == pytest.approx(60_000 - found["queued_ms"], abs=1e-3) for limit in limits)


def test_the_runtime_tells_what_it_does(server: Server, bundle: Bundle, images: np.ndarray[Any, Any]) -> None:
    before = live(server, bundle)["deadlines"]
    send(server, budget_path({"latency_ms": 60_000}), npy_of(images), Content_Type=NPY)
    found = live(server, bundle)
    assert (found["bundle"], found["workers"], found["running"], found["queued"]) == (bundle.name, 1, 0, 0)
    assert found["deadlines"]["met"] == before["met"] + 1
    (runtime,) = found["runtimes"]
    assert runtime["device"] == DEVICE
    assert runtime["slow_down"][DEVICE] > 0
    assert runtime["memory_mb"] > 0
    last = runtime["history"][-1]
    assert last["submodel"] in runtime["sessions"]
    assert last["met"]
    assert len(server.get(f"/v1/bundles/{bundle.name}/runtime?history=1").document["runtimes"][0]["history"]) == 1
    assert server.get(f"/v1/bundles/{bundle.name}/runtime?history=x").status == 422
    assert server.get("/v1/bundles/nope/runtime").status == 404


def test_a_graceful_stop_answers_what_is_in_flight(bundle_path: Path, bundle: Bundle, slow_body: bytes, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path, options=("--max-batch", str(BATCH))) as server, ThreadPoolExecutor(4) as pool:
        running = pool.submit(send, server, "/v1/predict", slow_body, Content_Type=NPY)
        wait_for(server, bundle, running=1)
        server.process.send_signal(signal.SIGTERM)
        assert running.result().status == 200
        assert server.process.wait(ENDS_WITHIN_S) == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "terminate called" not in log


def test_a_service_may_leave_predict_out(bundle_path: Path, bundle: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path, options=("--no-predict",)) as server:
        assert server.post("/v1/predict", {}).status == 404
        assert server.get(f"/v1/bundles/{bundle.name}/runtime").status == 404
        assert server.post("/v1/select", {}).status == 200


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_gate_expects_a_wait_by_the_latest_pace() -> None:
    clock = Clock()
    gate = Gate(slots=2, waiting=3, clock=clock)
    with gate.entered(4, 1, until=1e9):
        clock.now += 2.0  # half a second for an example
    assert gate.expected_wait() == 0.0
    with gate.entered(10, 1, until=1e9), gate.entered(10, 1, until=1e9):
        assert gate.expected_wait() == pytest.approx(5.0)
        clock.now += 1.0
        assert gate.expected_wait() == pytest.approx(4.0)
        with pytest.raises(Overloaded) as refused, gate.entered(1, 1, until=clock.now + 3.0):
            pass
        assert (refused.value.reason, refused.value.retry_after_s) == ("expected_wait", 4)
        with pytest.raises(Overloaded) as passed, gate.entered(1, 1, until=clock.now - 1.0):
            pass
        assert passed.value.reason == "deadline_passed"
    assert (gate.running, gate.queued) == (0, 0)


def test_the_gate_keeps_order_and_its_number_of_cores() -> None:
    gate, order, most = Gate(slots=2, waiting=100), [], []

    def run(number: int) -> None:
        with gate.entered(1, 1 + number % 2, until=time.monotonic() + 60):
            order.append(number)
            most.append(gate.running)
            time.sleep(0.001)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == list(range(20))
    assert max(most) <= 2
    full = Gate(slots=1, waiting=0)
    with full.entered(1, 1, until=1e18), pytest.raises(Overloaded, match="wait already"), full.entered(1, 8, until=1e18):
        pass
    with full.entered(1, 8, until=1e18):  # more threads than there are cores: alone
        assert full.running == 1


def test_a_batch_is_budgeted_and_learnt_from_by_example(bundle: Bundle, images: np.ndarray[Any, Any]) -> None:
    from selector import Runtime

    runtime = Runtime(bundle, device=DEVICE, battery=lambda: None, load_ahead=False)
    batch = np.repeat(images[:1], 64, axis=0)
    result = runtime.run(batch, Budget(latency_ms=1000))
    assert runtime.history[-1].latency_ms == pytest.approx(result.latency_ms / 64)
    runtime.close()


def test_onnxruntime_is_not_imported_before_the_server_forks(bundle_path: Path) -> None:
    program = (
        "import sys; from exporter.bundle import Bundle; from selector import service; "
        f"service.create_app([Bundle({str(bundle_path)!r})]); sys.exit('onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == 0
