"""Cascades: the floor is kept on fresh examples, batches are answered as one by one, and costs are expected ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray
from typer.testing import CliRunner
from werkzeug.test import TestResponse

import sortednet
from device_profiles import Measurement, Profile, write_profile
from exporter.bundle import Bundle
from exporter.bundle.session import open_session
from selector import Budget, BudgetError, Runtime, Selector
from selector.adapt.controller import Controller
from selector.choose.candidates import Candidates
from selector.choose.cascades import CASCADES_FILE, Cascade, read_cascades, write_cascades
from selector.run.calibrating import calibrate_cascade, find_cascade, logits_of
from selector.run.margins import margin_of, margins, passed_on
from selector.run.program import CascadeProgram, GraphProgram, Session
from selector.service import PredictOptions, create_app
from selector.service.fleet.store import Store
from sortednet.validation import validation
from tests.conftest import DEVICE
from tests.sortednet.test_cli import call, document, refused
from trainer.data import DataSet

COSTS = {"small": 1.0, "middle": 3.0, "large": 9.0}


def classifier(n: int, accuracy: float, seed: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Logits of three classifiers of ten classes: an example is as hard for all, and the larger see clearer."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, n)
    hardness, luck = random.exponential(1.0, n), random.normal(0, 1, (n, 10))
    found = {}
    for name, clear in (("small", 1.0), ("middle", 1.6), ("large", 2.2)):
        logits = luck + random.normal(0, 0.3, (n, 10))
        logits[np.arange(n), labels] += accuracy * 5 * clear / (0.6 + hardness)
        found[name] = (2 * logits).astype(np.float32)
    return found, labels


def cascaded(cascade: Cascade, logits: dict[str, NDArray[np.float32]]) -> NDArray[np.int64]:
    passed = passed_on(cascade, logits[cascade.first])
    return np.where(passed, logits[cascade.then].argmax(axis=1), logits[cascade.first].argmax(axis=1))


def test_the_floor_is_kept_as_often_as_promised() -> None:
    """Certified on 60 drawn validation sets; the truth is the accuracy on 100,000 other examples."""
    truth, labels = classifier(100_000, 0.9, 1)
    floor, below, made = 0.87, 0, 0
    for seed in range(60):
        logits, known = classifier(3000, 0.9, 100 + seed)
        cascade = find_cascade(logits, known, COSTS, floor, 0.95)
        made += 1
        below += bool((cascaded(cascade, truth) == labels).mean() < floor)
    assert made == 60
    assert below <= 7  # of 60 with 5 % each, more than 7 has a probability of 1 %


def test_it_costs_less_than_the_sub_model_that_is_as_accurate() -> None:
    logits, labels = classifier(6000, 0.9, 5)
    right = {name: (found.argmax(axis=1) == labels).mean() for name, found in logits.items()}
    cascade = find_cascade(logits, labels, COSTS, right["large"] - 0.02, 0.95)
    cost = COSTS[cascade.first] + cascade.escalation * COSTS[cascade.then]
    same = min(COSTS[name] for name in COSTS if right[name] >= cascade.accuracy - 0.005)
    assert cost <= 0.7 * same
    assert cascade.accuracy >= right["large"] - 0.02


def test_a_floor_that_nothing_keeps_is_an_error() -> None:
    logits, labels = classifier(500, 0.9, 2)
    with pytest.raises(BudgetError, match=r"floor = 0.999: no pair keeps it"):
        find_cascade(logits, labels, COSTS, 0.999, 0.95)
    with pytest.raises(BudgetError, match=r"floor = 1\.5"):
        find_cascade(logits, labels, COSTS, 1.5, 0.95)
    with pytest.raises(BudgetError, match=r"logits of small: shape \(500, 1\)"):
        find_cascade({"small": logits["small"][:, :1]}, labels, {"small": 1.0}, 0.5, 0.95)


@pytest.fixture
def ranked(bundle_path: Path, tmp_path: Path) -> tuple[Bundle, Cascade]:
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "bundle"))
    names = sorted(bundle.submodels, key=lambda name: bundle.submodels[name].macs)
    cascade = Cascade(
        id=f"{names[0]}+{names[-1]}",
        first=names[0],
        then=names[-1],
        threshold=0.8,
        escalation=0.25,
        accuracy=0.999,
        floor=0.9,
        confidence=0.95,
        examples=1000,
    )
    write_cascades(bundle, [cascade])
    return Bundle(bundle.path), cascade


def test_a_batch_is_answered_as_its_examples_one_by_one(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    sessions = [open_session(bundle.graph_path(name)) for name in (cascade.first, cascade.then)]
    images = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    small = sessions[0].run(["logits"], {"input": images})[0]
    ascending = sorted(margins(small))
    gap, above = max(zip(np.diff(ascending[8:56]), ascending[9:56], strict=True))
    cascade = cascade.model_copy(update={"threshold": float(above - gap / 2)})  # no margin is so near that rounding decides
    together = program_of(cascade, *sessions).run({"input": images}).outputs["logits"]
    passed = passed_on(cascade, small)
    assert 0 < passed.sum() < 64
    for place in range(64):
        (alone,) = sessions[int(passed[place])].run(["logits"], {"input": images[place : place + 1]})
        np.testing.assert_allclose(together[place], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 32, 33, 1000])
def test_one_example_is_as_sure_alone_as_in_a_batch(classes: int) -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, classes)).astype(np.float32)
    np.testing.assert_allclose([margin_of(row) for row in logits], margins(logits), rtol=1e-12)


class Fixed:
    """A session that always gives these logits."""

    def __init__(self, *logits: float) -> None:
        self.logits = np.array([logits], np.float32)

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        return [np.repeat(self.logits, len(feed["input"]), axis=0)]


def program_of(cascade: Cascade, first: Session, then: Session) -> CascadeProgram:
    stages = (cascade.first, first), (cascade.then, then)
    return CascadeProgram(cascade, *(GraphProgram(name, session, ["logits"]) for name, session in stages))


def costs_of(profile: Profile, bundle: Bundle, cascade: Cascade) -> Measurement:
    """What it is expected to cost."""
    (costs,) = (offer.costs for offer in Candidates.of(bundle, [profile], [cascade]) if offer.submodel == cascade.id)
    return costs


def cascades_of(runtime: Runtime) -> list[str]:
    return [offer.submodel for offer in runtime.candidates if offer.stages]


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_no_number_is_asked_again(batch: int, ranked: tuple[Bundle, Cascade]) -> None:
    both = program_of(ranked[1], Fixed(nan, 9.0), Fixed(1.0, 2.0))
    logits = both.run({"input": np.zeros((batch, 1), np.float32)}).outputs["logits"]
    np.testing.assert_array_equal(logits, [[1.0, 2.0]] * batch)
    assert np.isnan(margin_of(np.full(40, np.inf, np.float32)))


def judged(bundle: Bundle, path: Path) -> Path:
    """600 examples, of which the largest sub-model is right about nine in ten."""
    largest = max(bundle.submodels.values(), key=lambda entry: entry.macs).id
    images = np.random.default_rng(0).random((600, 1, 8, 8), dtype=np.float32)
    labels = logits_of(bundle, largest, {"input": images}).argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % 10
    np.savez(path, input=images, labels=labels)
    return path


def test_the_same_pair_may_serve_several_floors(bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "bundle"))
    data = validation(bundle, str(judged(bundle, tmp_path / "data.npz")))
    found = [calibrate_cascade(bundle, *data, floor=floor, confidence=0.9) for floor in (0.7, 0.8, 0.7)]
    assert {cascade.floor for cascade in read_cascades(bundle)} == {0.7, 0.8}
    assert len(read_cascades(bundle)) == len({cascade.id for cascade in found}) == 2
    runtime = Runtime(bundle, battery=lambda: None, sensors=False)
    assert set(cascades_of(runtime)) == {cascade.id for cascade in found}
    runtime.close()


def test_one_whose_first_sub_model_is_slow_here_is_avoided(ranked: tuple[Bundle, Cascade]) -> None:
    """By the profile it fits the deadline, but its first sub-model takes four times as long, and the single ones do not."""
    bundle, cascade = ranked
    profile = bundle.profile(DEVICE)
    second = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "second"})})
    medians = {name: measured.latency_ms.p50 for name, measured in profile.submodels.items()}
    limit = 2 * max(offer.costs.latency_ms.p99 for offer in Candidates.of(bundle, [profile], [cascade]))
    for profiles in ([profile], [profile, second]):
        controller = Controller(Selector(Candidates.of(bundle, profiles, [cascade])), profiles)
        chosen = []
        for step in range(200):
            selection = controller.choose(Budget(latency_ms=limit, percentile=50), 0.01 * step)
            chosen.append(selection.submodel)
            if selection.submodel == cascade.id:
                slow = 4 * limit / medians[cascade.first]
                controller.observe(selection, slow * medians[cascade.first], 0.01 * step, ran=cascade.first)
            else:
                controller.observe(selection, medians[selection.submodel], 0.01 * step)
        assert chosen[0] == cascade.id
        assert chosen[20:].count(cascade.id) < 10


def test_a_runtime_with_two_profiles_runs_it_as_measured_for_either(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    profile = bundle.profile(DEVICE)
    device = profile.device.model_copy(update={"name": "second", "threads": 2})
    write_profile(profile.model_copy(update={"device": device}), bundle.path / "profiles" / "second.json")
    runtime = Runtime(Bundle(bundle.path), device=[DEVICE, "second"], feedback=True, battery=lambda: None, sensors=False)
    image = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    for _ in range(20):
        assert runtime.run(image, Budget(min_accuracy=0.995, latency_ms=1000)).selection.submodel == cascade.id
    programs: list[Any] = [runtime.program(cascade.id, name) for name in (DEVICE, "second")]
    threads = [program.first.session.get_session_options().intra_op_num_threads for program in programs]
    assert threads == [profile.device.threads, 2]
    logits = [program.run({"input": image}).outputs["logits"] for program in programs]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)
    runtime.close()


def test_a_runtime_chooses_and_runs_it(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    runtime = Runtime(bundle, feedback=True, battery=lambda: None)
    image = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    for _ in range(3):
        result = runtime.run(image, Budget(min_accuracy=0.995))
        assert result.selection.submodel == cascade.id
        assert result.outputs["logits"].shape == (3, 10)
    assert runtime.run(image, Budget(memory_mb=runtime._memory[cascade.first, DEVICE] * 1.01)).selection.submodel != cascade.id
    assert [record.submodel for record in runtime.history][:3] == [cascade.id] * 3
    runtime.close()


CHEAP = Budget(min_accuracy=0.995)
"""What only the cascade keeps."""


def test_a_query_offers_it_with_its_stages_and_can_decline(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    chosen = document("select", bundle.path, "--min-accuracy", "0.995")
    assert (chosen["submodel"], chosen["feasible"], chosen["accuracy"]) == (cascade.id, True, 0.999)
    assert (chosen["stages"], chosen["threshold"]) == ([cascade.first, cascade.then], 0.8)
    assert f"a cascade: {cascade.first}, and where that is not sure (25%) {cascade.then}" in chosen["reason"]
    expected = costs_of(bundle.profile(DEVICE), bundle, cascade)
    assert (chosen["latency_ms"], chosen["memory_mb"]) == (expected.latency_ms.p50, expected.memory_mb)

    single = document("select", bundle.path, "--min-accuracy", "0.995", "--no-cascades", code=3)
    assert single["submodel"] in bundle.submodels
    assert (single["stages"], single["threshold"]) == ([], None)


def test_a_query_needs_no_numpy(ranked: tuple[Bundle, Cascade]) -> None:
    code = "import sys, sortednet; sortednet.app(sys.argv[1:], standalone_mode=False); print('numpy' in sys.modules)"
    query = [sys.executable, "-c", code, "select", str(ranked[0].path), "--min-accuracy", "0.995"]
    printed = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60).stdout
    assert ranked[1].id in printed
    assert printed.split()[-1] == "False"


def test_what_a_query_names_is_what_runs(ranked: tuple[Bundle, Cascade], tmp_path: Path) -> None:
    bundle, cascade = ranked
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    run = ["run", bundle.path, "--input", tmp_path / "x.npy", "--min-accuracy", "0.995", "--no-feedback"]
    ran = document(*run)
    assert ran["submodel"] == cascade.id
    assert ran["reason"] == document("select", bundle.path, "--min-accuracy", "0.995")["reason"]
    assert document(*run, "--no-cascades", code=3)["submodel"] in bundle.submodels
    without = Runtime(bundle, cascades=False, battery=lambda: None, sensors=False)
    assert (cascades_of(without), without.select(CHEAP).feasible) == ([], False)
    without.close()


def test_inspect_lists_it_with_its_costs(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    assert document("inspect", bundle.path)["cascades"] == [cascade.model_dump()]
    shown = call("inspect", bundle.path).stdout
    expected = costs_of(bundle.profile(DEVICE), bundle, cascade)
    (row,) = [line for line in shown.splitlines() if line.strip().startswith(f"{cascade.id} ") and "0.9990" in line]
    assert f"~{expected.latency_ms.p50:.3f}" in row
    assert "~: predicted" in shown
    assert f"{cascade.id} is a cascade: {cascade.first}, and where that is not sure (25%) {cascade.then}" in shown
    shutil.rmtree(bundle.path / "profiles")
    assert cascade.id in call("inspect", bundle.path).stdout


def test_it_is_offered_where_the_profile_knows_both_sub_models(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    profile = bundle.profile(DEVICE)
    some = {name: measured for name, measured in profile.submodels.items() if name != cascade.then}
    write_profile(profile.model_copy(update={"submodels": some}), bundle.path / "profiles" / f"{DEVICE}.json")
    assert document("select", bundle.path, "--min-accuracy", "0.995", code=3)["submodel"] in some


def test_over_rest_it_is_offered_to_those_who_ask_for_it(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    client = create_app([bundle]).test_client()
    profile = bundle.profile(DEVICE)
    sent = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "elsewhere"})})
    measured = {name: costs.model_dump() for name, costs in profile.submodels.items()}
    devices: list[dict[str, Any]] = [{}, {"device": DEVICE}, {"profile": sent.model_dump(mode="json")}, {"measured": measured}]
    for device in devices:
        query = {**device, "budget": {"min_accuracy": 0.995}}
        for _ in range(2):  # the second is remembered
            found = client.post("/v1/select", json=query | {"cascades": True}).get_json()
            assert (found["submodel"], found["feasible"]) == (cascade.id, True)
            assert (found["stages"], found["threshold"]) == ([cascade.first, cascade.then], 0.8)
            for single in (query, query | {"cascades": False}):
                alone = client.post("/v1/select", json=single).get_json()
                assert (alone["submodel"] in bundle.submodels, alone["stages"]) == (True, [])
    listed = client.get(f"/v1/bundles/{bundle.name}").get_json()
    assert listed == document("inspect", bundle.path)
    query = {"device": DEVICE, "budget": {"min_accuracy": 0.995}, "cascades": True}
    answers = client.post("/v1/select", json={"queries": [query, query | {"cascades": False}]}).get_json()["selections"]
    assert [answer["feasible"] for answer in answers] == [True, False]

    write_cascades(bundle, [])
    assert not client.post("/v1/select", json=query).get_json()["feasible"]
    write_cascades(bundle, [cascade.model_copy(update={"threshold": 0.7})])
    assert client.post("/v1/select", json=query).get_json()["threshold"] == 0.7
    (bundle.path / CASCADES_FILE).unlink()
    assert not client.post("/v1/select", json=query).get_json()["feasible"]


def test_over_rest_it_is_offered_on_devices_that_sent_their_profile(ranked: tuple[Bundle, Cascade], tmp_path: Path) -> None:
    bundle, cascade = ranked
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        client = create_app([bundle], store).test_client()
        profile = bundle.profile(DEVICE)
        phone = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "phone", "cpu": "Snapdragon"})})
        store.put(bundle.name, phone)
        (model,) = store.models(bundle.name, bundle.fingerprint)
        for device in ("phone", model.model):
            query = {"device": device, "budget": {"min_accuracy": 0.995}}
            assert client.post("/v1/select", json=query | {"cascades": True}).get_json()["submodel"] == cascade.id
            assert client.post("/v1/select", json=query).get_json()["submodel"] in bundle.submodels


def predicted(bundle: Bundle, client: FlaskClient | None = None) -> TestResponse:
    client = client or create_app([bundle], predict=PredictOptions()).test_client()
    spec = bundle.manifest.inputs[0]
    inputs = {spec.name: np.zeros([1, *spec.shape[1:]], np.float32).tolist()}
    return client.post("/v1/predict", json={"device": DEVICE, "inputs": inputs})


def test_predict_sees_one_that_is_written_while_it_serves(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    (bundle.path / CASCADES_FILE).unlink()
    client = create_app([bundle], predict=PredictOptions()).test_client()
    known = [predicted(bundle, client).status_code]
    runtimes = [client.application.extensions["sortednet.predictor"].opened(bundle)[0].runtime]
    for cascades in ([cascade], []):
        write_cascades(bundle, cascades)
        known.append(predicted(bundle, client).status_code)
        runtimes.append(client.application.extensions["sortednet.predictor"].opened(bundle)[0].runtime)
    assert known == [200] * 3
    assert [cascades_of(runtime) for runtime in runtimes] == [[], [cascade.id], []]


def test_a_damaged_file_is_one_line_on_the_command_line_and_a_problem_over_rest(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    client = create_app([bundle]).test_client()
    wrong = cascade.model_dump() | {"threshold": 1.5}
    (bundle.path / CASCADES_FILE).write_text(json.dumps([wrong]))
    for command in ("select", "inspect"):
        line = refused(command, bundle.path)
        assert "cascades.json: 0.threshold = 1.5: input should be less than or equal to 1" in line
    assert "0.threshold = 1.5" in refused("verify", bundle.path, code=1)
    assert "0.threshold = 1.5" in refused("serve", bundle.path, "--port", "0")
    assert call("select", bundle.path, "--no-cascades").exit_code == 0
    for answer in (client.post("/v1/select", json={"cascades": True}), client.get(f"/v1/bundles/{bundle.name}")):
        assert (answer.status_code, answer.mimetype) == (500, "application/problem+json")
        assert "0.threshold = 1.5" in answer.get_json()["detail"]
    assert predicted(bundle).status_code == 500
    assert client.post("/v1/select", json={}).status_code == 200


@pytest.mark.parametrize("others", [["w0.50-d1"], ["a", "a"]])
def test_names_that_are_not_its_own_are_refused(others: list[str], ranked: tuple[Bundle, Cascade]) -> None:
    """A query could not tell them apart, and a sub-model's own figures would be hidden."""
    bundle, cascade = ranked
    write_cascades(bundle, [cascade.model_copy(update={"id": name}) for name in others])
    with pytest.raises(BudgetError, match=rf"cascades.json: id = '{others[-1]}': .* allowed is each once"):
        read_cascades(bundle)


