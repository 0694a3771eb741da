"""Deadlines, waiting and overload of `POST /v1/predict`: a real server process on loopback, and its parts by themselves."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_profiles import read_profile, write_profile
from exporter.bundle import Bundle
from selector import Budget
from selector.service.predict.gate import Gate, Overloaded
from selector.service.predict.predictor import Prediction, PredictOptions, Predictor
from selector.service.predict.schemas import PredictQuery
from selector.service.web.metrics import Metrics
from selector.service.web.schemas import QueryBudget
from tests.conftest import DEVICE, taking
from tests.helpers.predict_client import JSON, NPY, budget_path, input_name, npy_of, refused, send, slowly
from tests.helpers.server import ANSWERS_WITHIN_S, ENDS_WITHIN_S, Server, serving


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("predict")
    with serving(folder / "log", bundle_path, held_by=folder / "held") as found:
        yield found


@pytest.fixture
def held(server: Server) -> Iterator[Path]:
    """While this file is there, whatever has its turn on that server takes its time."""
    path = server.log.parent / "held"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def slow_on_paper(bundle_path: Path, copy: Path, ms: float) -> Bundle:
    """The bundle with a profile that says that every sub-model takes so long."""
    shutil.copytree(bundle_path, copy)
    file = copy / "profiles" / f"{DEVICE}.json"
    write_profile(taking(read_profile(file), ms), file)
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
    passed = send(server, budget_path({"latency_ms": 300}), slowly(npy_of(images), 0.35), Content_Type=NPY)
    assert refused(passed, 503)["reason"] == "deadline_passed"
    assert int(passed.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("limit_ms", [1e-6, 1e-3, 0.1, 0.3])
def test_a_deadline_that_is_too_short_for_anything_is_answered_by_the_nearest(
    server: Server, images: np.ndarray[Any, Any], limit_ms: float
) -> None:
    """As `select` does; nobody had to wait."""
    reply = send(server, budget_path({"latency_ms": limit_ms}), npy_of(images[:1]), Content_Type=NPY, Accept=JSON)
    assert reply.status == 200, reply.body
    assert reply.document["selection"]["feasible"] is False


def test_the_time_that_reading_a_request_takes_is_no_waiting(
    bundle_path: Path, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    """A sub-model of half a millisecond would fit the deadline, were the request not to be read before; nor does it wait."""
    bundle = slow_on_paper(bundle_path, tmp_path / "quick", 0.5)
    query = PredictQuery(budget=QueryBudget(latency_ms=1.0))
    predictor = Predictor(PredictOptions(), Metrics())
    predictor.warm([bundle])
    begun = time.monotonic() - 0.002
    found = predictor.predict(bundle, query, {input_name(bundle): images[:1]}, begun, begun)
    assert not found.selection.feasible
    with pytest.raises(Overloaded):  # the same wait before anything was done with it
        predictor.predict(bundle, query, {input_name(bundle): images[:1]}, begun, time.monotonic())


def test_a_profile_that_is_measured_anew_is_used(bundle_path: Path, images: np.ndarray[Any, Any], tmp_path: Path) -> None:
    bundle = slow_on_paper(bundle_path, tmp_path / "slow", 60_000)
    predictor = Predictor(PredictOptions(), Metrics())
    query = PredictQuery(budget=QueryBudget(latency_ms=50_000))
    inputs = {input_name(bundle): images[:1]}
    assert not predictor.predict(bundle, query, inputs, time.monotonic()).selection.feasible
    (before,) = predictor.opened(bundle)
    shutil.copy(bundle_path / "profiles" / f"{DEVICE}.json", tmp_path / "slow" / "profiles" / "new.json")
    os.replace(tmp_path / "slow" / "profiles" / "new.json", tmp_path / "slow" / "profiles" / f"{DEVICE}.json")
    assert predictor.predict(bundle, query, inputs, time.monotonic()).selection.feasible
    assert len(predictor.opened(bundle)) == 1
    assert not before.runtime.pool.loaded


def live(server: Server, bundle: Bundle) -> dict[str, Any]:
    return dict(server.get(f"/v1/bundles/{bundle.name}/runtime").document)


def wait_for(server: Server, bundle: Bundle, **wanted: int) -> None:
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while time.monotonic() < deadline:
        found = live(server, bundle)
        if all(found[name] >= count for name, count in wanted.items()):
            return
        time.sleep(0.005)
    raise AssertionError(f"never {wanted}: {found}")


def test_overload_is_answered_early_and_whoever_was_let_in_is_answered(
    server: Server, bundle: Bundle, images: np.ndarray[Any, Any], held: Path
) -> None:
    body = npy_of(images)
    with ThreadPoolExecutor(40) as pool:
        slots = live(server, bundle)["slots"]
        slow = [pool.submit(send, server, budget_path({"min_accuracy": 0.2}), body, Content_Type=NPY) for _ in range(5 * slots)]
        wait_for(server, bundle, running=slots, queued=1)
        late = send(server, budget_path({"latency_ms": 20}), body, Content_Type=NPY)
        assert refused(late, 503)["reason"] in ("expected_wait", "deadline_passed", "queue_full")
        assert late.headers["Retry-After"].isdigit()
        more = [pool.submit(send, server, "/v1/predict", body, Content_Type=NPY) for _ in range(3 * slots)]
        early, _ = wait(slow + more, return_when=FIRST_COMPLETED)  # there are more than may run and wait
        assert {future.result().status for future in early} == {503}
        assert server.get("/healthz").status == 200  # a thread is left for that
        held.unlink()
        replies = [future.result() for future in more]
        for reply in replies:
            if reply.status == 503:
                assert reply.document["reason"] in ("queue_full", "expected_wait", "deadline_passed")
        answers = [future.result() for future in slow]
        assert {reply.status for reply in answers + replies} <= {200, 503}
        assert 503 in {reply.status for reply in answers + replies}
        assert sum(reply.status == 200 for reply in answers) >= slots
        assert live(server, bundle)["deadlines"]["refused"] >= 1
        assert send(server, "/v1/predict", body, Content_Type=NPY).status == 200  # it is over


def test_waiting_is_taken_off_the_deadline(server: Server, bundle: Bundle, images: np.ndarray[Any, Any], held: Path) -> None:
    one = npy_of(images[:1])
    with ThreadPoolExecutor(8) as pool:
        slots = live(server, bundle)["slots"]
        slow = [pool.submit(send, server, "/v1/predict", npy_of(images), Content_Type=NPY) for _ in range(slots)]
        wait_for(server, bundle, running=slots)
        waits = pool.submit(send, server, budget_path({"latency_ms": 60_000}), one, Content_Type=NPY, Accept=JSON)
        wait_for(server, bundle, running=slots, queued=1)
        held.unlink()
        assert all(future.result().status == 200 for future in slow)
        reply = waits.result()
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


def test_a_graceful_stop_answers_what_is_in_flight(
    bundle_path: Path, bundle: Bundle, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.touch()
    with serving(tmp_path / "log", bundle_path, held_by=held) as server, ThreadPoolExecutor(4) as pool:
        running = pool.submit(send, server, "/v1/predict", npy_of(images), Content_Type=NPY)
        wait_for(server, bundle, running=1)
        server.stop()
        held.unlink()
        assert running.result().status == 200
        assert server.process.wait(ENDS_WITHIN_S) == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "terminate called" not in log


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
