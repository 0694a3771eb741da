"""`ModelCache`: optimized copies of the graphs that this device has used.

ONNX Runtime optimizes a graph when it opens it, which takes several times as long as the rest and leaves a private copy of
the weights. What it has made of a graph is therefore kept: later it is opened as it is, with its weights memory-mapped, so
that they are shared by all processes and sessions.

folder/
  <key>/model.onnx, model.bin   the optimized graph and its weights
  <key>/seal.json               size and times of the two, by which a damaged copy is noticed
  .partial-*, .trash-*          being written, being deleted

The key is a hash of all that the copy depends on: ONNX Runtime's version, the processor, the graph and the weights. An entry
appears by one rename, whole or not at all; it is never changed, only replaced. Whatever goes wrong with the cache, a session
is opened from the bundle instead. What else lies in the folder is left alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import onnxruntime as ort

from device_profiles.host import cache_folder, cpu_features, cpu_model
from exporter.bundle import Bundle, BundleError
from exporter.bundle.session import CPU, SessionError, SessionOptions, open_session, relative_error, run_session

log = logging.getLogger("sortednet.cache")

MAX_BYTES = 512 * 2**20
FOLDER_VARIABLE = "SORTEDNET_CACHE"
_FORMAT = 1
MODEL, WEIGHTS, _SEAL = "model.onnx", "model.bin", "seal.json"
_ENTRY = re.compile(r"[0-9a-f]{32}")
_LEFTOVER = re.compile(r"\.partial-\w+|\.trash-[0-9a-f]{32}-\d+-\d+")
_ABANDONED_SECONDS = 600.0
_SAME = 1e-5  # relative; on the CPUs that were tried the outputs of a copy are equal to the bit


def default_folder() -> Path | None:
    """What the environment variable SORTEDNET_CACHE says, or a folder in the user's caches; None where there are none."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    caches = cache_folder()
    return None if caches is None else caches / "models"


