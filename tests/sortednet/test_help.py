"""What `sortednet train` may be given is in its help and in the README: every family, task, update rule and source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sortednet.training import train
from trainer import RULES, registered_families, registered_tasks
from trainer.data import registered_sources

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
OF_A_FOLDER = {"idx-folder", "cifar10-folder"}
"""Recognised by what lies there; nobody need name them."""


def own(registered: Mapping[str, type | Callable[..., object]]) -> set[str]:
    """Without what users, or other tests, have registered."""
    return {name for name, found in registered.items() if found.__module__.startswith("trainer.")}


def helped(option: str) -> str:
    annotation = inspect.signature(train, eval_str=True).parameters[option].annotation
    return str(annotation.__metadata__[0].help)


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("family", own(registered_families())),
        ("task", own(registered_tasks())),
        ("update", own(RULES)),
        ("data", {name or "module:function" for name in own(registered_sources())} - OF_A_FOLDER),
    ],
)
def test_every_name_is_in_the_help_and_in_the_readme(option: str, names: set[str]) -> None:
    missing = [name for name in names if name not in helped(option)]
    assert missing == []
    if option != "family":  # of these the README shows one
        assert [name for name in names if name not in README] == []
