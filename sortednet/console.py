"""How commands print and fail: documents and tables on stdout, messages on stderr, one line for an expected error."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

messages = Console(stderr=True)

_EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "safetensors", "sklearn", "scipy"), "train"),
    "PIL": "image",
    "soundfile": "audio",
    "soxr": "audio",
    "tokenizers": "text",
    "transformers": "hf",
    "datasets": "hf",
    **dict.fromkeys(("apispec", "cachetools", "flask", "flask_cors", "flask_swagger_ui", "gunicorn", "limits"), "serve"),
    **dict.fromkeys(("plotly", "jinja2", "prometheus_client", "sqlalchemy", "alembic", "psycopg", "structlog"), "serve"),
}
"""By module: the extra that it comes with."""

_AFTERWARDS = {
    "train": "; the same command with --resume goes on from the last checkpoint",
    "pull": "; the same command goes on with what has arrived",
}
"""By command: what an interruption leaves."""


def guard(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose expected errors, those with an `exit_code`, become one line on stderr and that code; so does Ctrl-C."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            fail(f"interrupted{_AFTERWARDS.get(function.__name__, '')}", 130)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            command = function.__name__.replace("_", " ")
            fail(f"{command} needs {error.name}: pip install '.[{extra}]' in a checkout of sortednet", 2)
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                raise
            fail(str(error), code)

    return guarded


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with one line on stderr."""
    messages.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def tell(text: str) -> None:
    """A message on stderr."""
    messages.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document))


def show(table: Table) -> None:
    """Prints it as wide as it is: where the terminal is narrower its lines go on in the next one, and no value is cut off."""
    console = Console()
    widest = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, widest)).print(table)


def right(*names: str) -> list[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in names]


def short(number: int) -> str:
    """Three digits, such as 693 k or 2.24 M."""
    rounded = float(f"{number:.3g}")
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if rounded >= size:
            return f"{rounded / size:g} {unit}"
    return str(number)
