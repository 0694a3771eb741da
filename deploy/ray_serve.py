"""sortednet behind Ray Serve: replicas of the service's own engine, and a door that keeps deadlines when one of them dies.

    pip install sortednet[serve] 'ray[serve]'
    cd deploy && SORTEDNET_BUNDLE=/bundles/digits serve run ray_serve:application

`/v1/predict`, `/v1/select`, `/v2/…` and what else `sortednet serve` answers, except the fleet's profiles, which need a store,
and texts that are generated. SORTEDNET_REPLICAS (2) engines have SORTEDNET_CORES (1) each; measure the bundle on such a node
first, with `--threads` of as many.

The door notes when a request came. What has passed since, in Ray's queues and with a replica that died, counts as waiting: the
engine takes it off the deadline, runs what fits the rest, and refuses what cannot be in time any more (503). The clocks of the
nodes have to agree (NTP).
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError
from starlette.requests import Request
from starlette.responses import Response

TRIES = 5
"""Replicas that one request may lose."""
ANEW = frozenset({"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"})
"""Headers that the door's own server writes."""
CORES, REPLICAS = (int(os.environ.get(f"SORTEDNET_{name}", usual)) for name, usual in (("CORES", "1"), ("REPLICAS", "2")))
Asked = tuple[str, str, str, dict[str, str], bytes]  # method, path, query, headers, body
Answer = tuple[int, dict[str, str], bytes]


@serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=8 * CORES, ray_actor_options={"num_cpus": CORES})
class Engine:
    """One replica: the bundle's sessions, and the gate before them."""

    def __init__(self, bundle: str) -> None:
        from exporter.bundle import Bundle
        from selector.service import PredictOptions, create_app

        self._app = create_app([Bundle(bundle)], predict=PredictOptions(cores=CORES), generate=None)

    async def answer(self, asked: Asked, came: float) -> Answer:
        """`came`: when the door had the request, in seconds since 1970."""
        return await asyncio.to_thread(self._answered, asked, came)

    def _answered(self, asked: Asked, came: float) -> Answer:
        from selector.service.web.receipt import note_wait

        method, path, query, headers, body = asked
        waited = max(0.0, time.time() - came)
        note_wait(waited, time.monotonic() - waited)
        found = self._app.test_client().open(path, method=method, query_string=query, headers=headers, data=body)
        return found.status_code, dict(found.headers), found.get_data()


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Door:
    """Hands each request to an engine, and to another one where that dies: it changes nothing, so it may be asked twice."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def __call__(self, request: Request) -> Response:
        came = time.time()
        asked = request.method, request.url.path, request.url.query, dict(request.headers), await request.body()
        for _ in range(TRIES):
            try:
                status, headers, body = await self._engine.answer.remote(asked, came)
            except (RayActorError, ActorUnavailableError):
                continue
            kept = {name: value for name, value in headers.items() if name.lower() not in ANEW}
            return Response(body, status, kept)
        return Response(b'{"title":"Service Unavailable","status":503}', 503, media_type="application/problem+json")


application = Door.bind(Engine.bind(os.environ.get("SORTEDNET_BUNDLE", "/bundle")))
