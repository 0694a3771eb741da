"""`sortednet pull --key` against a real service, over a proxy that falsifies what goes through it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.bundle import Bundle
from exporter.bundle.verify import self_test
from selector.ship.parts import open_signed
from selector.ship.signed import Trust
from tests.conftest import DEVICE
from tests.helpers.keys import Keys, made, signed_copy
from tests.helpers.proxy import Proxy, Request
from tests.helpers.pulls import SMALL, contents, files_asked, pulled
from tests.helpers.server import serving


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return made(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def proxy(bundle_path: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Before a service of a signed bundle, `digits`, and of one that is not, `plain`."""
    folder = tmp_path_factory.mktemp("served")
    signed = signed_copy(bundle_path, folder / "digits", keys)
    plain = Path(shutil.copytree(bundle_path, folder / "plain"))
    with serving(folder / "log", signed, plain) as server, Proxy(server.url) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _as_it_is(proxy: Proxy) -> None:
    proxy.seen.clear()
    proxy.fault = lambda request, status, body: None


def test_ranges_come_over_the_network_and_what_is_here_does_not_come_again(proxy: Proxy, keys: Keys, tmp_path: Path) -> None:
    mine, url = tmp_path / "mine", f"{proxy.url}/v1/bundles/digits"
    budget = ("--latency-ms", "1000", "--objective", "latency", "--device", DEVICE)
    first = pulled(url, "--out", mine, "--key", keys.public, *budget)
    assert (first["version"], first["submodels"]) == (1, [first["selection"]["submodel"]])
    opened = open_signed(mine, Trust(keys.public))
    assert self_test(opened).submodels == 1
    assert opened.profile(DEVICE).submodels.keys() == opened.submodels.keys()
    weights = opened.manifest.weights
    ranges = [request.headers["Range"] for request in proxy.seen if weights in request.path]
    assert ranges != []
    assert not any("subsets" in request.path for request in proxy.seen)

    proxy.seen.clear()
    grown = pulled(url, "--out", mine, "--key", keys.public, "--submodels", f"{SMALL},w1.00-d2", "--device", DEVICE)
    assert set(ranges).isdisjoint(request.headers["Range"] for request in proxy.seen if weights in request.path)
    assert 0 < grown["fetched_bytes"] < first["fetched_bytes"] + Bundle(mine).manifest.files[weights].bytes
    assert self_test(open_signed(mine, Trust(keys.public))).submodels == 2

    proxy.seen.clear()
    again = pulled(url, "--out", mine, "--key", keys.public, "--submodels", f"{SMALL},w1.00-d2", "--device", DEVICE)
    assert (again["changed"], again["fetched_bytes"]) == (False, 0)
    known = [request.headers["If-None-Match"] for request in proxy.seen if "/signed." in request.path]
    assert len(known) == 2
    assert not [name for name in files_asked(proxy) if name.startswith("models")]


def test_a_range_that_breaks_off_is_gone_on_with(proxy: Proxy, keys: Keys, tmp_path: Path) -> None:
    def breaks(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        return (status, body, len(body) // 2) if "weights.bin" in request.path and len(body) > 5000 else None

    proxy.fault = breaks
    pulled(f"{proxy.url}/v1/bundles/digits", "--out", tmp_path / "mine", "--key", keys.public, "--submodels", SMALL)
    open_signed(tmp_path / "mine", Trust(keys.public))


@pytest.mark.parametrize("falsified", ["weights.bin", ".onnx", "signed.json", "signed.sig"])
def test_what_is_falsified_on_the_way_is_refused_and_leaves_the_old_one(
    proxy: Proxy, keys: Keys, tmp_path: Path, falsified: str
) -> None:
    mine, url = tmp_path / "mine", f"{proxy.url}/v1/bundles/digits"
    pulled(url, "--out", mine, "--key", keys.public, "--submodels", SMALL)
    before = contents(mine)

    def changes(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        if falsified not in request.path or status >= 300:
            return None
        return status, body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :], None

    proxy.fault = changes
    if "signed" in falsified:  # what is here already is not asked for again
        shutil.rmtree(mine)
        before = {}
    line = pulled(url, "--out", mine, "--key", keys.public, "--submodels", "w1.00-d1", code=1)
    assert "is no signature of signed.json" in line if "signed" in falsified else "what arrives is not" in line
    assert contents(mine) == before


def test_what_is_not_signed_is_refused_before_anything_is_fetched(proxy: Proxy, keys: Keys, tmp_path: Path) -> None:
    plain = f"{proxy.url}/v1/bundles/plain"
    assert "plain is not signed" in pulled(plain, "--out", tmp_path / "mine", "--key", keys.public, code=1)
    assert files_asked(proxy) == ["signed.json"]
    other = made(tmp_path, "other").public
    line = pulled(f"{proxy.url}/v1/bundles/digits", "--out", tmp_path / "mine", "--key", other, code=1)
    assert "is no signature of signed.json by the key" in line
    assert "'nope'" in pulled(f"{proxy.url}/v1/bundles/nope", "--out", tmp_path / "mine", "--key", other, code=2)
    assert not (tmp_path / "mine").exists()
