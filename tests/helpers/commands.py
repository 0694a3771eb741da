"""The command line, called in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner, Result

import sortednet

SELECTION = (
    "submodel",
    "feasible",
    "quality",
    "metric",
    "accuracy",
    "latency_ms",
    "energy_mj",
    "memory_mb",
    "reason",
    "device",
)
"""What a `select` document has where the metric is accuracy (CONTRACT.md), in this order; a cascade's fields follow."""


def commands() -> dict[str, Any]:
    """By name, `token create` among them."""
    group: Any = typer.main.get_command(sortednet.app)
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {inside}": inner[inside] for inside in inner}
    return found


def call(*arguments: str | Path) -> Result:
    """Runs a command in this process. Any exception but the exit itself is a traceback that a user would see."""
    result = CliRunner().invoke(sortednet.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: str | Path, code: int = 2) -> str:
    """The one line that an expected error prints."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def document(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """The one JSON document that `--json` prints."""
    result = call(*arguments, "--json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)
