"""How commands print and fail: documents and tables on stdout, messages on stderr, one line for an expected error."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

messages = Console(stderr=True)

CHECKPOINT_FILE = "checkpoint.safetensors"  # as `trainer.checkpoint` has it, which needs torch

_EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "safetensors", "sklearn", "scipy"), "train"),
    "PIL": "image",
    "model_signing": "sign",
    "soundfile": "audio",
    "soxr": "audio",
    "tokenizers": "text",
    "jinja2": "text",
    "transformers": "hf",
    "datasets": "hf",
    **dict.fromkeys(("apispec", "cachetools", "flask", "flask_cors", "flask_swagger_ui", "gunicorn", "limits"), "serve"),
    **dict.fromkeys(("plotly", "prometheus_client", "sqlalchemy", "alembic", "psycopg", "structlog"), "serve"),
}
"""By module: the extra that it comes with."""

_OF_COMMAND = {"report": "serve"}
"""By command: the extra that has all it needs, where several have what was missed first."""


def guard(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose expected errors, those with an `exit_code`, become one line on stderr and that code; so does Ctrl-C."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            fail(f"interrupted{_afterwards(function.__name__, kwargs.get('out'))}", 130)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            extra = _OF_COMMAND.get(function.__name__, extra)
            command = function.__name__.replace("_", " ")
            fail(f"{command} needs {error.name}: pip install '.[{extra}]' in a checkout of sortednet", 2)
        except Exception as error:
            code = 1 if _no_threads(error) else getattr(error, "exit_code", None)
            if code is None and isinstance(error, FileNotFoundError) and _nowhere():
                fail("the working directory is not there any more; change into one that is", 2)
            if code is None:
                raise
            fail(str(error), code)

    return guarded


def begin(app: typer.Typer) -> None:
    """The command line of this process, whatever its streams are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # it may be closed
            encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
            told = _Stream(stream.detach(), encoding, "backslashreplace", line_buffering=by_line, write_through=at_once)
            setattr(sys, name, told)
            setattr(sys, f"__{name}__", told)
    try:
        try:
            app(prog_name="sortednet")  # under `python -m` too
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough
        code = 1
    except OutputError as error:
        messages.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = error.exit_code
    else:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at the end would say it again
    sys.exit(code)


def _afterwards(command: str, out: Path | None) -> str:
    """What an interruption leaves, in words."""
    if command == "pull":
        return "; the same command goes on with what has arrived"
    if command != "train" or out is None:
        return ""
    if (out / CHECKPOINT_FILE).exists():
        return "; the same command with --resume goes on from the last checkpoint"
    return " before the first checkpoint; the same command begins again"


class OutputError(Exception):
    """A stdout that takes nothing more, such as a file on a full disk."""

    exit_code = 1


class _Stream(io.TextIOWrapper):
    """stdout or stderr: what the encoding does not have is written as `\\xfc`. Where a message cannot be written the work goes
    on; of a document OutputError is raised."""

    def write(self, text: str) -> int:
        with self._watched():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._watched():
            super().flush()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            if self is not sys.stderr:
                raise OutputError(f"stdout: cannot be written: {error.strerror}") from None


def _no_threads(error: Exception) -> bool:
    """Whether the system lets this process start no more threads, in Python's words."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def _nowhere() -> bool:
    """Whether somebody has removed the folder that this process works in."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with one line on stderr."""
    # On a terminal lines end between words; what is piped is one line.
    messages.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=not messages.is_terminal)
    raise typer.Exit(code)


def tell(text: str) -> None:
    """A message on stderr. On a terminal its lines end between words."""
    messages.print(text, markup=False, highlight=False, soft_wrap=not messages.is_terminal)


def say(text: str) -> None:
    """A sentence on stdout. On a terminal its lines end between words; commands to be copied go through `typer.echo`."""
    if sys.stdout is not None and sys.stdout.isatty():
        Console().print(text, markup=False, highlight=False)
    else:
        typer.echo(text)


def print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document))


def show(table: Table) -> None:
    """Prints it as wide as it is: where the terminal is narrower its lines go on in the next one, and no value is cut off."""
    console = Console()
    widest = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, widest)).print(table)


def right(*names: str) -> list[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in names]


def plain(number: float, digits: int = 3) -> str:
    """That many figures, never times a power of ten: 140, 1.4, 0.00014."""
    return f"{Decimal(f'{number:.{digits}g}'):f}"


def short(number: int) -> str:
    """Three digits, such as 693 k or 2.24 M."""
    rounded = float(f"{number:.3g}")
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if rounded >= size:
            return f"{rounded / size:g} {unit}"
    return str(number)
