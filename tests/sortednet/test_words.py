"""What the command line says: its help, its notes on what has no effect, tables that hide nothing, an end by Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from exporter.bundle import Bundle
from selector.choose.battery import Battery
from selector.choose.cascades import Cascade
from sortednet import console
from sortednet.commands import EXAMPLES
from tests.helpers.commands import call, commands, document, refused

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def test_every_command_has_an_example_in_its_help_that_can_be_parsed() -> None:
    assert set(EXAMPLES) == set(commands())
    for name, command in commands().items():
        program, *arguments = shlex.split(EXAMPLES[name])
        words = name.split()
        assert (program, arguments[: len(words)]) == ("sortednet", words)
        command.make_context(name, arguments[len(words) :])  # an unknown option or a missing argument raises
        assert "Example: sortednet " + name in call(*words, "--help").stdout


@pytest.mark.parametrize(("number", "said"), [(138.9, "140"), (99.6, "100"), (1.44, "1.4"), (0.000144, "0.00014")])
def test_a_figure_is_never_times_a_power_of_ten(number: float, said: str) -> None:
    assert console.plain(number, digits=2) == said


@pytest.mark.parametrize("command", ["", "select", "token", "token create"])
def test_help_has_a_short_name_and_flags_take_no_value(command: str) -> None:
    short, long = (call(*command.split(), option) for option in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "<bool>" not in short.stdout


def test_the_version_and_completion() -> None:
    assert call("--version").stdout == f"sortednet {version('sortednet')}\n"
    environment = {**os.environ, "_SORTEDNET_COMPLETE": "complete_bash", "COMP_WORDS": "sortednet ins", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "sortednet"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.split() == ["inspect"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--battery", "15"], "the battery at 15 % is taken to be on the mains; say --discharging where it is not"),
        (["--battery", "80", "--discharging"], "at 80 %, and the policy saves below 20 %"),
        (["--policy", "POLICY"], "--policy changes nothing: give --battery PERCENT"),
        (["--policy", "POLICY", "--battery", "45", "--discharging"], "saves below 40 %"),
        (["--battery", "15", "--discharging"], ""),
        (["--policy", "POLICY", "--battery", "35", "--discharging"], ""),
        ([], ""),
    ],
)
def test_select_says_what_has_no_effect(bundle_path: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "policy.json").write_text(json.dumps({"levels": [{"below_percent": 40}]}))
    result = call("select", bundle_path, *(tmp_path / "policy.json" if one == "POLICY" else one for one in arguments))
    assert result.exit_code == 0
    assert said in result.stderr
    assert bool(said) is bool(result.stderr)


@pytest.mark.parametrize(
    ("battery", "plan", "policy"),
    [
        (None, "no battery was found on this device", "no battery was found on this device"),
        (Battery(percent=50.0), "is not discharging", "the policy saves below 40 %"),
        (Battery(percent=30.0, discharging=True), "", ""),
    ],
)
def test_run_says_of_a_plan_and_a_policy_whether_they_count(
    bundle_path: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    battery: Battery | None,
    plan: str,
    policy: str,
) -> None:
    monkeypatch.setattr("selector.adapt.battery_reader.BatteryReader.latest", lambda _: battery)
    (tmp_path / "policy.json").write_text(json.dumps({"levels": [{"below_percent": 40}]}))
    given = {"--plan": (["--plan", "per_hour=600", "--plan", "for_hours=2"], plan)}
    given["--policy"] = (["--policy", str(tmp_path / "policy.json")], policy)
    for name, (options, said) in given.items():
        result = call("run", bundle_path, "--input", images, *options)
        assert result.exit_code == 0
        assert (f"note: {name} changes nothing" in result.stderr, said in result.stderr) == (bool(said), True)


def test_energies_that_are_not_known_come_with_how_to_get_them(bundle_path: Path) -> None:
    for options, code in ((["--energy-mj", "5"], 3), (["--objective", "energy"], 0)):
        result = call("select", bundle_path, *options)
        assert result.exit_code == code
        assert "sortednet profile --watts WATTS" in result.stdout


def test_a_picture_where_arrays_are_wanted_is_called_so(bundle_path: Path, tmp_path: Path) -> None:
    for name, content, what in (("a.png", PNG, "picture"), ("x.npz", PNG, "picture"), ("x.npy", b"text", "does not begin as")):
        (tmp_path / name).write_bytes(content)
        for arguments in (["run", bundle_path, "--input"], ["cascade", bundle_path, "--floor", "0.5", "--data"]):
            if arguments[0] == "run" or name.endswith("npz"):
                line = refused(*arguments, tmp_path / name)
                assert what in line
                assert "pickle" not in line


def test_tables_are_never_cut_off(with_cascade: tuple[Bundle, Cascade], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    bundle, cascade = with_cascade
    shown = call("inspect", bundle.path).stdout
    assert "…" not in shown
    assert cascade.id in shown
    (first, *_) = bundle.submodels.values()
    row = next(line for line in shown.splitlines() if line.split()[:1] == [first.id])
    assert f"{first.quality:.4f}" in row


def test_ctrl_c_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @console.guard
    def train() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts beside others ignores it
    try:
        with pytest.raises(console.typer.Exit) as left:
            train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.exit_code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: interrupted; the same command with --resume goes on from the last checkpoint"


def test_the_document_stays_alone_on_stdout_where_something_is_noted(bundle_path: Path) -> None:
    assert document("select", bundle_path, "--battery", "15")["feasible"]
