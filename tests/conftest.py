"""What many tests share: a small nested model and its bundles, whose accuracies and profile are written down.

Nothing here is trained or measured but `trained`: what a training gives, and how fast a machine is, decide no test.
torch is imported where it is needed: `tests/aarch64.sh` runs the runtime's tests without it, on a bundle made elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from device_profiles import DeviceInfo, LatencyMs, Profile
from exporter.bundle import Bundle
from selector.run.cache import FOLDER_VARIABLE
from tests.helpers.figures import DEVICE, profiled, written_down

if TYPE_CHECKING:
    from trainer import Family, NestedModel
    from trainer.data import DataSet

__all__ = ["DEVICE"]  # among others: tests take it from here

DATABASES = ("sqlite", "postgresql")
NO_POSTGRESQL = "PostgreSQL is not installed here (Debian: apt-get install postgresql)"
BUNDLE_VARIABLE = "SORTEDNET_TEST_BUNDLE"
THREADS_VARIABLE = "SORTEDNET_TEST_THREADS"


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as `sortednet train` does
# How long an example takes is a matter of what else runs.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


LONG = ("test_readme.py", "test_extending.py", "test_day.py", "test_examples.py", "test_device_install.py", "test_run.py")
"""Files of few long tests. They are begun first: at the end one process would run them while the other has nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """Two at most, as on the machines that the tests run on, or as many as the variable says."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # two processes share the tests
        os.environ["OMP_NUM_THREADS"] = "1"  # of those that tests start
    if BUNDLE_VARIABLE in os.environ:
        return
    import torch

    torch.set_num_threads(int(os.environ.get(THREADS_VARIABLE, "2")))


@pytest.fixture(autouse=True, scope="session")
def _a_battery_is_waited_for() -> Iterator[None]:
    """However busy the machine is: a run that had its turn before the battery's reader would go on without."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("selector.adapt.battery_reader.WAIT_SECONDS", 60.0)
        patched.setattr("selector.adapt.battery_reader.POWER_SUPPLY", Path("/nowhere"))  # not that of whoever tests
        yield


@pytest.fixture(autouse=True, scope="session")
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """And a store. Also of the processes that tests start."""
    os.environ[FOLDER_VARIABLE] = str(tmp_path_factory.mktemp("cache"))
    os.environ["SORTEDNET_STORE"] = f"sqlite:///{tmp_path_factory.mktemp('store') / 'store.db'}"
    os.environ["SORTEDNET_SUBSETS"] = str(tmp_path_factory.mktemp("subsets"))


@pytest.fixture(scope="session")
def digits() -> DataSet:
    from trainer.data import load_data

    return load_data("digits")


@pytest.fixture(scope="session")
def trained(digits: DataSet) -> NestedModel:
    """For tests of what int8 does to accuracies; others take `untrained`. Tests must not change it."""
    import torch

    from trainer import NestedModel, fit

    torch.manual_seed(0)
    nested = NestedModel(family_for(digits))
    fit(nested, digits.train, epochs=8, batch_size=32, augment=digits.augment, show_progress=False)
    return nested


def family_for(digits: DataSet) -> Family:
    """A small ResNet of six sub-models."""
    from trainer.families import ResNet

    return ResNet.for_data(digits.spec, channels=[16, 24, 32], blocks=[2, 2, 2], widths=[0.5, 0.75, 1.0], depths=[1, 2])


@pytest.fixture(scope="session")
def untrained(digits: DataSet) -> NestedModel:
    """Six sub-models of random weights, calibrated. Tests must not change it."""
    from tests.helpers.exports import calibrated

    return calibrated(family_for(digits))


@pytest.fixture(scope="session")
def bundle_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `untrained`, with accuracies and a profile that are written down (`tests.helpers.figures`).

    Tests must not change it; copy it to damage it.
    """
    path = tmp_path_factory.mktemp("bundles") / "digits"
    if given := os.environ.get(BUNDLE_VARIABLE):
        return written_down(Path(shutil.copytree(given, path)))
    return written_down(exported(request.getfixturevalue("untrained"), request.getfixturevalue("digits"), path))


@pytest.fixture(scope="session")
def untrained_path(untrained: NestedModel, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in both precisions."""
    return written_down(exported(untrained, digits, tmp_path_factory.mktemp("untrained") / "digits", int8=True))


@pytest.fixture(scope="session")
def words_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of texts of any length, whose profile `bench` knows what several lengths cost (`tests.helpers.lengths`). Tests
    must not change it."""
    from tests.helpers.lengths import words_bundle

    return words_bundle(tmp_path_factory.mktemp("lengths") / "words").path


def exported(nested: NestedModel, digits: DataSet, path: Path, *, int8: bool = False) -> Path:
    """Writes the bundle, with its accuracies on the test split and a profile that is made up."""
    from exporter import export

    calibration = digits.train if int8 else None
    export(nested, path, test_data=digits.test, int8_calibration=calibration, show_progress=False)
    return profiled(path)


def device_info(**given: Any) -> DeviceInfo:
    """A made-up device; `given` are fields that matter to the test."""
    usual = {"name": "bench", "cpu": "cpu", "cores": 2, "threads": 1, "ram_mb": 1024, "os": "os", "onnxruntime": "1"}
    return DeviceInfo(**{**usual, "execution_provider": "CPUExecutionProvider", **given})


def latency(ms: float) -> LatencyMs:
    """The same at every percentile."""
    return LatencyMs(p50=ms, p90=ms, p99=ms, mean=ms, n=10)


def taking(profile: Profile, ms: float) -> Profile:
    """The profile, but every sub-model takes so long."""
    costs = {name: cost.model_copy(update={"latency_ms": latency(ms)}) for name, cost in profile.submodels.items()}
    return profile.model_copy(update={"submodels": costs})


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle(bundle_path)


@pytest.fixture
def images(bundle: Bundle) -> NDArray[Any]:
    """Two examples, as the bundle takes them."""
    (name,) = (spec.name for spec in bundle.manifest.inputs)
    return bundle.selftest_inputs[name][:2]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real server, which holds a database for every store."""
    from benchmarks.service.postgres import cluster, programs

    if programs() is None:
        pytest.skip(NO_POSTGRESQL)
    with cluster(durable=False) as url:
        yield url


def empty_store(request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of a new store in the database that the fixture's parameter names."""
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'store.db'}"
    import sqlalchemy as sa

    server = sa.make_url(request.getfixturevalue("postgresql"))
    engine = sa.create_engine(server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        count = connection.execute(sa.text("SELECT count(*) FROM pg_database")).scalar_one()
        connection.execute(sa.text(f"CREATE DATABASE test{count}"))
    engine.dispose()
    return server.set(database=f"test{count}").render_as_string(hide_password=False)
