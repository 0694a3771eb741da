"""The store of the fleet's profiles: the same over SQLite and over a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import limits
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.service.postgres import cluster, programs
from device_profiles import DeviceInfo, LatencyMs, Measurement, Profile
from device_profiles.models import model_of
from selector.service.fleet import database
from selector.service.fleet.database import StoreError, StoreUnavailable, migrate
from selector.service.fleet.device_models import aggregate
from selector.service.fleet.rates import RateLimit
from selector.service.fleet.store import Store, Stored, VersionConflict, canonical
from selector.service.fleet.tables import hits, metadata
from tests.conftest import DATABASES, NO_POSTGRESQL, device_info, empty_store, latency

FINGERPRINT = "f" * 64


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store."""
    return empty_store(request, tmp_path)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as found:
        yield found


def profile(device: str = "phone", ms: float = 1.0, *, cpu: str = "Cortex-A76", fingerprint: str = FINGERPRINT) -> Profile:
    info = device_info(name=device, cpu=cpu, threads=4)
    cost = Measurement(latency_ms=latency(ms), source={"latency_ms": "measured"})
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return Profile(device=info, bundle=fingerprint, measured_at=moment, submodels={"w1.00": cost})


def versions(store: Store, device: str = "phone") -> list[float]:
    """The latency of each version of a device, from the first on."""
    found = []
    while (one := store.profile("digits", FINGERPRINT, device, len(found) + 1)) is not None:
        found.append(Profile.model_validate_json(one[1]).submodels["w1.00"].latency_ms.p50)
    return found


def test_the_migrations_make_the_tables_that_the_code_uses(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_store_of_the_first_revision_is_upgraded_with_what_is_in_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(database, "migrate", lambda engine: migrate(engine, "0001"))
        old = database.open_engine(url)
    assert "hits" not in sa.inspect(old).get_table_names()
    document = canonical(profile())
    token = {"id": "aaaaaaaaaaaa", "name": "fleet", "sha256": "0" * 64, "scopes": "profiles:write", "now": datetime.now(UTC)}
    row = {"fp": FINGERPRINT, "model": model_of(profile().device), "document": document, "now": datetime.now(UTC)}
    with old.begin() as connection:
        text = "INSERT INTO tokens (id, name, sha256, scopes, created_at) VALUES (:id, :name, :sha256, :scopes, :now)"
        connection.execute(sa.text(text), token)
        columns = "bundle, fingerprint, device, model, version, sha256, document, received_at, token_id"
        values = f"'digits', :fp, 'phone', :model, 1, '{'1' * 64}', :document, :now, 'aaaaaaaaaaaa'"
        connection.execute(sa.text(f"INSERT INTO profiles ({columns}) VALUES ({values})"), row)
    old.dispose()

    store = Store(url)
    assert versions(store) == [1.0]
    assert [token.name for token in store.tokens.all()] == ["fleet"]
    stored, created = store.put("digits", profile(ms=2.0), token="aaaaaaaaaaaa")
    assert (stored.version, created) == (2, True)
    assert RateLimit(store.engine, limits.parse("1 per hour")).wait_s("a") is None
    store.close()


def test_several_processes_may_open_an_empty_store_at_once(url: str) -> None:
    code = "import sys; from selector.service.fleet.store import Store; print(len(Store(sys.argv[1]).tokens.all()))"
    starting = [subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in starting] == [b"0\n"] * 3


def test_a_store_of_a_newer_version_is_refused(url: str) -> None:
    store = Store(url)
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(StoreError, match=r"newer sortednet.*9999"):
        Store(url)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("mysql://me:secret@host/name", "allowed are sqlite"),
        ("nonsense", "allowed are sqlite"),
        ("sqlite://", "sqlite:///FILE"),
        ("sqlite:////proc/none/store.db", "/proc/none/store.db"),
        ("sqlite:////proc/none/store.db", "--store sqlite:///FILE"),
        ("sqlite:////tmp/a?b.db", "a ? is not allowed"),
        ("postgresql://me:secret@127.0.0.1:1/name", "127.0.0.1:1"),
        ("postgresql://me:secret@host:port/name", "allowed are sqlite"),
        ("postgresql+psycopg2://me:secret@host/name", "allowed are sqlite"),
        ("sqlite+aiosqlite:///store.db", "allowed are sqlite"),
    ],
)
def test_a_store_that_cannot_be_opened_is_named_without_its_password(url: str, named: str) -> None:
    with pytest.raises(StoreError) as error:
        Store(url)
    assert named in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_database_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not waited for, as another's lock is."""
    (tmp_path / "notes.txt").write_text("dear " * 1000)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits"))
    with pytest.raises(StoreError, match=r"notes\.txt.*not a database"):
        Store(f"sqlite:///{tmp_path / 'notes.txt'}")


