"""What pulling one sub-model out of a bundle of 160 transfers, against the bytes that this sub-model alone needs."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.adapt.bundles import WORK, trained
from benchmarks.service.running import running
from exporter import export
from exporter.bundle import Bundle
from exporter.bundle.verify import self_test
from selector.fetch.pull import pull
from selector.fetch.transfer import Client
from trainer import Family, NestedModel, SubModel
from trainer.run import load_run

NOTES = {
    "pull_bytes_ratio": "the largest of three sub-models, the smallest one included: all bytes that `sortednet pull` sends "
    "and receives over TCP, headers and requests too, over the bytes of a bundle exported from the extracted sub-model as a "
    "network of its own, whose weights file holds nothing else; same self-test inputs, no record of results",
    "pull_bytes_smallest": "sent and received for the smallest sub-model",
    "pull_bytes_ratio_to_shared_export": "the same over the bytes of export(..., submodels=[sub]), whose weights file is the "
    "full model's: the mean of the three",
    "pull_bytes_ratio_to_whole": "of the smallest sub-model: over the bytes of the bundle of 160",
}


def measure() -> dict[str, float]:
    bundle = trained()
    assert len(bundle.submodels) == 160
    nested = load_run(WORK / "run").nested
    by_size = sorted(nested.submodels, key=lambda sub: bundle.submodel(sub.id).params)
    ratios, shared, transferred = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        subsets = {"SORTEDNET_SUBSETS": str(scratch / "subsets")}
        with (
            running("sortednet", "serve", bundle.path, environment=subsets) as service,
            _counting(service.port) as (proxy, counted),
        ):
            for sub in (by_size[0], by_size[40], by_size[80]):
                counted.clear()
                out = scratch / f"pulled-{sub.id}"
                pull(Client(f"http://127.0.0.1:{proxy}"), bundle.name, out, submodels=[sub.id])
                self_test(Bundle(out))
                transferred.append(sum(counted))
                alone = _exported_alone(nested, sub, bundle, scratch / f"alone-{sub.id}")
                ratios.append(transferred[-1] / alone.bytes_total)
                data = _selftest_data(bundle)
                again = export(nested, scratch / f"shared-{sub.id}", submodels=[sub], test_data=data, show_progress=False)
                shared.append(transferred[-1] / again.bytes_total)
    return {
        "pull_bytes_ratio": max(ratios),
        "pull_bytes_smallest": transferred[0],
        "pull_bytes_ratio_to_shared_export": sum(shared) / len(shared),
        "pull_bytes_ratio_to_whole": transferred[0] / bundle.bytes_total,
    }


class _Alone(Family):
    """A family of one sub-model."""

    def __init__(self, family: Family, sub: SubModel) -> None:
        self._family, self.dynamic_axes = family, family.dynamic_axes
        self.axes = {name: (value,) for name, value in sub.axes.items()}

    def build(self, sub: SubModel) -> nn.Module:
        return self._family.build(sub)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return self._family.example_inputs(batch_size)


def _exported_alone(nested: NestedModel, sub: SubModel, bundle: Bundle, out: Path) -> Bundle:
    alone = NestedModel(_Alone(nested.family, sub)).eval()
    alone.full.load_state_dict(nested.extract(sub).state_dict())
    alone.calibration[sub] = nested.calibration[sub]
    training = {key: value for key, value in bundle.manifest.training.items() if key != "results"}
    return export(alone, out, test_data=_selftest_data(bundle), training=training, show_progress=False)


def _selftest_data(bundle: Bundle) -> tuple[Tensor, Tensor]:
    """The inputs of the bundle's own self-test, so that the one file compresses as the other."""
    (images,) = bundle.selftest_inputs.values()
    return torch.from_numpy(images), torch.zeros(len(images), dtype=torch.long)


@contextmanager
def _counting(port: int) -> Iterator[tuple[int, list[int]]]:
    """A port that passes everything on to `port`, and the numbers of bytes that it has passed on."""
    counted: list[int] = []

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                counted.append(len(chunk))
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one of the two has gone

    def accept(server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            service = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, service), (service, client)):
                threading.Thread(target=pass_on, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield server.getsockname()[1], counted
        server.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    for key, figure in measure().items():
        print(f"{key:45} {figure:.4g}")
