"""The versions of a bundle on a device: `versions`, `rollback`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from sortednet.console import print_json, say, show, tell
from sortednet.options import BundlePath, JsonOption


def versions(bundle: BundlePath, as_json: JsonOption = False) -> None:
    """Show the versions of a bundle that are kept on this device, the latest first."""
    from selector.ship.versions import documents
    from selector.ship.versions import versions as kept_versions

    found = kept_versions(bundle)
    if as_json:
        print_json({"versions": documents(found)})
        return
    table = Table(Column("id", no_wrap=True), "version", "sub-models", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in found:
        words = ["used"] * one.current + [f"on trial, {one.trial_runs} runs"] * one.trial
        words += [f"taken back: {one.refused}"] if one.refused else []
        table.add_row(one.id, str(one.number or ""), str(len(one.submodels)), escape(", ".join(words)))
    show(table)


def rollback(
    bundle: BundlePath,
    version: Annotated[
        str | None, typer.Argument(help="Its id or number. Default: the one before this.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put an earlier version of a bundle back in its place; the one that was there is kept, and not fetched again."""
    from selector.ship.state import id_of
    from selector.ship.versions import rollback as go_back
    from selector.ship.versions import signed_version

    done = go_back(bundle, version)
    number = signed_version(done.path)
    if as_json:
        print_json({"id": id_of(done), "number": number, "submodels": list(done.submodels)})
        return
    say(f"{bundle} is {id_of(done)}{f' (version {number})' if number is not None else ''} again.")
    tell("What was there is kept: sortednet versions shows it, pull --older takes it again.")


def trial_document(opened: Any) -> dict[str, Any]:
    """What `--json` of a Runtime or Generator prints of a version on trial; nothing where there is none."""
    from selector.run.canary import Canary

    return {"trial": opened.document()} if isinstance(opened, Canary) else {}
