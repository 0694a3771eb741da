"""An option of a single value that is given twice: the first is not dropped without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import call, commands, refused


def _single() -> list[tuple[str, Any]]:
    """Every option that takes one value, and every pair of switches, of every command."""
    found = []
    for name, command in commands().items():
        for option in command.params:
            value = not option.is_flag if option.param_type_name == "option" else False
            if option.param_type_name == "option" and not option.multiple and (value or option.secondary_opts):
                found.append((name, option))
    return found


def test_every_command_refuses_it() -> None:
    for name, option in _single():
        once = [option.opts[0]] if option.is_flag else [option.opts[0], "1"]
        again = [option.secondary_opts[0]] if option.is_flag else once
        result = call(*name.split(), *once, *again)
        assert result.exit_code == 2, (name, option.opts)
        assert f"{option.opts[0]} is given more than once" in result.stderr, (name, option.opts)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--grid", "width=0.5", "--grid", "width=0.25"], "grid = 'width=0.25': width is given twice"),
        (["--set", "blocks=[1,2]", "--set", "blocks=[2,2]"], "set = 'blocks=[2,2]': blocks is given twice"),
        (["--task-set", "a=1", "--task-set", "a=1"], "task-set = 'a=1': a is given twice"),
        (["--data-option", "size=8", "--data-option", "size=16"], "data-option = 'size=16': size is given twice"),
    ],
)
def test_nor_is_a_part_of_an_option_given_twice(arguments: list[str], named: str, tmp_path: Path) -> None:
    line = refused("train", "--family", "resnet", "--data", "digits", "--out", tmp_path / "run", *arguments)
    assert named in line
    assert not (tmp_path / "run").exists()


def test_nor_a_part_of_a_plan(bundle_path: Path, images: Path) -> None:
    plan = ["--plan", "until=18:00", "--plan", "per_hour=600", "--plan", "per_hour=60"]
    assert "plan = 'per_hour=60': per_hour is given twice" in refused("run", bundle_path, "--input", images, *plan)


def test_options_of_several_values_and_switches_may_be_repeated(bundle_path: Path) -> None:
    device = Path(next((bundle_path / "profiles").glob("*.json"))).stem
    assert call("select", bundle_path, "--device", device, "--device", device, "--json", "--json").exit_code == 0
