"""`sortednet pull` against a real service, over a proxy that breaks and falsifies what goes through it."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sortednet
from device_profiles import read_profile, write_profile
from exporter import export
from exporter.bundle import Bundle, atomic
from exporter.bundle.verify import self_test
from exporter.subset import subset
from selector.choose.cascades import Cascade, read_cascades, write_cascades
from selector.fetch.transfer import Client, PullError
from tests.conftest import DEVICE
from tests.helpers.disks import read_only
from tests.helpers.proxy import Proxy, Request
from tests.helpers.pulls import SMALL, contents, files_asked, pulled
from tests.helpers.server import Server, serving
from trainer import NestedModel


def test_one_sub_model_is_the_subset_and_runs(server: Server, untrained_path: Path, tmp_path: Path) -> None:
    document = pulled(server.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    part = subset(Bundle(untrained_path), [SMALL], tmp_path / "part")
    shutil.rmtree(part.path / "profiles")
    (part.path / "written.json").unlink()  # which names the profile
    assert contents(tmp_path / "mine") == contents(part.path)
    assert (document["submodels"], document["changed"], document["fetched_files"]) == ([SMALL], True, 3)
    assert self_test(Bundle(tmp_path / "mine")).submodels == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "part"]  # nothing is left beside it


def test_without_a_choice_the_whole_bundle_comes(server: Server, untrained_path: Path, tmp_path: Path) -> None:
    pulled(f"{server.url}/v1/bundles/digits", "--out", tmp_path / "mine", "--device", DEVICE)
    mine, served = contents(tmp_path / "mine"), contents(untrained_path)
    assert list(json.loads(mine.pop("written.json"))["documents"]) == [f"profiles/{DEVICE}.json"]
    profiles = [json.loads(found.pop(f"profiles/{DEVICE}.json")) for found in (mine, served)]  # it is written anew
    assert mine == served
    assert profiles[0] == profiles[1]


def test_a_budget_fetches_what_select_chooses_and_the_profile(server: Server, untrained_path: Path, tmp_path: Path) -> None:
    budget = ("--latency-ms", "1000", "--objective", "latency")
    document = pulled(server.url, "--out", tmp_path / "mine", "--bundle", "digits", "--device", DEVICE, *budget)
    chosen = json.loads(CliRunner().invoke(sortednet.app, ["select", str(untrained_path), *budget, "--json"]).stdout)
    assert document["selection"] == chosen
    mine = Bundle(tmp_path / "mine")
    assert list(mine.submodels) == [chosen["submodel"]]
    assert mine.profile(DEVICE).submodels[chosen["submodel"]].latency_ms.p50 == chosen["latency_ms"]


def test_a_bundle_may_have_any_name(untrained_path: Path, tmp_path: Path) -> None:
    served = Path(shutil.copytree(untrained_path, tmp_path / "ein Modell; 模型?#%"))
    with serving(tmp_path / "log", served) as server:
        for arguments in ((), ("--submodels", SMALL)):
            document = pulled(server.url, "--out", tmp_path / "mine", *arguments)
            assert (document["bundle"], document["changed"]) == (served.name, True)


def test_nothing_fits_exits_with_3_and_fetches_nothing(server: Server, tmp_path: Path) -> None:
    assert "nothing fits" in pulled(server.url, "--out", tmp_path / "mine", "--latency-ms", "1e-6", code=3)
    assert list(tmp_path.iterdir()) == []


def test_a_second_pull_fetches_nothing(proxy: Proxy, tmp_path: Path) -> None:
    arguments = (proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, "--device", DEVICE)
    pulled(*arguments)
    before = {path: path.stat() for path in (tmp_path / "mine").rglob("*")}
    proxy.seen.clear()
    document = pulled(*arguments)
    assert (document["changed"], document["fetched_bytes"], files_asked(proxy)) == (False, 0, [])
    assert {path: path.stat() for path in (tmp_path / "mine").rglob("*")} == before


def test_an_update_fetches_only_what_changed(untrained: NestedModel, untrained_path: Path, tmp_path: Path) -> None:
    """One file of the bundle is another one now: a tokenizer."""
    served, log = tmp_path / "served", tmp_path / "log"
    one = untrained.submodels[:2]
    export(untrained, served, submodels=one, files={"tokenizer.json": b"{}", "words.txt": b"a b"}, show_progress=False)
    with serving(log, served) as server:
        pulled(server.url, "--out", tmp_path / "mine")
    export(untrained, served, submodels=one, files={"tokenizer.json": b"[1]", "words.txt": b"a b"}, show_progress=False)
    with serving(log, served) as server, Proxy(server.url) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        document = pulled(proxy.url, "--out", tmp_path / "mine")
        proxy.shutdown()
        changed = [name for name in files_asked(proxy) if name != "manifest.json"]
    new = Bundle(served).manifest.files
    assert "tokenizer.json" in changed
    assert "words.txt" not in changed
    assert "models/weights.bin" not in changed
    assert document["reused_files"] + document["fetched_files"] == len(new)
    assert document["fetched_bytes"] == sum(new[name].bytes for name in changed)
    assert contents(tmp_path / "mine") == contents(served)


def test_another_choice_keeps_what_is_common_and_what_was_measured_here(proxy: Proxy, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(proxy.url, "--out", mine, "--submodels", f"{SMALL},w0.75-d1", "--device", DEVICE)
    profile = Bundle(mine).profile(DEVICE)
    own = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "here"})})
    write_profile(own, mine / "profiles" / "here.json")
    pulled(proxy.url, "--out", mine, "--submodels", f"{SMALL},w1.00-d1")
    new = Bundle(mine)
    assert set(new.submodels) == {SMALL, "w1.00-d1"}
    assert new.devices() == sorted([DEVICE, "here"])
    assert new.profile("here").submodels == {SMALL: own.submodels[SMALL]}
    pulled(proxy.url, "--out", mine, "--submodels", SMALL, "--device", DEVICE)
    assert read_profile(mine / "profiles" / "here.json").bundle == Bundle(mine).fingerprint


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["ftp://host", "--out", "OUT"], 2, ["'ftp://host'", "http://"]),
        (["host:8080", "--out", "OUT"], 2, ["'host:8080'"]),
        (["http://host:port", "--out", "OUT"], 2, ["'http://host:port'"]),
        (["URL", "--out", "OUT", "--bundle", "nope"], 2, ["'nope'", "digits"]),
        (["URL", "--out", "OUT", "--submodels", "w9"], 2, ["'w9'", SMALL]),
        (["URL", "--out", "OUT", "--submodels", ""], 2, ["''", SMALL]),
        (["URL", "--out", "OUT", "--device", "phone"], 2, ["phone"]),
        (["URL", "--out", "OUT", "--device", "phone", "--latency-ms", "1"], 2, ["'phone'", DEVICE]),
        (["URL", "--out", "OUT", "--latency-ms", "-1"], 2, ["latency_ms", "-1"]),
        (["URL", "--out", "OUT", "--submodels", SMALL, "--latency-ms", "1"], 2, ["submodels", "latency_ms"]),
        (["URL/healthz", "--out", "OUT"], 2, ["/healthz: no sortednet service answers there; allowed is"]),
        (["http://127.0.0.1:9", "--out", "OUT"], 1, ["http://127.0.0.1:9/v1/bundles: Connection refused (6 tries)"]),
    ],
)
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(
    server: Server, tmp_path: Path, arguments: list[str], code: int, named: list[str]
) -> None:
    given = [a.replace("URL", server.url).replace("OUT", str(tmp_path / "mine")) for a in arguments]
    line = pulled(*given, code=code)
    assert [part for part in named if part not in line] == []
    assert list(tmp_path.iterdir()) == []


def test_what_the_service_says_is_said_once(server: Server) -> None:
    with pytest.raises(PullError, match="allowed are 1 to 128 of") as caught:
        Client(server.url).document("/v1/bundles/digits/profiles?after=my%20phone")
    assert str(caught.value).count("allowed are") == 1


def test_a_link_to_a_bundle_stays_one(server: Server, tmp_path: Path) -> None:
    pulled(server.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    (tmp_path / "link").symlink_to("mine")
    pulled(server.url, "--out", tmp_path / "link", "--submodels", "w0.75-d1")
    assert (tmp_path / "link").is_symlink()
    assert list(Bundle(tmp_path / "mine").submodels) == ["w0.75-d1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.versions", "link", "mine"]


def test_a_cascade_found_here_stays_while_its_sub_models_answer_as_before(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(server.url, "--out", mine, "--submodels", f"{SMALL},w1.00-d1")
    figures = {"threshold": 0.5, "escalation": 0.2, "accuracy": 0.9, "floor": 0.8, "confidence": 0.95, "examples": 100}
    cascade = Cascade(id="both", first=SMALL, then="w1.00-d1", **figures)
    write_cascades(Bundle(mine), [cascade])
    pulled(server.url, "--out", mine, "--submodels", f"{SMALL},w1.00-d1,w0.75-d2")
    assert read_cascades(Bundle(mine)) == [cascade]
    before = contents(mine)
    line = pulled(server.url, "--out", mine, "--submodels", SMALL, code=2)
    assert "would lose cascades.json" in line
    assert "--overwrite" in line
    assert contents(mine) == before
    assert pulled(server.url, "--out", mine, "--submodels", SMALL, "--overwrite")["lost"] == ["cascades.json"]
    assert read_cascades(Bundle(mine)) == []


def test_what_was_measured_here_goes_only_with_a_word(proxy: Proxy, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(proxy.url, "--out", mine, "--submodels", f"{SMALL},w0.75-d1", "--device", DEVICE)
    profile = Bundle(mine).profile(DEVICE)
    own = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "here"})})
    write_profile(own, mine / "profiles" / "here.json")
    proxy.seen.clear()
    line = pulled(proxy.url, "--out", mine, "--submodels", "w1.00-d1", "--device", DEVICE, code=2)
    assert "would lose profiles/here.json;" in line
    assert files_asked(proxy) == []  # it is told before anything is fetched
    assert read_profile(mine / "profiles" / "here.json") == own
    document = pulled(proxy.url, "--out", mine, "--submodels", f"{SMALL},w1.00-d1", "--device", DEVICE)
    assert document["lost"] == ["w0.75-d1 in profiles/here.json"]
    done = pulled(proxy.url, "--out", mine, "--submodels", "w1.00-d1", "--device", DEVICE, "--overwrite")
    assert done["lost"] == ["profiles/here.json"]
    assert Bundle(mine).devices() == [DEVICE]


def test_an_empty_volume_is_filled_in_place(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    monkeypatch.setattr(atomic, "is_mount", lambda path: path == volume)
    monkeypatch.setattr(atomic, "exchanged", lambda one, other: pytest.fail("a mount point was renamed"))
    inode = volume.stat().st_ino
    pulled(server.url, "--out", volume, "--submodels", SMALL)
    assert (list(Bundle(volume).submodels), volume.stat().st_ino) == ([SMALL], inode)
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]
    assert not [path for path in volume.iterdir() if path.name.startswith(".")]
    assert not pulled(server.url, "--out", volume, "--submodels", SMALL)["changed"]
    assert "is a mount point" in pulled(server.url, "--out", volume, "--submodels", "w0.75-d1", code=2)
    pulled(server.url, "--out", volume, "--submodels", "w0.75-d1", "--overwrite")
    assert (list(Bundle(volume).submodels), volume.stat().st_ino) == (["w0.75-d1"], inode)


def test_a_read_only_place_is_told_before_anything_is_fetched(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_only(monkeypatch, tmp_path)
    line = pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, code=2)
    assert "cannot be written: Read-only file system" in line
    assert [request.path for request in proxy.seen] == ["/v1/bundles"]


def test_a_folder_that_is_no_bundle_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    assert "is no bundle" in pulled(server.url, "--out", tmp_path, "--submodels", SMALL, code=2)
    assert contents(tmp_path) == {"letters.txt": b"dear"}


@pytest.mark.parametrize("name", ["index.html", ".git"])
def test_a_damaged_bundle_is_mended_unless_there_is_more(name: str, server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(server.url, "--out", mine, "--submodels", SMALL)
    (mine / "manifest.json").write_text("{")
    pulled(server.url, "--out", mine, "--submodels", SMALL)
    (mine / "manifest.json").write_text("{")
    (mine / name).write_text("mine")
    assert f"would lose {name}" in pulled(server.url, "--out", mine, "--submodels", SMALL, code=2)
    assert (mine / name).read_text() == "mine"
    (mine / "manifest.json").write_text('{"format_version": 99}')
    assert "format 99, newer than" in pulled(server.url, "--out", mine, "--submodels", SMALL, code=2)
    (mine / "manifest.json").write_text('{"name": "My app"}')
    assert "is no bundle" in pulled(server.url, "--out", mine, "--overwrite", code=2)
    assert (mine / name).read_text() == "mine"


def test_what_comes_there_during_a_pull_stays(proxy: Proxy, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(proxy.url, "--out", mine, "--submodels", SMALL)

    def meanwhile(request: Request, status: int, body: bytes) -> None:
        if ".onnx" in request.path:
            found = (mine / "manifest.json").read_text()
            (mine / "manifest.json").write_text(f"{found} ")

    proxy.fault = meanwhile
    assert "has changed while" in pulled(proxy.url, "--out", mine, "--submodels", "w1.00-d2", code=2)
    assert list(Bundle(mine).submodels) == [SMALL]


def test_too_small_a_disk_is_told_before_anything_is_fetched(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    line = pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, code=1)
    assert "10 are free" in line
    assert files_asked(proxy) == []
    assert list(tmp_path.iterdir()) == []


def test_for_people_it_says_what_to_do_next(server: Server, tmp_path: Path) -> None:
    arguments = ["pull", server.url, "--out", str(tmp_path / "mine"), "--submodels", SMALL]
    first, second = (CliRunner().invoke(sortednet.app, arguments) for _ in range(2))
    assert f"sortednet verify {tmp_path / 'mine'}" in first.stdout.replace("\n", "")
    assert "up to date" in second.stdout