def test_what_is_sent_is_what_is_found_and_versions_count_up(store: Store) -> None:
    sent = profile(ms=1.5)
    stored, created = store.put("digits", sent)
    assert (stored.version, stored.model, created) == (1, "cortex-a76-4t-cpu", True)
    assert abs(stored.received_at - datetime.now(UTC)) < timedelta(minutes=5)
    found = store.profile("digits", FINGERPRINT, "phone")
    assert found == (stored, canonical(sent))
    assert Profile.model_validate_json(found[1]) == sent

    again, created = store.put("digits", sent)
    assert (again, created) == (stored, False)
    assert store.put("digits", profile(ms=2.0))[0].version == 2
    assert store.put("digits", sent)[0].version == 3  # as before, but not as the newest
    assert versions(store) == [1.5, 2.0, 1.5]
    assert store.put("other", sent)[0].version == 1


def test_the_newest_profile_is_one_of_the_same_networks(store: Store) -> None:
    store.put("digits", profile(ms=1.0))
    store.put("digits", profile(ms=2.0, fingerprint="e" * 64))  # the bundle was replaced
    found = store.newest("digits", FINGERPRINT, "phone"), store.newest("digits", "e" * 64, "phone")
    assert [one.version for one in found if one] == [1, 2]
    assert [one.version for one in store.devices("digits", "e" * 64)] == [2]


def test_expecting_a_version_keeps_one_from_overwriting_another(store: Store) -> None:
    seen: list[str | None] = []

    def put(ms: float, expected: str | None) -> tuple[Stored, bool]:
        return store.put("digits", profile(ms=ms), may_replace=lambda newest: seen.append(newest) or newest == expected)

    with pytest.raises(VersionConflict):
        put(1.0, "0" * 64)
    first, _ = put(1.0, None)
    second, _ = put(2.0, first.sha256)
    with pytest.raises(VersionConflict):
        put(3.0, first.sha256)
    assert put(2.0, first.sha256) == (second, False)  # the request was repeated
    assert seen == [None, None, first.sha256, second.sha256]


def test_versions_are_neither_lost_nor_doubled_by_many_at_once(url: str) -> None:
    store = Store(url, keep=60)

    def many(writer: int) -> list[int]:
        return [store.put("digits", profile(ms=writer * 100 + turn + 1.0))[0].version for turn in range(10)]

    with ThreadPoolExecutor(6) as pool:
        given_out = sorted(version for found in pool.map(many, range(6)) for version in found)
        assert given_out == list(range(1, 61))
        assert sorted(versions(store)) == [writer * 100 + turn + 1.0 for writer in range(6) for turn in range(10)]
        same = list(pool.map(lambda _: store.put("digits", profile("tablet")), range(12)))
    assert sum(created for _, created in same) == 1
    assert versions(store, "tablet") == [1.0]
    store.close()


def test_of_a_device_the_latest_versions_are_kept(url: str) -> None:
    """Of this one, not of others, and they go on counting."""
    with Store(url, keep=2) as store:
        store.put("digits", profile("tablet", 9.0))
        for turn in range(5):
            assert store.put("digits", profile(ms=turn + 1.0))[0].version == turn + 1
        found = [store.profile("digits", FINGERPRINT, "phone", version) for version in range(1, 6)]
        assert [one is not None for one in found] == [False, False, False, True, True]
        assert (newest := store.newest("digits", FINGERPRINT, "phone")) is not None
        assert newest.version == 5
        assert versions(store, "tablet") == [9.0]


def pages(page: Callable[[str], list[str]]) -> list[list[str]]:
    found = [page("")]
    while found[-1]:
        found.append(page(found[-1][-1]))
    return found[:-1]


def test_lists_come_in_pages_in_one_order(store: Store) -> None:
    names = ["B", "a", "A-1", "a.b", "A_1", "b", "10", "9"]
    for number, name in enumerate(names):
        for ms in (1.0, 2.0):
            store.put("digits", profile(name, ms, cpu=f"cpu {number % 3}"))

    def devices(after: str) -> list[str]:
        found = store.devices("digits", FINGERPRINT, after=after, limit=3)
        assert all(one.version == 2 for one in found)
        return [one.device for one in found]

    assert [name for page in pages(devices) for name in page] == sorted(names)
    models = pages(lambda after: [one.model for one in store.models("digits", FINGERPRINT, after=after, limit=2)])
    assert models == [["cpu-0-4t-cpu", "cpu-1-4t-cpu"], ["cpu-2-4t-cpu"]]
    (one,) = store.models("digits", FINGERPRINT, "cpu-2-4t-cpu")
    assert one.devices == 2
    assert store.models("digits", FINGERPRINT, "none") == []
    documents = store.documents_of_model("digits", FINGERPRINT, "cpu-0-4t-cpu", limit=2)
    assert [Profile.model_validate_json(text).device.name for text in documents] == ["10", "a.b"]  # the last that sent one


