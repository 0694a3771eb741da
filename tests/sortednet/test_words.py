"""What the command line says: its help, its notes on what has no effect, tables that hide nothing, an end by Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from device_profiles.schema import NAME_ALLOWED
from exporter.bundle import Bundle
from selector.choose.battery import Battery
from selector.choose.cascades import Cascade
from selector.run.results import RunResult
from sortednet import Runtime, console
from sortednet.commands import EXAMPLES
from tests.helpers.commands import call, commands, document, refused
from trainer.checkpoint import CHECKPOINT_FILE

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


def test_what_is_no_file_of_arrays_is_named_without_the_systems_numbers(bundle_path: Path, tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no.npy", "No such file or directory"), (tmp_path, "Is a directory")):
        assert refused("run", bundle_path, "--input", path) == f"error: input {str(path)!r}: cannot be read: {why}"


def test_a_rollback_that_is_refused_leaves_nothing(bundle_path: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(bundle_path, tmp_path / "mine"))
    assert "no version before this one is kept here" in refused("rollback", mine)
    assert "is no bundle" in refused("rollback", tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_limit_for_a_token_has_one_name_in_all_commands(bundle_path: Path) -> None:
    for name in ("--token-ms", "--ms-per-token"):
        assert "token_ms = -1" in refused("select", bundle_path, name, "-1")
        assert "generates no text" in refused("generate", bundle_path, "--prompt", "a", name, "1")


def test_a_working_directory_that_was_removed_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for arguments in (["inspect", "bundle"], ["verify", "bundle"]):
        assert "the working directory is not there any more" in refused(*arguments)


@pytest.mark.parametrize(("took", "said"), [(1e9, True), (0.0, False)])
def test_a_first_run_that_misses_its_deadline_is_explained(
    bundle_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, took: float, said: bool
) -> None:
    run = Runtime.run

    def slow(*given: Any, **named: Any) -> RunResult:
        return replace(run(*given, **named), latency_ms=took)

    monkeypatch.setattr(Runtime, "run", slow)
    result = call("run", bundle_path, "--input", images, "--latency-ms", "1000")
    assert result.exit_code == 0
    assert ("longer than the 1000 ms" in result.stderr, "--watch shows" in result.stderr) == (said, said)


def test_a_run_where_a_bundle_is_wanted_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert f"it is a run; make one of it with `sortednet export {tmp_path}`" in refused("profile", tmp_path)
    assert "is a run" not in refused("profile", tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["profile", "--threads", "0"], "Input should be greater than or equal to 1; it is '0'"),
        (["select", "--latency-ms", "five"], "unable to parse string as a number; it is 'five'"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_shown(bundle_path: Path, arguments: list[str], said: str) -> None:
    result = call(arguments[0], bundle_path, *arguments[1:])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_device_whose_name_is_none_is_told_what_names_are_made_of(bundle_path: Path) -> None:
    line = refused("profile", bundle_path, "--device", "my phone")
    assert line == "error: name = 'my phone': " + NAME_ALLOWED


def test_a_moment_that_is_none_is_shown_once_and_what_is_allowed_as_it_is_written(bundle_path: Path, images: Path) -> None:
    line = refused("run", bundle_path, "--input", images, "--plan", "until=25:00")
    assert line.startswith("error: budget: plan.until = '25:00': allowed are a time of day such as 18:00")
    assert line.endswith("2026-11-26T18:00+01:00")


def test_a_field_that_a_policy_does_not_have_comes_with_those_that_it_has(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"level": []}')
    line = refused("select", bundle_path, "--battery", "10", "--policy", tmp_path / "policy.json")
    assert f"policy {str(tmp_path / 'policy.json')!r}: level = []: there is no such field; allowed are " in line
    assert "levels" in line


def test_on_a_terminal_an_error_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "messages", Console(file=screen, force_terminal=True, width=30, no_color=True))
    with pytest.raises(console.typer.Exit):
        console.fail("nothing here is a bundle, make one of it", 2)
    assert [line.rstrip() for line in screen.getvalue().splitlines()] == ["error: nothing here is a", "bundle, make one of it"]


def test_what_a_command_says_breaks_between_words_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    for terminal, lines in ((False, ["the smallest is chosen"]), (True, ["the smallest is", "chosen"])):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        console.say("the smallest is chosen")
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == lines


def test_tables_are_never_cut_off(with_cascade: tuple[Bundle, Cascade], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    bundle, cascade = with_cascade
    shown = call("inspect", bundle.path).stdout
    assert "…" not in shown
    assert cascade.id in shown
    (first, *_) = bundle.submodels.values()
    row = next(line for line in shown.splitlines() if line.split()[:1] == [first.id])
    assert f"{first.quality:.4f}" in row


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([CHECKPOINT_FILE], "; the same command with --resume goes on from the last checkpoint"),
        (["run.json"], " before the first checkpoint; the same command begins again"),
        ([], " before the first checkpoint; the same command begins again"),
    ],
)
def test_ctrl_c_is_told_in_one_line(kept: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @console.guard
    def train(*, out: Path) -> None:
        for name in kept:
            (out / name).touch()
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts beside others ignores it
    try:
        with pytest.raises(console.typer.Exit) as left:
            train(out=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.exit_code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: interrupted{said}"


def test_ctrl_c_before_there_is_a_command_is_told_in_one_line() -> None:
    code = "import sys; sys.modules['sortednet.cli'] = None; import sortednet, builtins; real = builtins.__import__\n"
    code += "def stop(name, *more, **given):\n    if name == 'sortednet.cli': raise KeyboardInterrupt\n"
    code += "    return real(name, *more, **given)\nbuiltins.__import__ = stop; sortednet.main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "error: interrupted\n")


def test_the_document_stays_alone_on_stdout_where_something_is_noted(bundle_path: Path) -> None:
    assert document("select", bundle_path, "--battery", "15")["feasible"]
