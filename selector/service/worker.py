"""gunicorn's threaded worker, which also says how long a request waited for a thread."""

from __future__ import annotations

import time
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from selector.service.web.receipt import note_wait


class Worker(ThreadWorker):  # type: ignore[misc]
    """A deadline counts from here: under load most of the waiting is for a thread, before any application is called."""

    def enqueue_req(self, conn: Any) -> None:
        conn.ready_at = time.monotonic()
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        note_wait(time.monotonic() - conn.ready_at)
        return super().handle(conn)