def test_a_token_is_good_until_it_is_revoked_or_expires(store: Store) -> None:
    token, text = store.tokens.create("fleet", bundle="digits", device="phone-*", days=1)
    assert store.tokens.authenticate(text) == token
    assert [token.allows(*pair) for pair in (("digits", "phone-1"), ("digits", "tv"), ("x", "phone-1"))] == [True, False, False]
    literal, _ = store.tokens.create("literal", bundle="model [1]?")  # of the patterns of shells only * is one
    assert [literal.allows(name, "phone") for name in ("model [1]?", "model 1x")] == [True, False]
    other, _ = store.tokens.create("other")
    assert other.allows("any", "thing")
    wrong = (
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        text.replace(token.id, other.id),
        text.upper(),
        "",
        "snt_",
        "ä" * 50,
    )
    assert [store.tokens.authenticate(one) for one in wrong] == [None] * 6
    with store.engine.connect() as connection:
        kept = str([tuple(row) for row in connection.execute(sa.text("SELECT * FROM tokens"))])
    assert token.id in kept
    assert text.split("_", 2)[2] not in kept

    revoked = store.tokens.revoke(token.id)
    assert revoked.revoked_at is not None
    assert store.tokens.revoke(token.id) == revoked
    assert store.tokens.authenticate(text) is None
    assert [one.id for one in store.tokens.all()] == [token.id, literal.id, other.id]
    _, brief = store.tokens.create("brief", days=1e-9)
    assert store.tokens.authenticate(brief) is None


def test_a_rate_is_counted_by_all_that_use_the_store(store: Store, url: str) -> None:
    beside = Store(url)
    limit = limits.parse("20 per hour")
    two = [RateLimit(one.engine, limit) for one in (store, beside)]
    with ThreadPoolExecutor(6) as pool:
        waits = list(pool.map(lambda turn: two[turn % 2].wait_s("token"), range(30)))
    assert waits.count(None) == 20
    assert all(0 < wait <= 3600 for wait in waits if wait is not None)
    assert two[0].wait_s("another") is None
    with store.engine.begin() as connection:
        connection.execute(hits.update().values(expires_at=hits.c.expires_at - 3600))  # as after an hour
    assert two[1].wait_s("token") is None
    beside.close()


def test_a_database_that_is_gone_is_an_error_of_its_own() -> None:
    if programs() is None:
        pytest.skip(NO_POSTGRESQL)
    with cluster(durable=False) as server:
        store = Store(server)
        store.put("digits", profile())
    for call in (lambda: store.newest("digits", FINGERPRINT, "phone"), lambda: store.put("digits", profile(ms=2.0))):
        with pytest.raises(StoreUnavailable):
            call()


def test_a_device_model_has_the_medians_of_its_devices() -> None:
    three = [profile(f"phone-{ms:g}", ms) for ms in (9.0, 1.0, 2.0)]
    found = aggregate("cortex-a76-4t-cpu", three)
    assert (found.device.name, found.submodels["w1.00"].latency_ms.p50) == ("cortex-a76-4t-cpu", 2.0)
    assert found.device.label == "aggregated: the median of 3 devices"
    assert found.submodels["w1.00"].latency_ms.n == 30
    assert aggregate("m", three[:2]).submodels["w1.00"].latency_ms.p50 == 9.0  # rather too slow than too fast

    guess = three[0].submodels["w1.00"].model_copy(update={"source": {"latency_ms": "predicted"}})
    mixed = [*three[1:], three[0].model_copy(update={"submodels": {"w1.00": guess, "w0.50": guess}})]
    costs = aggregate("m", mixed).submodels
    assert (costs["w1.00"].latency_ms.p50, costs["w1.00"].source["latency_ms"]) == (2.0, "measured")
    assert costs["w0.50"].source["latency_ms"] == "predicted"


@pytest.mark.parametrize(
    ("cpu", "model"),
    [
        ("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", "intel-core-i5-8250u-cpu-1-60ghz-4t-cpu"),
        ("INTEL Core i5-8250U CPU @ 1.60GHz", "intel-core-i5-8250u-cpu-1-60ghz-4t-cpu"),
    ],
)
def test_a_device_model_is_named_after_what_the_latency_depends_on(cpu: str, model: str) -> None:
    assert model_of(profile(cpu=cpu).device) == model


@given(st.text(), st.text(), st.integers(1, 10**12), st.text())
@settings(max_examples=60, deadline=None)
def test_a_device_model_has_a_valid_name_whatever_the_device_is(cpu: str, other: str, threads: int, provider: str) -> None:
    info = profile().device.model_copy(update={"cpu": cpu, "threads": threads, "execution_provider": provider})
    DeviceInfo.model_validate({**info.model_dump(), "name": model_of(info)})
    if not cpu.isascii() and cpu.lower() != other.lower():
        assert model_of(info) != model_of(info.model_copy(update={"cpu": other}))


costs = st.lists(st.floats(1e-3, 1e308), min_size=3, max_size=3).map(sorted)


@given(st.lists(costs, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_percentiles_of_a_device_model_ascend(devices: list[list[float]]) -> None:
    found = []
    for p50, p90, p99 in devices:
        cost = Measurement(latency_ms=LatencyMs(p50=p50, p90=p90, p99=p99, mean=p90, n=1), source={"latency_ms": "measured"})
        found.append(profile().model_copy(update={"submodels": {"w1.00": cost}}))
    median = aggregate("m", found).submodels["w1.00"].latency_ms
    assert median.p50 <= median.p90 <= median.p99
    assert median.p50 in [device[0] for device in devices]
