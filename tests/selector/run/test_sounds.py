"""A sound in, the names of classes out: `sortednet run --input word.wav`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import nn

from exporter import export
from exporter.bundle import Bundle
from selector import Runtime
from selector.run.files import read_inputs
from selector.run.inputs import InputError
from tests.helpers.commands import document, refused
from trainer import Family, NestedModel, SubModel

RATE, SAMPLES = 8000, 400
WORDS = ("yes", "no", "stop")


class Sounds(Family):
    """A layer over samples."""

    axes: ClassVar[dict[str, tuple[int, ...]]] = {"width": (4, 8)}

    def build(self, sub: SubModel) -> nn.Module:
        width = sub["width"]
        assert isinstance(width, int)
        return nn.Sequential(nn.Linear(SAMPLES, width), nn.ReLU(), nn.Linear(width, len(WORDS)))

    def example_inputs(self, batch_size: int) -> dict[str, torch.Tensor]:
        return {"samples": torch.rand(batch_size, SAMPLES)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    how = {"input": {"kind": "audio", "sample_rate": RATE, "samples": SAMPLES, "channels": 1}}
    out = tmp_path_factory.mktemp("bundles") / "words"
    return export(NestedModel(Sounds()), out, labels=WORDS, preprocessing=how, show_progress=False)


@pytest.fixture
def tone() -> NDArray[np.float32]:
    return (0.5 * np.sin(np.arange(300) / 7)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_sound_is_read_as_in_training_and_answered_by_name(
    suffix: str, bundle: Bundle, tone: NDArray[np.float32], tmp_path: Path
) -> None:
    path = tmp_path / f"word{suffix}"
    soundfile.write(path, tone, RATE, subtype="PCM_16")
    (array,) = dict(read_inputs(path, bundle)).values()
    assert (array.shape, array.dtype) == ((1, SAMPLES), np.float32)
    np.testing.assert_allclose(array[0, :300], tone, atol=1e-4)
    assert not array[0, 300:].any()
    runtime = Runtime(bundle, sensors=False, battery=lambda: None)
    wanted = runtime.run({"samples": array})
    runtime.close()
    ran = document("run", bundle.path, "--input", path)
    assert ran["answers"][0][0]["label"] == wanted.labels[0]
    np.testing.assert_allclose(ran["outputs"]["logits"], wanted.outputs["logits"], rtol=1e-5)


def test_what_is_no_sound_or_cannot_become_the_input_is_one_line(bundle: Bundle, bundle_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF\x10\x00\x00\x00WAVEfmt ")
    assert "broken.wav" in refused("run", bundle.path, "--input", broken)
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, np.zeros(10, np.float32), RATE)
    with pytest.raises(InputError, match=r"does not say how a sound becomes its input 'input'; allowed are \.npy and \.npz"):
        read_inputs(whole, Bundle(bundle_path))
