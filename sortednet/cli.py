"""The command line: one Typer app. Every command imports what it needs when it runs, so that a device without torch can use
those that need none.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 nothing fits the budget.
"""

from __future__ import annotations

import typer

from sortednet.bundles import inspect, report, verify
from sortednet.console import OneValueCommand, guard
from sortednet.devices import cascade, profile, run, select
from sortednet.service import pull, serve, token_create, token_list, token_revoke
from sortednet.training import export, train

app = typer.Typer(
    name="sortednet",
    help="Train one nested model, ship every smaller version of it, run the one that fits the device's budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, export, inspect, verify, report, profile, select, run, cascade, serve, pull):
    app.command(cls=OneValueCommand)(guard(command))

tokens = typer.Typer(help="Bearer tokens, with which devices send their profiles to the service.", no_args_is_help=True)
tokens.command("create", cls=OneValueCommand)(guard(token_create))
tokens.command("list", cls=OneValueCommand)(guard(token_list))
tokens.command("revoke", cls=OneValueCommand)(guard(token_revoke))
app.add_typer(tokens, name="token")
