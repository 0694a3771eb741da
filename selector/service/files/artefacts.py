"""Files of a bundle over HTTP (RFC 9110): strong ETags, ranges, conditional requests, caching.

Nothing but what a manifest names, the manifest, its signature and the profiles can be reached: a path is looked up in that
list, never joined to a folder first, and every step from the bundle's folder to the file refuses links.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flask import Response, request

from exporter.bundle import MANIFEST_FILE, PROFILES_FOLDER, SIGNATURE_FILE, SIGNED_FILE, Bundle
from exporter.bundle.manifest import FileEntry
from selector.service.web.bodies import unwanted_because
from selector.service.web.problems import Problem, problem_details

_CHUNK = 256 * 1024
_MAX_UNLISTED = 64 * 2**20  # a manifest, a signed one or a profile: what is hashed is what is sent, so both are held in memory
_PROFILE = re.compile(rf"{PROFILES_FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}\.json")
_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)

_hashed: dict[tuple[Path, str], tuple[int, ...]] = {}
"""Files whose content was seen to be what the manifest says, and what their inode looked like then."""
_hashing = threading.Lock()


def file_answer(bundle: Bundle, path: str) -> Response:
    """The file, or what is asked of it; `?sha256=` says by its hash that no other content will do.

    Raises Problem 404 for a path that is no artefact and for other content than was asked for.
    """
    wanted = request.args.get("sha256")
    entry = bundle.manifest.files.get(path)
    file: BinaryIO
    if entry is not None:
        file = _listed(bundle, path, entry)
        digest, length = entry.sha256, entry.bytes
    elif path in (MANIFEST_FILE, SIGNED_FILE, SIGNATURE_FILE) or _PROFILE.fullmatch(path):
        content = _unlisted(bundle, path)
        file, length = io.BytesIO(content), len(content)
        digest = hashlib.sha256(content).hexdigest()
    else:
        raise _absent(bundle, path)
    if wanted is not None and wanted != digest:
        file.close()
        raise Problem(404, f"file {path!r} has other content now: sha256 {digest}")
    return _answer(file, digest, length, path, immutable=wanted is not None)


def blob_answer(bundle: Bundle, sha256: str) -> Response:
    """The file of that content. Raises Problem 404 when the bundle has none."""
    for path, entry in bundle.manifest.files.items():
        if entry.sha256 == sha256:
            return _answer(_listed(bundle, path, entry), sha256, entry.bytes, path, immutable=True)
    raise Problem(404, f"bundle {bundle.name!r} has no file with sha256 {sha256!r}")


def _answer(file: BinaryIO, digest: str, length: int, path: str, *, immutable: bool) -> Response:
    etag = f'"{digest}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "public, max-age=31536000, immutable" if immutable else "no-cache",
    }
    status, begin, end = _part(digest, length)
    if status == 206:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{length}"
    if status in (304, 412, 416):
        file.close()
        if status == 304:
            return Response(status=304, headers=headers)
        if status == 416:
            refused = problem_details(416, f"range {request.headers['Range']!r}: allowed is within {length} bytes", {})
            refused.headers["Content-Range"] = f"bytes */{length}"
            return refused
        raise Problem(412, f"file {path!r} has the ETag {etag}")
    kind = "application/json" if path.endswith(".json") else "application/octet-stream"
    response = Response(_chunks(file, begin, end), status=status, mimetype=kind, headers=headers)
    response.content_length = end - begin
    response.call_on_close(file.close)
    return response


def _part(digest: str, length: int) -> tuple[int, int, int]:
    """The status, and which bytes: from the first to before the last. In the order of RFC 9110, section 13.2.2."""
    unwanted = unwanted_because(digest)
    if unwanted is not None:
        return unwanted, 0, 0
    wanted = _ONE_RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    if request.method != "GET" or wanted is None:
        return 200, 0, length  # several ranges, and what is no range, are answered with the whole
    if "If-Range" in request.headers and request.headers["If-Range"] != f'"{digest}"':
        return 200, 0, length
    first, last = wanted.groups()
    if first and last and int(last) < int(first):
        return 200, 0, length
    if first:
        begin, end = int(first), min(length, int(last) + 1 if last else length)
    elif last:
        begin, end = max(0, length - int(last)), length
    else:
        return 200, 0, length
    return (206, begin, end) if begin < end else (416, 0, 0)


def _chunks(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    left = end - begin
    while left and (chunk := file.read(min(_CHUNK, left))):
        left -= len(chunk)
        yield chunk


def _listed(bundle: Bundle, path: str, entry: FileEntry) -> io.BufferedReader:
    """The file, which has the content that the manifest says. Raises Problem 503 when it no longer has.

    A strong ETag is a promise: a file that was replaced under the running service must not go out under the old hash.
    """
    file = _opened(bundle, path)
    found = os.fstat(file.fileno())
    looks = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    key = (bundle.path / path, entry.sha256)
    if _hashed.get(key) != looks:
        with _hashing:
            if found.st_size != entry.bytes or hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                file.close()
                raise _changed(path)
            if len(_hashed) > 100_000:
                _hashed.clear()
            _hashed[key] = looks
    return file


def _unlisted(bundle: Bundle, path: str) -> bytes:
    """The content of the manifest or of a profile. Raises Problem 404 where there is none, 503 for another manifest."""
    with _opened(bundle, path) as file:
        content = file.read(_MAX_UNLISTED + 1)
    if len(content) > _MAX_UNLISTED:
        raise _absent(bundle, path)
    if path == MANIFEST_FILE and bundle.manifest.sha256.encode() not in content:  # it holds its own hash
        raise _changed(path)
    return content


def _opened(bundle: Bundle, path: str) -> io.BufferedReader:
    """An ordinary file below the bundle's folder, reached without any link. Raises Problem 404 for whatever else."""
    *folders, name = path.split("/")
    if "" in (*folders, name) or {".", ".."} & {*folders, name} or "\0" in path:
        raise _absent(bundle, path)
    opened = []
    try:
        opened.append(os.open(bundle.path, os.O_RDONLY | os.O_DIRECTORY))
        for part in folders:
            opened.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
        # Without waiting: a pipe in the place of a file would be waited for.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=opened[-1])
    except OSError:
        raise _absent(bundle, path) from None
    finally:
        for folder in opened:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _absent(bundle, path)
    return os.fdopen(descriptor, "rb")


def _absent(bundle: Bundle, path: str) -> Problem:
    return Problem(404, f"bundle {bundle.name!r} has no file {path!r}; its manifest.json says which there are")


def _changed(path: str) -> Problem:
    return Problem(503, f"file {path!r} has changed since the service was started; it must be started again")
