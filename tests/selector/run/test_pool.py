"""`SessionPool` and how `Runtime` uses it: a memory budget that is kept, runs that do not wait, sessions opened once."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle
from exporter.bundle.session import SessionOptions
from selector import Budget, BudgetError, Runtime
from tests.helpers.pools import MEMORY, pool_of
from tests.helpers.runtimes import images, opened_by, quiet_runtime, runtime_of, stock, submodels_of, with_memory


def test_a_session_is_opened_once_and_kept() -> None:
    pool, opener = pool_of()
    assert pool.get("a") is None
    assert [pool.load(name) for name in "abab"] == ["A", "B", "A", "B"]
    assert pool.get("a") == "A"
    assert opener.opened == ["a", "b"]
    assert set(pool.loaded) == {"a", "b"}
    assert pool.memory_used_mb == 30
    pool.close()
    assert pool.get("a") is None


def test_the_least_recently_used_are_closed_for_a_further_one() -> None:
    pool, _ = pool_of(60)
    for name in "abc":
        pool.load(name)
    pool.get("a")
    pool.load("d")  # b is older than c, and not enough
    assert set(pool.loaded) == {"a", "d"}
    assert pool.memory_used_mb == 50
    pool.close()


def test_loading_ahead_closes_nothing_that_is_to_be_kept() -> None:
    pool, opener = pool_of(60)
    pool.load("b")
    pool.load("c")
    pool.load_ahead(["d"], keep=("b", "c"))
    pool.settle()
    assert opener.opened == ["b", "c"]
    pool.load_ahead(["a", "d"], keep=("b",))
    pool.settle()
    assert opener.opened == ["b", "c", "a"]  # d fits beside neither
    pool.load_ahead(["d"], keep=("a",))
    pool.settle()
    assert set(pool.loaded) == {"a", "d"}
    pool.close()


def test_who_needs_a_session_that_is_being_opened_waits_for_that_one() -> None:
    pool, opener = pool_of()
    opener.gate.clear()
    pool.load_ahead(["a"])
    assert opener.waiting.acquire(timeout=30)
    assert pool.get("a") is None
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(pool.load("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    opener.gate.set()
    for thread in threads:
        thread.join()
    assert found == ["A"] * 4
    assert opener.opened == ["a"]
    pool.close()


def test_a_session_that_cannot_be_opened_is_an_error_every_time_and_costs_nothing() -> None:
    pool, _ = pool_of(60)
    pool.load_ahead(["broken", "a"])
    pool.settle()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot be opened"):
            pool.load("broken")
    assert pool.get("a") == "A"
    assert pool.memory_used_mb == MEMORY["a"]
    pool.close()


def test_one_that_cannot_be_opened_is_not_tried_again_by_every_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("selector.run.pool.time.monotonic", lambda: now[0])
    pool, opener = pool_of()

    def tried() -> int:
        pool.load_ahead(["broken"])
        pool.settle()
        count = 0
        while opener.waiting.acquire(blocking=False):
            count += 1
        return count

    assert [tried() for _ in range(5)] == [1, 0, 0, 0, 0]
    assert [record.getMessage() for record in caplog.records] == ["broken cannot be opened: cannot be opened"]
    now[0] = 61.0
    assert [tried() for _ in range(3)] == [1, 0, 0]
    with pytest.raises(RuntimeError, match="cannot be opened"):
        pool.load("broken")  # whoever has to have it is told
    pool.close()


def test_the_budget_is_kept_under_random_switching_from_many_threads() -> None:
    pool, opener = pool_of(60)
    used: list[float] = []

    def switch(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(500):
            name = order.choice("abcd")
            if order.random() < 0.3:
                pool.load_ahead([name], keep=(order.choice("abcd"),))
            else:
                assert pool.load(name) == name.upper()
            used.append(pool.memory_used_mb)

    threads = [threading.Thread(target=switch, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.settle()
    assert len(used) == 2000
    assert len(opener.opened) > 50
    assert max(used) <= 60
    pool.close()


def test_a_run_takes_what_is_open_while_the_wanted_one_is_opened(ranked: Path) -> None:
    names = submodels_of(ranked)
    runtime = quiet_runtime(ranked)
    first = runtime.run(images(1), Budget(latency_ms=1)).selection
    assert first.submodel == names[0]  # nothing was open, so that this one was waited for
    runtime.pool.settle()
    assert opened_by(runtime) == set(names[:2])  # and its neighbour

    gate, real = threading.Event(), runtime.pool._open
    runtime.pool._open = lambda key: (gate.wait(30), real(key))[1]
    for _ in range(20):
        result = runtime.run(images(1), Budget(latency_ms=6))
        assert result.selection.submodel == names[1]
        assert result.selection.feasible
        assert result.selection.reason.endswith(f"that is open; {names[5]} is being opened")
    gate.set()
    runtime.pool.settle()
    result = runtime.run(images(2), Budget(latency_ms=6))
    assert result.selection.submodel == names[5]
    np.testing.assert_allclose(result.outputs["logits"], stock(runtime.bundle, names[5], images(2)), rtol=1e-5, atol=1e-5)
    runtime.pool.settle()
    assert opened_by(runtime) == {names[0], names[1], names[4], names[5]}
    runtime.close()


def test_a_run_waits_where_nothing_open_fits_the_budget(ranked: Path) -> None:
    names = submodels_of(ranked)
    runtime = quiet_runtime(ranked)
    assert runtime.run(images(1)).selection.submodel == names[5]
    assert runtime.run(images(1), Budget(latency_ms=2)).selection.submodel == names[1]
    runtime.close()


def test_a_runtime_stays_within_its_memory(ranked: Path) -> None:
    names = submodels_of(ranked)
    with_memory(ranked, {name: 10.0 * n for n, name in enumerate(names, start=1)})
    runtime = quiet_runtime(ranked, memory_mb=45)
    order, chosen = random.Random(0), Counter[str]()
    for _ in range(300):
        result = runtime.run(images(1), Budget(latency_ms=order.randint(1, 6)))
        assert result.selection.feasible
        assert runtime.pool.memory_used_mb <= 45
        chosen[result.selection.submodel] += 1
    assert set(chosen) <= set(names[:4])  # the other two take more than there is
    assert len(chosen) > 1
    runtime.close()
    with pytest.raises(BudgetError, match="memory_mb = 5: no sub-model fits; the smallest takes 10 MB"):
        Runtime(ranked, feedback=False, memory_mb=5)


def test_with_room_for_one_alone_the_wanted_one_replaces_it(ranked: Path) -> None:
    names = submodels_of(ranked)
    with_memory(ranked, dict.fromkeys(names, 10.0))
    runtime = quiet_runtime(ranked, memory_mb=15)
    for limit in (1, 6, 3, 6):
        assert runtime.run(images(1), Budget(latency_ms=limit)).selection.submodel == names[limit - 1]
        assert opened_by(runtime) == {names[limit - 1]}
    runtime.close()


def test_memory_that_was_not_measured_is_estimated(ranked: Path) -> None:
    with_memory(ranked, dict.fromkeys(submodels_of(ranked)))
    bundle = Bundle(ranked)
    largest = max(entry.params for entry in bundle.submodels.values())
    runtime = quiet_runtime(ranked, memory_mb=8 * largest / 2**20 * 0.99)
    entry = bundle.submodels[runtime.run(images(1)).selection.submodel]
    assert entry.params < largest
    runtime.close()


def test_other_threads_than_the_profile_was_measured_with_are_warned_about(
    ranked: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime_of(ranked).close()
    assert caplog.records == []
    runtime_of(ranked, threads=2).close()
    assert "was measured with 1 threads, these sessions use 2" in caplog.text


def test_without_the_cache_nothing_is_written(ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORTEDNET_CACHE", str(tmp_path / "cache"))
    plain = runtime_of(ranked, cache=False).run(images(3)).outputs["logits"]
    assert not (tmp_path / "cache").exists()
    cached = runtime_of(ranked).run(images(3)).outputs["logits"]
    assert (tmp_path / "cache").exists()
    np.testing.assert_allclose(cached, plain, rtol=1e-5, atol=1e-6)
    shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("provider", ["cuda", "TensorrtExecutionProvider", "gpu"])
def test_an_execution_provider_that_is_not_here_is_named(provider: str, ranked: Path) -> None:
    with pytest.raises(ValueError, match=rf"provider = '{provider}': this ONNX Runtime \(.*\) has .*CPU"):
        runtime_of(ranked, provider=provider)
    assert runtime_of(ranked, provider="cpu").run(images(1)).outputs["logits"].shape == (1, 10)


def test_several_profiles_of_a_device_make_one_frontier(ranked: Path) -> None:
    """The second was measured with two threads: twice as fast, except for the three smallest."""
    from device_profiles import write_profile
    from tests.conftest import DEVICE

    names, profile = submodels_of(ranked), Bundle(ranked).profile(DEVICE)
    measured = {}
    for place, name in enumerate(names):
        times = {key: value * (2 if place < 3 else 0.5) for key, value in profile.submodels[name].latency_ms if key != "n"}
        latency = profile.submodels[name].latency_ms.model_copy(update=times)
        measured[name] = profile.submodels[name].model_copy(update={"latency_ms": latency})
    device = profile.device.model_copy(update={"name": "two-threads", "threads": 2})
    faster = profile.model_copy(update={"device": device, "submodels": measured})
    write_profile(faster, ranked / "profiles" / "two-threads.json")

    runtime = quiet_runtime(ranked, device=[DEVICE, "two-threads"], load_ahead=False)
    for limit, submodel, of in ((1, names[0], DEVICE), (3, names[5], "two-threads"), (2, names[3], "two-threads")):
        result = runtime.run(images(1), Budget(latency_ms=limit))
        assert (result.selection.submodel, result.selection.device) == (submodel, of)
    assert set(runtime.pool.loaded) == {(names[0], DEVICE), (names[5], "two-threads"), (names[3], "two-threads")}
    threads = {key: runtime.program(*key).session.get_session_options().intra_op_num_threads for key in runtime.pool.loaded}
    assert threads[names[0], DEVICE] == profile.device.threads
    assert threads[names[5], "two-threads"] == 2
    runtime.close()


def test_without_a_profile_the_memory_is_kept_too(ranked: Path) -> None:
    shutil.rmtree(ranked / "profiles")
    largest = max(entry.params for entry in Bundle(ranked).submodels.values())
    runtime = quiet_runtime(ranked, memory_mb=8 * largest / 2**20 * 0.99)
    assert Bundle(ranked).submodels[runtime.run(images(1)).selection.submodel].params < largest
    runtime.close()


@pytest.mark.parametrize(
    ("provider", "threads", "chosen"),
    [
        ("CPU", 3, {}),
        ("CUDA", 3, {}),
        ("OpenVINO", 3, {"num_of_threads": "3"}),
        ("OpenVINO", 0, {}),
        ("Xnnpack", 1, {"intra_op_num_threads": "1"}),
    ],
)
def test_a_provider_with_threads_of_its_own_is_told_how_many(
    provider: str, threads: int, chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{provider}ExecutionProvider"
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [name, "CPUExecutionProvider"])
    first, *others = SessionOptions(threads, provider.lower()).providers
    assert first == (name, chosen)
    assert others == ([] if provider == "CPU" else [("CPUExecutionProvider", {})])
