"""The server that runs the application."""

from __future__ import annotations

from flask import Flask


def serve(app: Flask, *, host: str, port: int, threads: int = 4) -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are answered first.

    ONNX Runtime must not have been imported: it starts a thread that a forked worker does not have and aborts without
    at its end (1.32). This module and what it imports do without it.
    """
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            self.cfg.set("bind", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            self.cfg.set("worker_class", "gthread")
            self.cfg.set("threads", threads)
            self.cfg.set("proc_name", "sortednet")

        def load(self) -> Flask:
            return app

    Server().run()
