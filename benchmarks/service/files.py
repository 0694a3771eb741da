"""A fuzz of the file endpoints: does any spelling of a path reach what is no artefact of the bundle?

Requests go over a bare socket, so that no client tidies them up. Outside of the bundle lies a canary; inside lie links to it,
to its folder and to the system's files. An escape is an answer that holds the canary, or one of success whose body is not that
of an artefact.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.adapt.bundles import trained
from benchmarks.service.running import running
from exporter.bundle import Bundle
from exporter.subset import subset

NOTES = {
    "files_fuzz_cases": "requests over a bare socket to /files, /blobs and /subsets/…/files: encodings, double encodings, "
    "overlong UTF-8, look-alikes of dots and slashes, NUL, backslashes, absolute paths, links, headers that rewrite paths",
    "files_fuzz_escapes": "answers with the canary, or successes whose body is no artefact of the bundle",
    "files_fuzz_server_errors": "answers of 500 and more, and none at all",
    "files_fuzz_artefacts": "cases that a harmless reading of the path led to an artefact",
}
CASES = 5000
CANARY = b"canary-" + hashlib.sha256(b"outside").hexdigest().encode()
DOTS = (".", "%2e", "%2E", "%252e", "%25252e", "%c0%ae", "%e0%80%ae", "%ef%bc%8e", "%e2%80%a4", "%u002e", ".%00", "\uff0e")
SLASHES = ("/", "%2f", "%2F", "%252f", "%25252f", "\\", "%5c", "%255c", "//", "/./", "%c0%af", "%ef%bc%8f", "%e2%81%84", ";/")
ENDS = ("", "", "", "%00", "%00.json", "%00.bin", "/", "/.", ".", "%20", "%0a", "%0d%0a", "?", "#", ";", "::$DATA", "~", "%")
FILLS = ("", "", "", "models/", "profiles/", "./", "/", "models/weights.bin/", "nothing/", "%2e/", "manifest.json/")


def measure() -> dict[str, float]:
    figures = dict.fromkeys(NOTES, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bundle = _with_links(scratch)
        subsets = {"SORTEDNET_SUBSETS": str(scratch / "subsets")}
        with running("sortednet", "serve", bundle.path, environment=subsets) as service:
            prefixes, allowed = _prefixes(service.url, bundle, scratch), _artefacts(bundle, scratch)
            for request in itertools.islice(_requests(prefixes, bundle, random.Random(0)), CASES):
                answer = _answer(service.port, request)
                status, body = _taken_apart(answer)
                figures["files_fuzz_cases"] += 1
                success = 200 <= status < 300
                harmless = body in allowed or (status == 206 and any(body in content for content in allowed))
                harmless = harmless or (not body and request.startswith(b"HEAD"))
                escaped = CANARY in answer or (success and not harmless)
                figures["files_fuzz_artefacts"] += success and not escaped
                figures["files_fuzz_server_errors"] += status >= 500 or status == 0
                if escaped:
                    figures["files_fuzz_escapes"] += 1
                    print("escape:", request, answer[:200])
                elif status >= 500 or status == 0:
                    print("error:", request, answer[:200])
    return figures


def _with_links(scratch: Path) -> Bundle:
    whole = trained()
    part = subset(whole, list(whole.submodels)[:3], scratch / "root" / "digits")
    outside = scratch / "root" / "canary.json"
    outside.write_bytes(CANARY)
    profiles = part.path / "profiles"
    profiles.mkdir(exist_ok=True)
    for link in (part.path / "link.json", profiles / "link.json", part.path / "models" / "link.onnx"):
        link.symlink_to(outside)
    (part.path / "up").symlink_to(outside.parent)
    (part.path / "models" / "up").symlink_to("../..")
    (profiles / "up").symlink_to(outside.parent)
    (part.path / "system").symlink_to("/etc")
    (part.path / "unlisted.json").write_bytes(CANARY)
    (profiles / "unlisted.txt").write_bytes(CANARY)
    return part


def _prefixes(url: str, bundle: Bundle, scratch: Path) -> list[str]:
    """Of the paths that files lie under. A part of the bundle is made, so that there are such of one."""
    from selector.fetch.transfer import Client

    answer = Client(url).document("/v1/bundles/digits/subsets", {"submodels": [next(iter(bundle.submodels))]})
    shutil.copytree(next((scratch / "subsets").iterdir()), scratch / "part")
    return ["/v1/bundles/digits/files/"] * 3 + [answer["files"], "/v1/bundles/digits/blobs/", "/v1/bundles/"]


def _artefacts(bundle: Bundle, scratch: Path) -> set[bytes]:
    """What may be answered with: the files of the bundle and of its part."""
    roots = (bundle.path, scratch / "part")
    return {(root / name).read_bytes() for root in roots for name in (*Bundle(root).manifest.files, "manifest.json")}


def _requests(prefixes: list[str], bundle: Bundle, chance: random.Random) -> Iterator[bytes]:
    outside = bundle.path.parent / "canary.json"
    up = ["../", "../../", "../../../", "models/../../", "profiles/../../", "../" * 12]
    there = ["canary.json", "root/canary.json", "etc/passwd", "digits/unlisted.json"]
    targets = [a + b for a in up for b in there]
    targets += ["link.json", "models/link.onnx", "profiles/link.json", "up/canary.json", "models/up/canary.json"]
    targets += [
        "profiles/up/canary.json",
        "system/passwd",
        "unlisted.json",
        "profiles/unlisted.txt",
        "profiles/../unlisted.json",
    ]
    targets += [
        str(outside),
        f"/{outside}",
        "/etc/passwd",
        "file:///etc/passwd",
        "C:\\canary.json",
        "\\\\host\\canary.json",
        "~root",
    ]
    targets += ["models", "profiles", "", ".", "..", "/", "profiles/.json", "models/*"]
    artefacts = ["manifest.json", "selftest.npz", *bundle.manifest.files]
    plain = ((prefix, target) for prefix in dict.fromkeys(prefixes) for target in (*targets, *artefacts))
    for number in itertools.count():
        prefix, target = next(plain, (None, None))  # first each as it is, then every kind of spelling
        if prefix is None or target is None:
            prefix, target = chance.choice(prefixes), _spelled(chance.choice(targets), chance)
            if number % 5 == 0:  # some must be found, or the fuzz would not know what finding is
                target = _spelled(chance.choice(artefacts), chance)
        address = prefix + target
        if chance.random() < 0.05:
            address = f"http://localhost{address}"
        method = chance.choice(["GET"] * 8 + ["HEAD", "POST"])
        headers = ["Host: x", "Connection: close"]
        if chance.random() < 0.1:
            name = chance.choice(["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Sendfile", "X-Accel-Redirect"])
            headers.append(f"{name}: {outside}")
        if chance.random() < 0.1:
            headers.append(f"Range: bytes={chance.choice(['0-', '0-10', '-5', '5-1', '999999-', '0-1,3-4', 'x'])}")
        yield f"{method} {address} HTTP/1.1\r\n".encode() + "\r\n".join(headers).encode() + b"\r\n\r\n"


def _spelled(target: str, chance: random.Random) -> str:
    """The path in other characters, of which some are the same to whoever decodes once, some to whoever decodes twice."""
    if chance.random() < 0.4:
        target = chance.choice(FILLS) + target
    kinds = (3, 2) if chance.random() < 0.5 else (len(DOTS), len(SLASHES))  # the first are those of a single decoding
    dot, slash = chance.choice(DOTS[: kinds[0]]), chance.choice(SLASHES[: kinds[1]])
    mixed = chance.random() < 0.3
    spelled = {".": lambda: chance.choice(DOTS) if mixed else dot, "/": lambda: chance.choice(SLASHES) if mixed else slash}
    path = "".join(spelled[c]() if c in spelled else c for c in target)
    if chance.random() < 0.1:  # any byte at any place
        place = chance.randrange(len(path) + 1)
        path = path[:place] + f"%{chance.randrange(256):02x}" + path[place:]
    return path + (chance.choice(ENDS) if chance.random() < 0.5 else "")


def _answer(port: int, request: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(request)
            return b"".join(iter(lambda: client.recv(65536), b""))
    except OSError:
        return b""


def _taken_apart(answer: bytes) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, body


if __name__ == "__main__":
    for key, figure in measure().items():
        print(f"{key:45} {figure:.4g}")
