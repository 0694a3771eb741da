"""`ModelCache`: the same numbers from optimized copies, whatever happens to their folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import selector.run.cache
from exporter.bundle import Bundle, BundleError
from exporter.bundle.session import SessionOptions, open_session, run_session
from selector.run.cache import MODEL, WEIGHTS, ModelCache, default_folder

Opener = Callable[..., ort.InferenceSession]


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sub-models that the bundle's own graph was opened for."""
    found = []
    real = selector.run.cache.open_session

    def spied(graph: Path, *args: object, **kwargs: object) -> ort.InferenceSession:
        if not kwargs.get("optimized"):
            found.append(Path(graph).stem)
        return real(graph, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(selector.run.cache, "open_session", spied)
    return found


def same_numbers(session: ort.InferenceSession, bundle: Bundle, submodel: str) -> bool:
    inputs = bundle.selftest_inputs
    plain = run_session(open_session(bundle.graph_path(submodel)), inputs)
    found = run_session(session, inputs)
    return all(np.allclose(found[name], plain[name], rtol=1e-5, atol=1e-6) for name in plain)


def entries(cache: ModelCache) -> list[Path]:
    return sorted(path for path in cache.folder.iterdir())


def test_a_copy_is_made_once_and_gives_the_same_numbers(bundle: Bundle, cache: ModelCache, made: list[str]) -> None:
    for _ in range(3):
        for submodel in bundle.submodels:
            assert same_numbers(cache.open_session(bundle, submodel, SessionOptions(threads=1)), bundle, submodel)
    assert made == list(bundle.submodels)
    assert len(entries(cache)) == len(bundle.submodels)
    assert cache.bytes_used() == sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())
    cache.clear()
    assert entries(cache) == []
    with pytest.raises(BundleError, match="'huge' is not in this bundle"):
        cache.open_session(bundle, "huge")


@pytest.mark.parametrize("what", ["onnxruntime", "cpu", "features", "graph", "weights"])
def test_another_version_processor_or_bundle_has_copies_of_its_own(
    what: str, bundle_path: Path, tmp_path: Path, cache: ModelCache, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "digits"))
    name = next(iter(bundle.submodels))
    cache.open_session(bundle, name)
    if what == "onnxruntime":
        monkeypatch.setattr(ort, "__version__", "99.0")
    elif what in ("cpu", "features"):
        monkeypatch.setattr(selector.run.cache, {"cpu": "cpu_model", "features": "cpu_features"}[what], lambda: "another")
    else:
        file = bundle.submodels[name].graph if what == "graph" else bundle.manifest.weights
        path = bundle.path / file
        path.write_bytes(path.read_bytes() + (b"\x32\x01x" if what == "graph" else b"\0"))  # a description; bytes of no tensor
        content = path.read_bytes()
        entry = bundle.manifest.files[file].model_copy(
            update={"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        )
        files = {**bundle.manifest.files, file: entry}
        bundle.manifest = bundle.manifest.model_copy(update={"files": files})
    cache.open_session(bundle, name)
    assert made == [name, name]
    assert len(entries(cache)) == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("file", [MODEL, WEIGHTS, "seal.json"])
@pytest.mark.parametrize(
    "damage",
    [flip, lambda p: p.write_bytes(p.read_bytes()[:100]), Path.unlink, lambda p: p.write_bytes(b"")],
    ids=["flipped", "truncated", "missing", "empty"],
)
def test_a_damaged_copy_is_made_again(
    file: str, damage: Callable[[Path], None], bundle: Bundle, cache: ModelCache, made: list[str]
) -> None:
    name = next(iter(bundle.submodels))
    cache.open_session(bundle, name)
    (entry,) = entries(cache)
    damage(entry / file)
    for _ in range(2):
        assert same_numbers(cache.open_session(bundle, name), bundle, name)
    assert made == [name, name]
    assert entries(cache) == [entry]


def test_the_least_recently_used_go_first(bundle: Bundle, cache: ModelCache, made: list[str]) -> None:
    first, second, third, *_ = sorted(bundle.submodels, key=lambda name: bundle.submodels[name].params, reverse=True)
    for name in (first, second):
        cache.open_session(bundle, name)
        time.sleep(0.02)
    cache.open_session(bundle, first)
    cache.max_bytes = cache.bytes_used()
    cache.open_session(bundle, third)
    assert cache.bytes_used() <= cache.max_bytes
    made.clear()
    for name in (first, third):
        cache.open_session(bundle, name)
    assert made == []
    cache.open_session(bundle, second)
    assert made == [second]


def test_a_bound_that_nothing_fits_keeps_the_newest_alone(bundle: Bundle, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, max_bytes=0)
    for name in bundle.submodels:
        assert same_numbers(cache.open_session(bundle, name), bundle, name)
        assert len(entries(cache)) == 1
    with pytest.raises(ValueError, match="max_bytes = -1"):
        ModelCache(tmp_path, max_bytes=-1)


def test_what_others_keep_in_the_folder_stays(bundle: Bundle, tmp_path: Path) -> None:
    others = [".my-project/src/main.py", "photos/a.jpg", "0" * 32 + "/mine.txt", ".partial-copy/film.mp4", "notes-old.txt"]
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        os.utime((tmp_path / name).parent, (0, 0))
    cache = ModelCache(tmp_path, max_bytes=0)
    for name in bundle.submodels:
        cache.open_session(bundle, name)
    cache.clear()
    assert cache.bytes_used() == 0
    assert [(tmp_path / name).read_text() for name in others] == others


def test_no_copy_is_made_of_a_bundle_that_was_put_in_the_place_of_this_one(
    bundle_path: Path, tmp_path: Path, cache: ModelCache
) -> None:
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "digits"))
    name = next(iter(bundle.submodels))
    weights = bundle.path / bundle.manifest.weights
    shutil.copy(weights, weights.with_name("before"))
    weights.write_bytes(bytes(len(weights.read_bytes())))
    with pytest.raises(BundleError, match=r"weights\.bin: its content differs"):
        cache.open_session(bundle, name)
    assert entries(cache) == []
    weights.with_name("before").replace(weights)
    assert same_numbers(cache.open_session(bundle, name), bundle, name)
    assert len(entries(cache)) == 1