class ModelCache:
    """A folder of optimized copies, at most `max_bytes` of them; the least recently used go first.

    Any number of processes may use the same folder at once. Nothing that goes wrong with it reaches the caller: a session
    is then opened from the bundle, and the log (`sortednet.cache`) says why. Raises ValueError for a negative `max_bytes`, and
    for a user without a home where no folder is named.
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes = {max_bytes}: allowed are whole numbers from 0")
        found = Path(folder) if folder is not None else default_folder()
        if found is None:
            raise ValueError(f"folder = None: this user has no home; name a folder here or in {FOLDER_VARIABLE}")
        self.folder = found
        self.max_bytes = max_bytes
        self._failed: set[Path] = set()

    def open_session(self, bundle: Bundle, submodel: str, options: SessionOptions | None = None) -> ort.InferenceSession:
        """A session from the sub-model's copy, which is made if there is none. Raises BundleError for an unknown id, and where
        what a copy is to be made of is not this bundle's: another one may have been put in its place."""
        chosen = options or SessionOptions()
        graph = bundle.graph_path(submodel)
        entry = self.folder / _key(bundle, submodel)
        if chosen.provider != CPU or entry in self._failed:  # what other providers compile cannot be saved as a graph
            return open_session(graph, chosen)
        for last in (False, True):  # between a look and the opening another process may have replaced or removed the copy
            try:
                if not _is_whole(entry):
                    self._make(bundle, submodel, entry)
                session = open_session(entry / MODEL, chosen, optimized=True)
            except (SessionError, BundleError):
                raise
            except Exception as error:  # ONNX Runtime has one exception type per status code
                if last:
                    log.warning("%s is opened without a cached copy: %s", submodel, error)
            else:
                with suppress(OSError):
                    os.utime(entry)
                return session
        self._failed.add(entry)
        return open_session(graph, chosen)

    def clear(self) -> None:
        """Removes every copy; sessions that are open stay valid."""
        for entry in self._entries():
            _remove(entry)

    def bytes_used(self) -> int:
        """Of all copies."""
        return sum(_size(entry) for entry in self._entries())

    def _make(self, bundle: Bundle, submodel: str, entry: Path) -> None:
        """Writes the copy beside its place, tries it on the self-test's inputs, then moves it there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=".partial-", dir=self.folder))
        try:
            plain = open_session(bundle.graph_path(submodel), save_optimized=partial / MODEL)
            bundle.verify_files(_sources(bundle, submodel))
            copy = open_session(partial / MODEL, optimized=True)
            inputs = bundle.selftest_inputs
            error = relative_error(run_session(copy, inputs), run_session(plain, inputs))
            if not error <= _SAME:
                raise RuntimeError(f"the optimized copy computes something else (relative error {error:.1e})")
            del copy
            _write_seal(partial)
            if not _is_whole(entry):
                _remove(entry)
            with suppress(OSError):  # another process was faster, and its copy is as good
                partial.rename(entry)
            self._make_room(entry)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self, newest: Path) -> None:
        """Down to `max_bytes`, which the newest alone may exceed; and what killed processes have left goes."""
        for leftover in self._ours(_LEFTOVER):
            with suppress(OSError):
                # Also one from the future: a clock was fast then.
                if abs(time.time() - leftover.stat().st_mtime) > _ABANDONED_SECONDS:
                    shutil.rmtree(leftover, ignore_errors=True)
        last_used = {}
        for entry in self._entries():
            with suppress(OSError):  # another process may be removing it
                last_used[entry] = entry.stat().st_mtime
        sizes = {entry: _size(entry) for entry in last_used}
        total = sum(sizes.values())
        for entry in sorted(last_used.keys() - {newest}, key=lambda e: last_used[e]):
            if total <= self.max_bytes:
                return
            _remove(entry)
            total -= sizes[entry]

    def _entries(self) -> list[Path]:
        return self._ours(_ENTRY)

    def _ours(self, names: re.Pattern[str]) -> list[Path]:
        """The folders of such names that hold what is written here and nothing else: the folder may be somebody's, who keeps
        other things there too."""
        found: list[Path] = []
        with suppress(OSError):
            for path in self.folder.iterdir():
                with suppress(OSError):  # a file, or another process may be removing it
                    if names.fullmatch(path.name) and {one.name for one in path.iterdir()} <= {MODEL, WEIGHTS, _SEAL}:
                        found.append(path)
        return found


def session_opener(
    bundle: Bundle, options: SessionOptions, cache: ModelCache | bool = True
) -> Callable[[str], ort.InferenceSession]:
    """How `Runtime` and `sortednet profile` open a sub-model. `cache`: True is the default one, if this user may have one,
    False none."""
    chosen = ModelCache() if cache is True and default_folder() is not None else cache
    if isinstance(chosen, ModelCache):
        return lambda submodel: chosen.open_session(bundle, submodel, options)
    return lambda submodel: open_session(bundle.graph_path(submodel), options)


def _key(bundle: Bundle, submodel: str) -> str:
    files = bundle.manifest.files
    hashes = [files[name].sha256 for name in _sources(bundle, submodel)]
    parts = [_FORMAT, ort.__version__, cpu_model(), cpu_features(), *hashes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _sources(bundle: Bundle, submodel: str) -> list[str]:
    """The files that a copy is made of."""
    return [bundle.submodel(submodel).graph, bundle.weights_path(submodel)]


def _write_seal(folder: Path) -> None:
    for name in (MODEL, WEIGHTS):
        if (folder / name).exists():  # of a graph without large initializers there are no weights
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
    (folder / _SEAL).write_text(json.dumps(_state(folder)), encoding="utf-8")


def _is_whole(entry: Path) -> bool:
    """Whether the files are as they were when the copy was made. Hashing them would take longer than opening them; a
    write by any program changes a file's times."""
    try:
        return bool(json.loads((entry / _SEAL).read_bytes()) == _state(entry))
    except (OSError, ValueError):
        return False


def _state(folder: Path) -> dict[str, list[int]]:
    stats = {name: (folder / name).stat() for name in (MODEL, WEIGHTS) if (folder / name).exists()}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}


def _size(entry: Path) -> int:
    total = 0
    with suppress(OSError):  # another process may be removing it
        total = sum(path.stat().st_size for path in entry.iterdir())
    return total


def _remove(entry: Path) -> None:
    """In one step for other processes: by a rename. Files that are mapped stay until they are closed."""
    trash = entry.with_name(f".trash-{entry.name}-{os.getpid()}-{threading.get_ident()}")
    with suppress(OSError):
        entry.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)
