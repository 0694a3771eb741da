"""The `pull` command: what its options mean, its progress bar, its JSON document."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from selector.choose.budget import BudgetError, make_budget
from selector.fetch.pull import PullOptions, find_bundle, pull
from selector.fetch.transfer import Client, service_url
from selector.ship.state import trial_of
from selector.ship.versions import signed_version


def pull_command(
    url: str,
    out: Path,
    bundle: str | None,
    submodels: Sequence[str] | None,
    budget_fields: Mapping[str, Any],
    device: str | None,
    *,
    options: PullOptions,
    timeout: float,
    console: Console,
    quiet: bool,
) -> dict[str, Any]:
    """The JSON document of what was done. Raises what `pull` raises, BudgetError for a budget beside sub-models."""
    given = {name: value for name, value in budget_fields.items() if value is not None}
    if given and submodels is not None:
        raise BudgetError(f"submodels and {', '.join(given)}: allowed is one of sub-models and a budget")
    budget = make_budget(**given) if given else None
    base, named = service_url(url)
    if bundle is not None and named is not None and bundle != named:
        raise BudgetError(f"bundle = {bundle!r}: the url names {named!r}")
    columns = (TextColumn("pulling"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:  # what was fetched is said afterwards
        task = bar.add_task("", total=None)

        def wait(seconds: float, why: str) -> None:
            bar.update(task, description=f"{why}; again in {seconds:.0f} s")
            time.sleep(seconds)
            bar.update(task, description="")

        client = Client(base, timeout=timeout, wait=wait)
        name = bundle or named or find_bundle(client)
        done = pull(
            client,
            name,
            out,
            submodels=submodels,
            budget=budget,
            device=device,
            options=options,
            progress=lambda count, total: bar.update(task, completed=count, total=total),
        )
    return {
        "bundle": name,
        "submodels": list(done.bundle.submodels),
        "changed": done.changed,
        "fetched_files": done.fetched_files,
        "fetched_bytes": done.fetched_bytes,
        "reused_files": done.reused_files,
        "bytes_total": done.bundle.bytes_total,
        "selection": done.selection,
        "lost": list(done.lost),
        "trial": trial_of(out) is not None,
        **({"version": version} if (version := signed_version(done.bundle.path)) is not None else {}),
    }