def test_a_folder_that_cannot_be_written_to(
    bundle: Bundle, tmp_path: Path, made: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = ModelCache(tmp_path / "file" / "cache")
    name = next(iter(bundle.submodels))
    for _ in range(3):
        assert same_numbers(cache.open_session(bundle, name), bundle, name)
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [f"{name} is opened without a cached copy"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_but_filled(bundle: Bundle, cache: ModelCache, made: list[str]) -> None:
    name, other, *_ = bundle.submodels
    cache.open_session(bundle, name)
    cache.folder.chmod(0o500)
    try:
        assert same_numbers(cache.open_session(bundle, name), bundle, name)
        assert same_numbers(cache.open_session(bundle, other), bundle, other)
    finally:
        cache.folder.chmod(0o700)
    assert len(entries(cache)) == 1


def test_a_read_only_file_system(bundle: Bundle, cache: ModelCache, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Root can write to a folder without permission, so the system's answer is put in here."""
    name, other, *_ = bundle.submodels
    cache.open_session(bundle, name)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for function in ("utime", "mkdir", "rename"):
        monkeypatch.setattr(os, function, refuse)
    made.clear()
    for _ in range(2):
        assert same_numbers(cache.open_session(bundle, name), bundle, name)
    assert made == []  # the copy that is there is used
    assert same_numbers(cache.open_session(bundle, other), bundle, other)


FILLED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails as on a full disk
from exporter.bundle import Bundle
from selector.run.cache import ModelCache
from exporter.bundle.session import run_session
bundle = Bundle(sys.argv[1])
cache = ModelCache(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for name in bundle.submodels:
    run_session(cache.open_session(bundle, name), bundle.selftest_inputs)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of a process are POSIX")
def test_a_full_disk(bundle: Bundle, cache: ModelCache, made: list[str]) -> None:
    subprocess.run([sys.executable, "-c", FILLED, str(bundle.path), str(cache.folder)], check=True)
    assert entries(cache) == []
    name = next(iter(bundle.submodels))
    assert same_numbers(cache.open_session(bundle, name), bundle, name)
    assert len(entries(cache)) == 1


PROCESS = """
import sys, time
from exporter.bundle import Bundle
from selector.run.cache import ModelCache
from exporter.bundle.session import run_session
bundle = Bundle(sys.argv[1])
cache = ModelCache(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for name in bundle.submodels:
    run_session(cache.open_session(bundle, name), bundle.selftest_inputs)
    print(name, flush=True)
    time.sleep(float(sys.argv[3]))
assert not cache._failed, cache._failed
"""


def started(bundle: Bundle, cache: ModelCache, pause: float = 0.0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROCESS, str(bundle.path), str(cache.folder), str(pause)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_fill_it_together(bundle: Bundle, cache: ModelCache, made: list[str]) -> None:
    processes = [started(bundle, cache) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(entries(cache)) == len(bundle.submodels)
    for name in bundle.submodels:
        assert same_numbers(cache.open_session(bundle, name), bundle, name)
    assert made == []


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_a_kill_at_any_moment_leaves_whole_copies(bundle: Bundle, cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        process = started(bundle, cache)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(0.01 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for name in bundle.submodels:
            assert same_numbers(cache.open_session(bundle, name), bundle, name)
        cache.clear()
    # What is killed in the middle of a write leaves a folder behind, which goes when it has become old.
    (cache.folder / ".partial-dead").mkdir(parents=True)
    monkeypatch.setattr(selector.run.cache, "_ABANDONED_SECONDS", -1.0)
    cache.open_session(bundle, next(iter(bundle.submodels)))
    assert [path for path in entries(cache) if path.name.startswith(".")] == []


def test_a_copy_that_computes_something_else_is_not_used(
    bundle: Bundle, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = next(iter(bundle.submodels))
    monkeypatch.setattr(selector.run.cache, "relative_error", lambda a, b: 0.5)
    assert same_numbers(cache.open_session(bundle, name), bundle, name)
    assert entries(cache) == []
    assert "computes something else" in caplog.text


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SORTEDNET_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    monkeypatch.delenv("SORTEDNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "sortednet" in default_folder().parts
