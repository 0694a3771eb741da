"""How commands print and fail: documents and tables on stdout, messages on stderr, one line for an expected error."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column
from typer.core import TyperCommand

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


def guard(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose expected errors, those with an `exit_code`, become one line on stderr and that code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except typer.Exit:
            raise
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            fail(f"{function.__name__.replace('_', ' ')} needs {error.name}: pip install 'sortednet[{extra}]'", 2)
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                raise
            fail(str(error), code)

    return guarded


class OneValueCommand(TyperCommand):
    """A command that refuses an option of a single value that is given twice: the first would be dropped without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for parameter in self.get_params(ctx):
                repeated = given.count(parameter) > 1 and not getattr(parameter, "multiple", False)
                switch = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
                if parameter.param_type_name == "option" and repeated and not switch:
                    ctx.fail(f"{parameter.opts[0]} is given more than once; allowed is one value")
        return super().parse_args(ctx, args)


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with one line on stderr."""
    messages.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def tell(text: str) -> None:
    """A message on stderr."""
    messages.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document))


def right(*names: str) -> list[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in names]
