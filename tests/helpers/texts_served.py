"""What a client sees of a text that is generated over HTTP."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Event(NamedTuple):
    name: str
    document: Any  # JSON, or the word as it is


def events(body: bytes) -> list[Event]:
    """Of a whole stream."""
    found = []
    for block in body.decode("utf-8").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines:
            data = lines["data"]
            found.append(Event(lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found
