"""The command line: one Typer app. Every command imports what it needs when it runs, so that a device without torch can use
those that need none.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 nothing fits the budget, 130 interrupted.
"""

from __future__ import annotations

import typer

from sortednet.bundles import inspect, report, verify
from sortednet.commands import HELP_OPTIONS, Group, add, root
from sortednet.devices import cascade, profile, select
from sortednet.exporting import export
from sortednet.generating import generate
from sortednet.running import run
from sortednet.service import pull, serve, token_create, token_list, token_revoke
from sortednet.shipping import rollback, versions
from sortednet.signing import sign_command
from sortednet.training import train

app = typer.Typer(
    name="sortednet",
    help="Train one nested model, ship every smaller version of it, run the one that fits the device's budget.",
    cls=Group,
    context_settings=HELP_OPTIONS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(root)
for command in (train, export, inspect, verify, report, profile, select, run, generate, cascade, serve, pull):
    add(app, command)
add(app, sign_command, "sign")
add(app, versions)
add(app, rollback)

tokens = typer.Typer(
    cls=Group, help="Bearer tokens, with which devices send their profiles to the service.", no_args_is_help=True
)
add(tokens, token_create, "create", "token ")
add(tokens, token_list, "list", "token ")
add(tokens, token_revoke, "revoke", "token ")
app.add_typer(tokens, name="token")
