"""What every command of the command line has: an example in its help, `-h`, and flags that do not look as if they took
a value."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer import BadParameter
from typer.core import TyperCommand, TyperGroup, TyperOption

from sortednet.console import guard

EXAMPLES = {
    "train": "sortednet train --family resnet --data digits --grid width=0.5,1 --grid depth=1,2 --epochs 20 --out run",
    "export": "sortednet export run --out bundle --int8",
    "inspect": "sortednet inspect bundle",
    "verify": "sortednet verify bundle",
    "report": "sortednet report bundle --out report.html",
    "profile": "sortednet profile bundle --threads 2 --watts 4",
    "select": "sortednet select bundle --latency-ms 5 --percentile 99",
    "run": "sortednet run bundle --input image.npy --latency-ms 5 --json",
    "generate": 'sortednet generate bundle --chat --prompt "Why is the sky blue?" --ms-per-token 20',
    "cascade": "sortednet cascade bundle --data digits --floor 0.97",
    "serve": "sortednet serve bundle --port 8080",
    "pull": "sortednet pull http://127.0.0.1:8080 --out here --latency-ms 5",
    "sign": "sortednet sign bundle --key private.pem",
    "versions": "sortednet versions here",
    "rollback": "sortednet rollback here",
    "token create": "sortednet token create phones --bundle digits --days 90",
    "token list": "sortednet token list --json",
    "token revoke": "sortednet token revoke ID",
}
"""By command: one that can be typed as it stands, given the files that it names."""

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class _PlainFlags:
    """A flag's type is not shown: `--json <bool>` reads as if a value were to follow."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if isinstance(parameter, TyperOption) and parameter.is_flag and parameter.metavar is None:
                parameter.metavar = ""
        return parameters


class Command(_PlainFlags, TyperCommand):
    """A command whose help shows its flags as such, and that refuses an option of a single value that is given twice: the first
    would be dropped without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for parameter in self.get_params(ctx):
                repeated = given.count(parameter) > 1 and not getattr(parameter, "multiple", False)
                switch = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
                if parameter.param_type_name == "option" and repeated and not switch:
                    ctx.fail(f"{parameter.opts[0]} is given more than once; allowed is one value")
        try:
            return super().parse_args(ctx, args)
        except BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            found: list[Any] = getattr(error.__cause__, "errors", list)()  # pydantic's; its words do not name the value
            if found and repr(found[0]["input"]) not in error.message:
                error.message += f"; it is {found[0]['input']!r}"
            raise


class Group(_PlainFlags, TyperGroup):
    """Commands under one name, likewise."""


def add(app: typer.Typer, function: Callable[..., None], name: str | None = None, path: str = "") -> None:
    """The function becomes a command of the app. `path`: what comes before its name, such as `token `."""
    name = name or function.__name__
    app.command(name, cls=Command, epilog=f"Example: {EXAMPLES[path + name]}")(guard(function))


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sortednet {version('sortednet')}")
        raise typer.Exit


def root(
    said: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """The options of `sortednet` itself."""
