"""`deploy/ray_serve.py` with a stand-in for Ray: what a request has waited counts, and a replica that dies costs no answer.

With Ray itself, replicas that are killed and load: `python -m benchmarks.ship ray`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle

DEPLOYED = Path(__file__).parents[3] / "deploy" / "ray_serve.py"
DEADLINE_MS = 60_000.0


class Died(Exception):
    """As Ray says that an actor did."""


class Answered:
    """What `starlette.responses.Response` is made of."""

    def __init__(self, content: bytes, status_code: int = 200, headers: Any = None, media_type: str | None = None) -> None:
        self.content, self.status, self.headers = content, status_code, dict(headers or {})


@pytest.fixture
def deployed(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with `deployment` of Ray Serve that leaves a class as it is."""

    def deployment(**options: Any) -> Any:
        def made(kind: Any) -> Any:
            kind.options, kind.bind = options, classmethod(lambda cls, *given: (cls, given))
            return kind

        return made

    modules = {
        "ray": {"serve": SimpleNamespace(deployment=deployment)},
        "ray.exceptions": {"RayActorError": Died, "ActorUnavailableError": Died},
        "starlette": {},
        "starlette.requests": {"Request": object},
        "starlette.responses": {"Response": Answered},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("SORTEDNET_BUNDLE", str(bundle_path))
    spec = importlib.util.spec_from_file_location("deployed_ray_serve", DEPLOYED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(deployed: Any, bundle_path: Path) -> Any:
    return deployed.Engine(str(bundle_path))


def asked(bundle: Bundle, images: np.ndarray[Any, Any], **budget: float) -> tuple[str, str, str, dict[str, str], bytes]:
    document = {"budget": budget, "inputs": {bundle.manifest.inputs[0].name: images[:1].tolist()}}
    return "POST", "/v1/predict", "", {"content-type": "application/json"}, json.dumps(document).encode()


def test_two_engines_are_asked_for_with_cores_of_their_own(deployed: Any, bundle_path: Path) -> None:
    assert deployed.Engine.options["num_replicas"] == 2
    assert deployed.Engine.options["ray_actor_options"] == {"num_cpus": 1}
    door, (engine,) = deployed.application
    assert door is deployed.Door
    assert engine == (deployed.Engine, (str(bundle_path),))


def test_what_a_request_has_waited_is_taken_off_its_deadline(engine: Any, bundle: Bundle, images: Any) -> None:
    question = asked(bundle, images, latency_ms=DEADLINE_MS)
    status, headers, body = asyncio.run(engine.answer(question, time.time() - 20))
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body)["queued_ms"] >= 20_000
    status, _, body = asyncio.run(engine.answer(question, time.time() - DEADLINE_MS / 1e3 - 1))
    assert status == 503
    assert json.loads(body)["reason"] == "deadline_passed"
    status, _, body = asyncio.run(engine.answer(question, time.time() + 5))  # another node's clock is ahead
    assert json.loads(body)["queued_ms"] < 20_000


class Request:
    """What the door reads of `starlette.requests.Request`."""

    def __init__(self, question: tuple[str, str, str, dict[str, str], bytes]) -> None:
        self.method, path, query, self.headers, self._body = question
        self.url = SimpleNamespace(path=path, query=query)

    async def body(self) -> bytes:
        return self._body


@pytest.mark.parametrize(("deaths", "status"), [(0, 200), (1, 200), (4, 200), (5, 503)])
def test_another_engine_answers_for_one_that_dies(
    deployed: Any, engine: Any, bundle: Bundle, images: Any, deaths: int, status: int
) -> None:
    came: list[float] = []

    async def remote(question: Any, since: float) -> Any:
        came.append(since)
        if len(came) <= deaths:
            raise Died
        return await engine.answer(question, since)

    door = deployed.Door(SimpleNamespace(answer=SimpleNamespace(remote=remote)))
    found = asyncio.run(door(Request(asked(bundle, images, latency_ms=DEADLINE_MS))))
    assert found.status == status
    assert len(came) == min(deaths + 1, deployed.TRIES)
    assert len(set(came)) == 1  # a second try has no deadline of its own
    if status == 200:
        assert json.loads(found.content)["selection"]["submodel"] in bundle.submodels
        assert not {name.lower() for name in found.headers} & deployed.ANEW


def test_other_doors_are_open_too_and_what_is_wrong_is_told(engine: Any, bundle: Bundle) -> None:
    status, _, _ = asyncio.run(engine.answer(("GET", "/v2/health/ready", "", {}, b""), time.time()))
    assert status == 200
    question = "POST", "/v1/predict", "", {"content-type": "application/json"}, b"{"
    status, headers, _ = asyncio.run(engine.answer(question, time.time()))
    assert (status, headers["Content-Type"]) == (422, "application/problem+json")
