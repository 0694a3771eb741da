"""What many tests share: a small nested model trained on real data, and its bundle, measured.

torch is imported where it is needed: `tests/aarch64.sh` runs the runtime's tests without it, on a bundle made elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from numpy.typing import NDArray

from device_profiles import DeviceInfo, LatencyMs, Profile, write_profile
from exporter.bundle import Bundle
from selector.run.cache import FOLDER_VARIABLE
from selector.run.profiling import profile_bundle

if TYPE_CHECKING:
    from trainer import NestedModel
    from trainer.data import DataSet

DEVICE = "test-device"
DATABASES = ("sqlite", "postgresql")
NO_POSTGRESQL = "PostgreSQL is not installed here (Debian: apt-get install postgresql)"
BUNDLE_VARIABLE = "SORTEDNET_TEST_BUNDLE"


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as `sortednet train` does


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    """Two threads at most, as on the machines that the tests run on."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # two processes share the tests
        os.environ["OMP_NUM_THREADS"] = "1"  # of those that tests start
    if BUNDLE_VARIABLE in os.environ:
        return
    import torch

    torch.set_num_threads(2)


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
    """Tests must not change it."""
    return train(digits)


def train(digits: DataSet) -> NestedModel:
    """Six sub-models of a small ResNet, trained for a few epochs and calibrated."""
    import torch

    from trainer import NestedModel, fit
    from trainer.families import ResNet

    family = ResNet.for_data(digits.spec, channels=[16, 24, 32], blocks=[2, 2, 2], widths=[0.5, 0.75, 1.0], depths=[1, 2])
    torch.manual_seed(0)
    nested = NestedModel(family)
    fit(nested, digits.train, epochs=8, batch_size=32, augment=digits.augment, show_progress=False)
    return nested


@pytest.fixture(scope="session")
def bundle_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured bundle. Tests must not change it; copy it to damage it."""
    path = tmp_path_factory.mktemp("bundles") / "digits"
    if given := os.environ.get(BUNDLE_VARIABLE):
        return measured(Path(shutil.copytree(given, path)))
    return exported(request.getfixturevalue("trained"), request.getfixturevalue("digits"), path)


@pytest.fixture(scope="session")
def untrained(digits: DataSet) -> NestedModel:
    """Six sub-models of random weights, for tests that ask for equal answers, not for good ones. Tests must not change it."""
    from tests.exporter.test_export import calibrated
    from trainer.families import ResNet

    channels, blocks = [8, 12, 16], [2, 2, 2]
    return calibrated(ResNet.for_data(digits.spec, channels=channels, blocks=blocks, widths=[0.5, 0.75, 1.0], depths=[1, 2]))


@pytest.fixture(scope="session")
def untrained_path(untrained: NestedModel, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in both precisions, measured. Tests must not change it; copy it to damage it."""
    return exported(untrained, digits, tmp_path_factory.mktemp("untrained") / "digits", int8=True)


def exported(trained: NestedModel, digits: DataSet, path: Path, *, int8: bool = False) -> Path:
    """Writes the bundle and measures it."""
    from exporter import export

    calibration = digits.train if int8 else None
    export(trained, path, test_data=digits.test, int8_calibration=calibration, show_progress=False)
    return measured(path)


def measured(path: Path) -> Path:
    profile = profile_bundle(Bundle(path), device=DEVICE, threads=1, repeats=10, show_progress=False)
    write_profile(profile, path / "profiles" / f"{DEVICE}.json")
    return path


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
    """Two examples, as the measured bundle takes them."""
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
