"""The command line: its frozen surface, its JSON documents, its exit codes, and errors of one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_profiles import write_profile
from exporter.bundle import Bundle
from exporter.bundle.manifest import sealed
from tests.conftest import DEVICE
from tests.helpers.commands import SELECTION, call, commands, document, refused

BUDGET = {"--latency-ms", "--energy-mj", "--memory-mb", "--min-quality", "--min-accuracy", "--percentile", "--objective"}
TRUST = {"--key", "--identity", "--issuer"}
TOKENS = {"--token-ms", "--ms-per-token", "--first-token-ms", "--prompt-tokens", "--context"}

# What scripts rely on (CONTRACT.md). Nothing leaves this table without a note in CHANGELOG.md.
CONTRACT: dict[str, set[str]] = {
    "train": {"--family", "--data", "--out", "--update", "--samples-per-step", "--epochs", "--batch-size", "--lr", "--seed"}
    | {"--resume", "--grid", "--init", "--threads", "--json", "--set", "--task", "--accelerator", "--precision"},
    "export": {"--out", "--int8", "--int8-range", "--submodels", "--json"},
    "inspect": {"--json"},
    "verify": {"--json"},
    "profile": {"--device", "--threads", "--submodels", "--measure", "--repeats", "--json"},
    "select": {"--device", "--battery", "--discharging", "--json"} | BUDGET,
    "run": {"--input", "--output", "--json"} | BUDGET,
    "generate": {"--prompt", "--chat", "--ms-per-token", "--first-token-ms", "--json"},
    "serve": {"--host", "--port"},
    "report": {"--out"},
}
# What there is: a name that is new here is a promise, so that it is added with intent.
SURFACE: dict[str, set[str]] = CONTRACT | {
    "train": CONTRACT["train"]
    | {"--optimizer", "--workers", "--task-set", "--data-option", "--deterministic"}
    | {"--guard", "--may-lose", "--micro-batches", "--recompute"}
    | {
        "--from",
        "--teacher",
        "--teacher-share",
        "--teacher-hidden",
        "--temperature",
        "--sort",
        "--expect-quality",
        "--layer-decay",
        "--teacher-views",
    },
    "export": CONTRACT["export"]
    | {"--data", "--canary", "--overwrite", "--precisions", "--segments", "--head-bits", "--quality-tokens"}
    | {"--genai", "--format", "--speculation", "--exits", "--exit-tokens"},
    "inspect": CONTRACT["inspect"] | {"--device", "--length"},
    "verify": CONTRACT["verify"] | {"--accept"} | TRUST,
    "sign": {"--key", "--sigstore", "--identity-token", "--version", "--json"},
    "profile": CONTRACT["profile"]
    | {"--label", "--watts", "--provider", "--spinning", "--cache", "--overwrite", "--lengths"}
    | {"--prompts", "--contexts", "--sustain"},
    "select": CONTRACT["select"] | {"--policy", "--cascades", "--length", "--sustained"} | TOKENS,
    "run": CONTRACT["run"]
    | {
        "--text",
        "--text-pair",
        "--device",
        "--cache",
        "--plan",
        "--policy",
        "--watch",
        "--rate",
        "--seconds",
        "--feedback",
        "--cascades",
        "--spinning",
        "--overwrite",
        "--sustained",
    },
    "generate": CONTRACT["generate"]
    | {"--token-ms"}
    | {"--system", "--max-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--repetition-penalty", "--seed", "--stop"}
    | {"--ignore-eos", "--energy-mj", "--memory-mb", "--min-quality", "--percentile", "--objective", "--device", "--threads"}
    | {"--battery", "--policy", "--feedback", "--spinning", "--watch", "--speculative", "--early-exit", "--sustained"},
    "cascade": {"--data", "--floor", "--confidence", "--device", "--overwrite", "--json"},
    "pull": {"--out", "--bundle", "--device", "--submodels", "--timeout", "--overwrite", "--json", "--length"}
    | BUDGET
    | TOKENS
    | TRUST
    | {"--trial", "--older", "--keep", "--token"},
    "versions": {"--json"},
    "rollback": {"--json"},
    "report": CONTRACT["report"] | {"--device", "--overwrite"},
    "serve": CONTRACT["serve"]
    | {"--store", "--workers", "--threads", "--graceful-timeout", "--cors-origin", "--predict", "--max-batch", "--spinning"}
    | {"--allowed-host", "--keep-versions", "--generate", "--max-tokens", "--memory-mb", "--keys", "--rate"}
    | {"--tls-cert", "--tls-key", "--onnxruntime-web", "--canary", "--canary-rule", "--waiting"}
    | TRUST,
    "token create": {"--scope", "--bundle", "--device", "--days", "--store", "--json"},
    "token list": {"--store", "--json"},
    "token revoke": {"--store", "--json"},
}
HEAVY = {"torch", "onnx", "onnxruntime", "flask", "plotly", "jinja2", "sklearn", "numpy"}


def options() -> dict[str, set[str]]:
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in commands().items()
    }


def test_the_commands_and_options_are_exactly_those_that_were_decided() -> None:
    assert options() == SURFACE


@pytest.mark.parametrize("command", CONTRACT)
def test_every_option_of_the_contract_is_there(command: str) -> None:
    assert options()[command] >= CONTRACT[command]


@pytest.mark.parametrize("command", SURFACE)
def test_every_command_has_help(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert commands()[command].help.split(".")[0].split()[0] in result.stdout
    assert "--help" in result.stdout


def test_documents_have_the_keys_of_the_contract(copied: Path, images: Path) -> None:
    inspected = document("inspect", copied)
    assert set(inspected) >= {"format_version", "family", "axes", "bytes_total", "weights_bytes", "submodels"}
    assert inspected["task"] == {"kind": "classification", "metric": "accuracy", "labels": []}
    keys = {"id", "axes", "params", "macs", "quality", "metrics", "accuracy", "graph", "precision"}
    assert all(set(entry) >= keys and (copied / entry["graph"]).is_file() for entry in inspected["submodels"])

    assert all(entry["bytes"] == (copied / entry["graph"]).stat().st_size for entry in inspected["submodels"])

    one = inspected["submodels"][0]["id"]
    profile = document("profile", copied, "--device", "mine", "--submodels", one, "--repeats", "2", "--threads", "1")
    assert set(profile) >= {"device", "bundle", "measured_at", "submodels"}
    device = {"name", "cpu", "cores", "threads", "ram_mb", "os", "onnxruntime", "execution_provider"}
    assert set(profile["device"]) >= device
    assert (profile["device"]["name"], profile["device"]["threads"], list(profile["submodels"])) == ("mine", 1, [one])
    assert set(profile["submodels"][one]) >= {"latency_ms", "load_ms", "memory_mb", "energy_mj", "source"}
    assert set(profile["submodels"][one]["latency_ms"]) >= {"p50", "p90", "p99", "mean", "n"}
    assert json.loads((copied / "profiles" / "mine.json").read_text()) == profile

    chosen = document("select", copied, "--device", "mine")
    assert list(chosen) == [*SELECTION, "stages", "threshold"]
    assert (chosen["metric"], chosen["quality"]) == ("accuracy", chosen["accuracy"])
    assert (chosen["submodel"], chosen["device"]) == (one, "mine")

    ran = document("run", copied, "--device", "mine", "--input", images)
    assert set(ran) >= {"submodel", "latency_ms", "outputs"}
    assert (ran["submodel"], np.shape(ran["outputs"]["logits"])) == (one, (2, 10))

    verified = document("verify", copied)
    assert (verified["ok"], verified["submodels"]) == (True, len(inspected["submodels"]))


def test_nothing_fits_exits_with_3_and_names_the_nearest(bundle_path: Path, images: Path) -> None:
    limit = ("--latency-ms", "1e-6")
    assert document("select", bundle_path, *limit, code=3)["feasible"] is False
    assert document("run", bundle_path, "--input", images, *limit, code=3)["outputs"]["logits"]
    for result in (call("select", bundle_path, *limit), call("run", bundle_path, "--input", images, *limit)):
        assert result.exit_code == 3
        assert "nothing fits" in result.stdout


def test_for_people_every_submodel_is_shown_with_what_it_costs(bundle_path: Path) -> None:
    shown = call("inspect", bundle_path).stdout
    assert all(name in shown for name in [*Bundle(bundle_path).submodels, DEVICE])
    assert call("verify", bundle_path).exit_code == 0


def test_inspect_works_whatever_profiles_there_are(copied: Path) -> None:
    profile = Bundle(copied).profile(DEVICE)
    phone = profile.device.model_copy(update={"name": "phone"})
    write_profile(profile.model_copy(update={"device": phone}), copied / "profiles" / "phone.json")
    result = call("inspect", copied)
    assert (result.exit_code, result.stderr) == (0, "")
    assert all(name in result.stdout for name in Bundle(copied).submodels)


def test_inspect_works_beside_a_profile_of_another_bundle(copied: Path) -> None:
    profile = Bundle(copied).profile(DEVICE).model_copy(update={"bundle": "0" * 64})
    write_profile(profile, copied / "profiles" / f"{DEVICE}.json")
    result = call("inspect", copied)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(("params", "shown"), [(999, "999"), (1000, "1 k"), (693_200, "693 k"), (999_999, "1 M")])
def test_large_numbers_are_shown_short(copied: Path, params: int, shown: str) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["submodels"][0]["params"] = params
    (copied / "manifest.json").write_text(json.dumps(sealed(manifest)))
    shutil.rmtree(copied / "profiles")
    row = next(line for line in call("inspect", copied).stdout.splitlines() if manifest["submodels"][0]["id"] in line)
    assert f" {shown} " in row


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["select"],
        ["select", "BUNDLE", "--latency-ms", "fast"],
        ["select", "BUNDLE", "--no-such-option"],
        ["profile", "BUNDLE", "--repeats", "0"],
        ["profile", "BUNDLE", "--threads", "0"],
        ["run", "BUNDLE"],
        ["serve", "BUNDLE", "--port", "70000"],
    ],
)
def test_wrong_usage_exits_with_2(bundle_path: Path, arguments: list[str]) -> None:
    assert call(*(bundle_path if a == "BUNDLE" else a for a in arguments)).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["select", "BUNDLE", "--latency-ms", "-1"], ["latency_ms", "-1.0", "greater than 0"]),
        (["select", "BUNDLE", "--latency-ms", "nan"], ["latency_ms", "nan", "finite"]),
        (["select", "BUNDLE", "--min-accuracy", "96"], ["min_accuracy", "96", "less than or equal to 1"]),
        (["select", "BUNDLE", "--min-quality", "-1"], ["min_quality", "-1", "greater than or equal to 0"]),
        (
            ["select", "BUNDLE", "--min-quality", "0.5", "--min-accuracy", "0.5"],
            ["min_quality and min_accuracy", "one of the two"],
        ),
        (["select", "BUNDLE", "--percentile", "99.9"], ["percentile", "99.9"]),
        (["select", "BUNDLE", "--objective", "speed"], ["objective", "'speed'", "accuracy", "energy", "latency"]),
        (["select", "BUNDLE", "--battery", "101"], ["battery", "101", "0 to 100"]),
        (["select", "BUNDLE", "--discharging"], ["--battery PERCENT"]),
        (["select", "BUNDLE", "--device", "phone"], ["'phone'", DEVICE, "sortednet profile"]),
        (["select", "/no/bundle"], ["/no/bundle", "manifest.json"]),
        (["profile", "BUNDLE", "--submodels", "w9"], ["'w9'", "w0.50-d1"]),
        (["profile", "BUNDLE", "--device", "../up"], ["'../up'", "1 to 128 of A-Z a-z 0-9 . _ -"]),
        (["run", "BUNDLE", "--input", "/no/file.npy"], ["/no/file.npy"]),
        (["run", "BUNDLE", "--input", "/"], ["'/'"]),
        (["report", "BUNDLE", "--out", "/no/folder/x.html"], ["/no/folder/x.html"]),
    ],
)
def test_an_expected_error_is_one_line_naming_the_value(bundle_path: Path, arguments: list[str], named: list[str]) -> None:
    line = refused(*(bundle_path if a == "BUNDLE" else a for a in arguments))
    assert [part for part in named if part not in line] == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["models/weights.bin", "models/w0.75-d1.onnx", "selftest.npz", "manifest.json"])
def test_a_damaged_file_is_named_by_every_command(
    copied: Path, images: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(copied / name)
    assert name in refused("verify", copied, code=1)
    assert name in document("verify", copied, code=1)["error"]
    others = (["inspect"], ["select"], ["profile"], ["serve"], ["run", "--input", images], ["report", "--out", "x.html"])
    for command, *rest in others:
        assert name in refused(command, copied, *rest)


def test_an_altered_figure_in_the_manifest_is_noticed(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["submodels"][0]["quality"] = 1.0
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json: was altered" in refused("select", copied)


def test_a_profile_that_cannot_be_kept_is_an_error(copied: Path) -> None:
    shutil.rmtree(copied / "profiles")
    (copied / "profiles").write_text("a file where the folder should be, as good as a read-only disk")  # root writes to those
    result = call("profile", copied, "--repeats", "1", "--submodels", "w0.50-d1")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")  # after the progress bar
    assert "profiles" in result.stderr.splitlines()[-1]


def test_run_reads_npy_and_npz_and_writes_npz(bundle_path: Path, images: Path, tmp_path: Path) -> None:
    named, out = tmp_path / "images.npz", tmp_path / "out.npz"
    np.savez_compressed(named, input=np.load(images))
    outputs = []
    for path in (images, named):
        printed = document("run", bundle_path, "--input", path, "--output", out)["outputs"]["logits"]
        with np.load(out) as written:
            outputs.append(written["logits"])
        np.testing.assert_array_equal(outputs[-1], np.array(printed, np.float32))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert "/no/out.npz" in refused("run", bundle_path, "--input", images, "--output", "/no/out.npz")


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.array([{"a": 1}], dtype=object), "pickle"),
        (np.zeros((2, 1, 7, 8), np.float32), "(2, 1, 7, 8)"),
        (np.zeros((2, 1, 8, 8), np.float64), "float64"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), "NaN"),
    ],
    ids=["pickled", "shape", "float64", "nan"],
)
def test_run_refuses_an_array_that_is_no_input(bundle_path: Path, tmp_path: Path, array: Any, named: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    assert named in refused("run", bundle_path, "--input", tmp_path / "x.npy")


def test_importing_the_command_line_is_light() -> None:
    code = "import sys, sortednet; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert set(loaded.split()) & HEAVY == set()


@pytest.mark.parametrize("options", [["--help"], ["select", "/no/bundle"]])
def test_the_module_and_the_console_script_are_one(options: list[str]) -> None:
    script = str(Path(sys.executable).with_name("sortednet"))
    runs = [
        subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        for command in ([sys.executable, "-m", "sortednet"], [script])
    ]
    assert runs[0].returncode == runs[1].returncode == (0 if options == ["--help"] else 2)
    assert (runs[0].stdout, runs[0].stderr) == (runs[1].stdout, runs[1].stderr)
    assert "Traceback" not in runs[0].stderr


def test_a_plan_on_the_command_line(bundle_path: Path, images: Path) -> None:
    plan = ["--plan", "per_hour=600", "--plan", "until=18:00"]
    assert document("run", bundle_path, "--input", images, *plan)["feasible"]
    assert "plan = 'per_hour'" in refused("run", bundle_path, "--input", images, "--plan", "per_hour")
    assert "needed is one of until and for_hours" in refused("run", bundle_path, "--input", images, "--plan", "per_hour=600")