def test_a_bundle_that_cannot_be_written_to_is_an_error(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    (bundle.path / CASCADES_FILE).unlink()
    (bundle.path / CASCADES_FILE).mkdir()
    with pytest.raises(BudgetError, match=r"cascades.json: cannot be written to .*: Is a directory"):
        write_cascades(bundle, [cascade])
    assert [path.name for path in bundle.path.iterdir() if "partial" in path.name] == []
    with pytest.raises(BudgetError, match=r"cascades.json: cannot be read: Is a directory"):
        read_cascades(bundle)


def test_where_more_than_half_is_passed_on_the_median_is_both(ranked: tuple[Bundle, Cascade]) -> None:
    """A deadline at the median must not be met on paper alone: most of the runs ask both."""
    bundle, cascade = ranked
    profile = bundle.profile(DEVICE)
    often = cascade.model_copy(update={"escalation": 0.6})
    latency = costs_of(profile, bundle, often).latency_ms
    first, then = (profile.submodels[name].latency_ms for name in (cascade.first, cascade.then))
    assert latency.p50 == pytest.approx(first.p50 + then.p50)
    assert latency.mean == pytest.approx(first.mean + 0.6 * then.mean)


def test_runs_on_several_threads_are_told_apart(ranked: tuple[Bundle, Cascade], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sub-model takes a second for a batch of 64 and 2 ms for a single example; while the batch is with the second
    sub-model, the example is run from beginning to end."""
    bundle, cascade = ranked
    clock = threading.local()
    monkeypatch.setattr("time.perf_counter", lambda: getattr(clock, "now", 0.0))
    with_the_second, go_on = threading.Event(), threading.Event()

    class First(Fixed):
        def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
            clock.now = getattr(clock, "now", 0.0) + (1.0 if len(feed["input"]) == 64 else 0.002)
            return super().run(names, feed)

    class Then(Fixed):
        def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
            if len(feed["input"]) == 64:
                with_the_second.set()
                assert go_on.wait(30)
            return super().run(names, feed)

    runtime = Runtime(bundle, battery=lambda: None, sensors=False, load_ahead=False, cache=False)
    program = program_of(cascade, First(*[0.0] * 10), Then(*[1.0] * 10))
    runtime.pool._sessions = {(cascade.id, DEVICE): program}
    runtime.pool._last_used[cascade.id, DEVICE] = 0
    runtime._ran.add(program)
    assert runtime.controller is not None
    observed: dict[str, float] = {}
    monkeypatch.setattr(
        runtime.controller,
        "observe",
        lambda selection, latency_ms, now, *, ran: observed.__setitem__(threading.current_thread().name, latency_ms),
    )
    images = np.zeros((64, 1, 8, 8), np.float32)
    batch = threading.Thread(target=runtime.run, args=(images, CHEAP), name="batch")
    single = threading.Thread(target=runtime.run, args=(images[:1], CHEAP), name="single")
    batch.start()
    assert with_the_second.wait(30)
    single.start()
    single.join()
    go_on.set()
    batch.join()
    assert observed["single"] == pytest.approx(2.0)
    assert observed["batch"] == pytest.approx(1000.0 / 64)
    runtime.close()


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_that_are_infinite_are_asked_again_without_a_warning(batch: int, ranked: tuple[Bundle, Cascade]) -> None:
    both = program_of(ranked[1], Fixed(np.inf, np.inf), Fixed(1.0, 2.0))
    logits = both.run({"input": np.zeros((batch, 1), np.float32)}).outputs["logits"]
    np.testing.assert_array_equal(logits, [[1.0, 2.0]] * batch)


def test_its_costs_are_the_expected_ones_and_marked(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    profile = bundle.profile(DEVICE)
    measured = costs_of(profile, bundle, cascade)
    first, then = profile.submodels[cascade.first].latency_ms, profile.submodels[cascade.then].latency_ms
    assert measured.latency_ms.p50 == pytest.approx(first.p50 + 0.25 * then.p50)
    assert measured.latency_ms.p90 == pytest.approx(first.p90 + then.p90)  # one in four is passed on
    assert set(measured.source.values()) == {"predicted"}


@pytest.mark.parametrize("text", ["[", '[{"id": 1}]', "{}"])
def test_a_damaged_file_is_an_error(text: str, ranked: tuple[Bundle, Cascade]) -> None:
    bundle, _ = ranked
    (bundle.path / CASCADES_FILE).write_text(text)
    with pytest.raises(BudgetError, match=CASCADES_FILE):
        Runtime(bundle)


def test_one_that_names_what_is_not_there_is_an_error(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    write_cascades(bundle, [cascade.model_copy(update={"then": "w9"})])
    with pytest.raises(BudgetError, match="'w9', which is not in this bundle"):
        read_cascades(bundle)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": None}, "allowed is input, labels"),
        ({"more": np.zeros(60)}, "allowed is input, labels"),
        ({"input": np.zeros((60, 1, 8, 8))}, "'input': dtype float64; allowed is float32"),
        ({"input": np.zeros((60, 1, 7, 8), np.float32)}, "'input': shape (60, 1, 7, 8)"),
        ({"labels": np.zeros(59, np.int64)}, "labels: shape (59,); allowed is (60,)"),
        ({"labels": np.zeros((60, 1), np.int64)}, "labels: shape (60, 1); allowed is (60,)"),
        ({"labels": np.full(60, 0.5)}, "labels: dtype float64; allowed are whole numbers"),
        ({"labels": np.full(60, 10)}, "labels: 10 at position 0; allowed are 0 to 9"),
        ({"labels": np.array([*[0] * 59, -1])}, "labels: -1 at position 59; allowed are 0 to 9"),
        ({"input": np.zeros((2, 1, 8, 8), np.float32), "labels": np.zeros(2, np.int64)}, "2 examples; allowed are 3 or more"),
    ],
)
def test_data_that_are_none_are_one_line(change: dict[str, Any], named: str, bundle_path: Path, tmp_path: Path) -> None:
    arrays = {"input": np.zeros((60, 1, 8, 8), np.float32), "labels": np.zeros(60, np.int64)} | change
    np.savez(tmp_path / "data.npz", **{name: array for name, array in arrays.items() if array is not None})
    line = refused("cascade", bundle_path, "--data", tmp_path / "data.npz", "--floor", "0.5")
    assert named in line
    assert not (bundle_path / CASCADES_FILE).exists()


def test_a_data_set_is_its_validation_split(bundle_path: Path, digits: DataSet) -> None:
    inputs, labels = validation(Bundle(bundle_path), "digits")
    np.testing.assert_array_equal(inputs["input"], digits.validation.inputs[0].numpy())
    np.testing.assert_array_equal(labels, digits.validation.labels.numpy())


def test_from_the_command_line(bundle_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle_path, tmp_path / "bundle")
    data = str(judged(Bundle(path), tmp_path / "data.npz"))
    result = CliRunner().invoke(sortednet.app, ["cascade", str(path), "--data", data, "--floor", "0.8", "--json"])
    assert result.exit_code == 0, result.stderr
    cascade = Cascade.model_validate_json(result.stdout)
    assert cascade.accuracy >= 0.8
    assert read_cascades(Bundle(path)) == [cascade]
    for source in (data, "digits"):
        result = CliRunner().invoke(sortednet.app, ["cascade", str(path), "--data", source, "--floor", "0.9999"])
        assert result.exit_code == 2
        assert "no pair keeps it" in result.stderr


def test_a_data_set_of_another_shape_is_one_line(bundle_path: Path) -> None:
    line = refused("cascade", bundle_path, "--data", "mnist", "--floor", "0.9")
    assert "shape (750, 1, 28, 28); allowed is (batch, 1, 8, 8)" in line
