"""Profiles of the fleet over REST: a real server process on loopback, over SQLite and over a real PostgreSQL."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import limits
import pytest
from typer.testing import CliRunner

import sortednet
from benchmarks.service.postgres import cluster, programs
from device_profiles import Profile, profile_document, read_profile
from selector.service.fleet.store import Store
from selector.service.fleet.tables import hits
from selector.service.state import PUT_LIMIT
from tests.conftest import DATABASES, DEVICE, NO_POSTGRESQL, empty_store, taking
from tests.helpers.server import ANSWERS_WITHIN_S, Server, problem, serving

FRESH_WITHIN_S = 60


class Fleet(NamedTuple):
    """A server, its store and a token for it; and what a device of this bundle would send."""

    server: Server
    store: str
    token: str
    measured: Profile

    @property
    def root(self) -> str:
        return f"/v1/bundles/{self.server.get('/v1/bundles').document['bundles'][0]['name']}"

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        """The answer; headers with `_` for `-`. A token is sent where none is given."""
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.server.url + path, data=body, method=method, headers=given)
        return self.server._send(request) if headers.get("If_None_Match") is None else _conditional(request)

    def put(self, profile: Profile, **headers: str) -> Any:
        path = f"{self.root}/profiles/{profile.device.name}"
        return self.send("PUT", path, profile.model_dump_json().encode(), **headers)

    def profile(self, device: str, ms: float, **device_info: Any) -> Profile:
        """Every sub-model takes so long."""
        info = self.measured.device.model_copy(update={"name": device, **device_info})
        return taking(self.measured, ms).model_copy(update={"device": info})

    def chosen(self, device: str) -> float:
        """The latency of what `select` answers for a device."""
        return float(self.server.post("/v1/select", {"device": device}).document["latency_ms"])


def _conditional(request: urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=ANSWERS_WITHIN_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def token_of(url: str, *options: str) -> str:
    """As the command line makes it."""
    made = CliRunner().invoke(sortednet.app, ["token", "create", "fleet", "--store", url, *options])
    assert made.exit_code == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture(scope="module", params=DATABASES)
def fleet(request: pytest.FixtureRequest, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    url = empty_store(request, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SORTEDNET_STORE", url)
        with serving(folder / "log", bundle_path) as server:
            yield Fleet(server, url, token_of(url), read_profile(bundle_path / "profiles" / f"{DEVICE}.json"))


def test_a_profile_that_a_device_sends_is_found_and_chosen_by(fleet: Fleet) -> None:
    path = f"{fleet.root}/profiles/phone"
    problem(fleet.server.get(path), 404)
    problem(fleet.server.post("/v1/select", {"device": "phone"}), 404)
    first = fleet.put(fleet.profile("phone", 5.0))
    assert (first.status, first.document["version"], first.document["created"]) == (201, 1, True)
    assert fleet.chosen("phone") == 5.0  # at once, though it was asked for before
    again = fleet.put(fleet.profile("phone", 5.0))
    assert (again.status, again.document["created"]) == (200, False)
    assert {**again.document, "created": True} == first.document
    assert fleet.put(fleet.profile("phone", 7.0)).document["version"] == 2
    assert fleet.chosen("phone") == 7.0

    newest = fleet.server.get(path)
    assert newest.document == fleet.profile("phone", 7.0).model_dump(mode="json")
    assert (newest.headers["Profile-Version"], newest.headers["Content-Location"]) == ("2", f"{path}?version=2")
    assert fleet.server.get(f"{path}?version=1").document == fleet.profile("phone", 5.0).model_dump(mode="json")
    assert fleet.send("GET", path, If_None_Match=newest.headers["ETag"]) == (304, b"")
    assert fleet.send("GET", path, If_None_Match=first.headers["ETag"])[0] == 200
    problem(fleet.server.get(f"{path}?version=9"), 404)


def test_a_bundles_own_profile_is_found_too_until_the_device_sends_one(fleet: Fleet) -> None:
    path = f"{fleet.root}/profiles/{DEVICE}"
    assert fleet.server.get(path).document == fleet.measured.model_dump(mode="json")
    sent = fleet.profile(DEVICE, 3.0)
    assert fleet.put(sent).status == 201
    assert fleet.server.get(path).document == sent.model_dump(mode="json")
    assert fleet.chosen(DEVICE) == 3.0


def test_if_match_keeps_one_from_overwriting_another(fleet: Fleet) -> None:
    first = fleet.put(fleet.profile("guarded", 1.0)).headers["ETag"]
    assert fleet.put(fleet.profile("guarded", 2.0), If_Match=first).status == 200
    for etag in (first, f"W/{first}", '"other"', f'"a", {first}'):
        problem(fleet.put(fleet.profile("guarded", 3.0), If_Match=etag), 412)
    problem(fleet.put(fleet.profile("nobody", 3.0), If_Match="*"), 412)
    assert fleet.put(fleet.profile("guarded", 2.0), If_Match=first).status == 200  # the same once more
    assert fleet.put(fleet.profile("guarded", 3.0), If_Match="*").document["version"] == 3


def test_devices_and_models_are_listed_in_pages(fleet: Fleet) -> None:
    for number in range(5):
        assert fleet.put(fleet.profile(f"sensor-{number}", 1.0 + number, cpu="Sensor (TM) 9000", threads=2)).status == 201
    devices: list[str] = []
    after, begun = None, False
    while after is not None or not begun:
        begun = True
        page = fleet.server.get(f"{fleet.root}/profiles?limit=2" + (f"&after={after}" if after else "")).document
        assert len(page["profiles"]) <= 2
        devices += [line["device"] for line in page["profiles"]]
        after = page["next"]
    assert devices == sorted(set(devices))
    assert set(devices) >= {DEVICE, *(f"sensor-{number}" for number in range(5))}

    (listed,) = [m for m in fleet.server.get(f"{fleet.root}/models").document["models"] if m["model"].startswith("sensor")]
    assert listed["devices"] == 5
    found = fleet.server.get(f"{fleet.root}/models/{listed['model']}").document
    assert (found["aggregated"], found["devices"], found["used"]) == ("median", 5, 5)
    assert {cost["latency_ms"]["p50"] for cost in found["profile"]["submodels"].values()} == {3.0}
    answer = fleet.server.post("/v1/select", {"device": listed["model"]}).document
    assert (answer["latency_ms"], answer["device"]) == (3.0, listed["model"])
    part = fleet.server.post(f"{fleet.root}/subsets", {"device": listed["model"], "budget": {}}).document
    assert (part["selection"], part["profile"]["device"]["name"]) == (answer, listed["model"])
    problem(fleet.server.get(f"{fleet.root}/models/none"), 404)


@pytest.mark.parametrize(
    "query",
    [
        "profiles?limit=0",
        "profiles?limit=1001",
        "models?limit=x",
        "profiles?after=%00",
        "profiles?after=",
        "profiles/phone?version=0",
        "profiles/phone?version=99999999999",
        "profiles/-x",
        "models/%C3%A4",
    ],
)
def test_a_wrong_query_is_a_problem_that_names_the_field(fleet: Fleet, query: str) -> None:
    (error,) = problem(fleet.server.get(f"{fleet.root}/{query}"), 422)["errors"]
    assert error["field"] in ("limit", "after", "version", "device", "model")


def test_the_dashboard_is_not_asked_for_what_no_database_can_be(fleet: Fleet) -> None:
    """PostgreSQL refuses text with a NUL."""
    (error,) = problem(fleet.server.get(f"/dashboard/frontiers/{fleet.root.split('/')[-1]}/a%00b"), 422)["errors"]
    assert error["field"] == "device"


def test_who_has_no_right_to_is_refused(fleet: Fleet) -> None:
    profile = fleet.profile("refused", 1.0)
    for given in ("", "Basic dTpw", "Bearer", "Bearer snt_nonsense", f"Bearer {fleet.token[:-1]}"):
        refused = fleet.put(profile, Authorization=given)
        problem(refused, 401)
        assert refused.headers["WWW-Authenticate"].startswith("Bearer ")
    for options in (["--device", "other-*"], ["--bundle", "other"]):
        problem(fleet.put(profile, Authorization=f"Bearer {token_of(fleet.store, *options)}"), 403)
    assert (
        fleet.put(fleet.profile("other-1", 1.0), Authorization=f"Bearer {token_of(fleet.store, '--device', 'other-*')}").status
        == 201
    )

    text = token_of(fleet.store)
    revoked = CliRunner().invoke(sortednet.app, ["token", "revoke", text.split("_")[1], "--store", fleet.store])
    assert revoked.exit_code == 0
    problem(fleet.put(profile, Authorization=f"Bearer {text}"), 401)
    problem(fleet.server.get(f"{fleet.root}/profiles/refused"), 404)


def test_a_profile_that_does_not_fit_the_bundle_or_its_schema_is_refused(fleet: Fleet) -> None:
    path = f"{fleet.root}/profiles/refused"
    profile = fleet.profile("refused", 1.0)
    good = profile.model_dump(mode="json")

    def field(document: dict[str, Any], status: int = 422) -> str:
        (error,) = problem(fleet.send("PUT", path, json.dumps(document).encode()), status)["errors"]
        return str(error["field"])

    one = next(iter(good["submodels"]))
    cost = good["submodels"][one]
    assert field({**good, "device": {**good["device"], "name": "else"}}) == "device.name"
    assert field({**good, "bundle": "0" * 64}, 409) == "bundle"
    assert field({**profile_document(profile), "measured_at": "2020-01-01T00:00:00Z"}) == "sha256"  # altered on its way
    assert field({**good, "submodels": {"w9": cost}}) == "submodels.w9"
    assert field({**good, "submodels": {one: {**cost, "memory_mb": -1.0}}}) == f"submodels.{one}.memory_mb"
    assert field({**good, "measured_at": "yesterday"}) == "measured_at"
    assert field({**good, "device": {**good["device"], "cores": "4"}}) == "device.cores"
    for body, status in ((b"", 422), (b"[" * 9000, 422), (b"{}", 422), (b" " * (2**20 + 1), 413)):
        problem(fleet.send("PUT", path, body), status)
    problem(fleet.send("PUT", path, json.dumps(good).encode(), Content_Type="text/plain"), 415)
    problem(fleet.send("PUT", "/v1/bundles/none/profiles/refused", json.dumps(good).encode()), 404)
    problem(fleet.server.get(path), 404)
    assert fleet.send("PUT", path, json.dumps(good).encode().ljust(2**20)).status == 201
    assert fleet.send("PUT", path, json.dumps(profile_document(profile)).encode()).status == 200  # the same, as a file has it


def test_too_many_are_refused_until_some_time_has_passed(fleet: Fleet) -> None:
    text = token_of(fleet.store)
    assert fleet.put(fleet.profile("eager", 1.0), Authorization=f"Bearer {text}").status == 201
    limit = limits.parse(PUT_LIMIT)
    with Store(fleet.store) as store, store.engine.begin() as connection:  # as if it had sent so many
        mine = hits.c.key == limit.key_for(text.split("_")[1])
        assert connection.execute(hits.update().where(mine).values(count=limit.amount)).rowcount == 1
    refused = fleet.put(fleet.profile("eager", 2.0), Authorization=f"Bearer {text}")
    problem(refused, 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert fleet.put(fleet.profile("eager", 2.0)).status == 200  # another token


def test_a_second_replica_sees_what_the_first_was_sent(fleet: Fleet, bundle_path: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SORTEDNET_STORE", fleet.store)
        with serving(tmp_path / "log", bundle_path) as server:
            second = fleet._replace(server=server)
            for ms in (5.0, 7.0):
                assert fleet.put(fleet.profile("shared", ms)).status in (200, 201)
                assert second.server.get(f"{fleet.root}/profiles/shared").document == second.profile("shared", ms).model_dump(
                    mode="json"
                )
                deadline = time.monotonic() + FRESH_WITHIN_S
                while second.chosen("shared") != ms:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)


def test_while_the_database_is_gone_what_is_known_is_still_answered(bundle_path: Path, tmp_path: Path) -> None:
    if programs() is None:
        pytest.skip(NO_POSTGRESQL)
    measured = read_profile(bundle_path / "profiles" / f"{DEVICE}.json")
    with pytest.MonkeyPatch.context() as patched, ExitStack() as database:
        url = database.enter_context(cluster(durable=False))
        patched.setenv("SORTEDNET_STORE", url)
        with serving(tmp_path / "log", bundle_path) as server:
            fleet = Fleet(server, url, token_of(url), measured)
            fleet.put(fleet.profile("phone", 5.0))
            assert fleet.chosen("phone") == 5.0
            database.close()
            assert server.post("/v1/select", {"device": DEVICE}).status == 200
            assert fleet.chosen("phone") == 5.0
            for answer in (fleet.put(fleet.profile("phone", 7.0)), server.post("/v1/select", {"device": "new"})):
                problem(answer, 503)
                assert answer.headers["Retry-After"]
            assert server.get("/healthz").status == 200


def test_tokens_are_listed_without_their_texts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"

    def call(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(sortednet.app, ["token", *arguments, "--store", url])
        assert result.exit_code == code, result.stderr
        return result

    assert "There are no tokens" in call("list").stdout
    text = token_of(url, "--device", "phone", "--days", "30")
    (listed,) = json.loads(call("list", "--json").stdout)["tokens"]
    assert (listed["name"], listed["device"], listed["scopes"]) == ("fleet", "phone", ["profiles:write"])
    assert text.split("_", 2)[2] not in call("list").stdout + call("list", "--json").stdout
    assert listed["id"] in call("list").stdout
    assert json.loads(call("revoke", listed["id"], "--json").stdout)["revoked_at"]
    assert "'nope'" in call("revoke", "nope", code=2).stderr
    assert "scope = 'all'" in call("create", "x", "--scope", "all", code=2).stderr
    assert "days = -1" in call("create", "x", "--days", "-1", code=2).stderr
    made = json.loads(call("create", "x", "--json").stdout)
    assert made["token"].startswith(f"snt_{made['id']}_")
    assert (tmp_path / "store.db").stat().st_mode & 0o077 == 0
