"""`audio-folder`: what sounds become, how they are split, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Generator

from examples.speech import write_speech
from exporter.bundle.sounds import SoundError, read_sound
from tests.helpers.sounds import RATE, tone, write_sounds
from trainer import TrainerError
from trainer.data import load_data
from trainer.data.audio import shift_in_time
from trainer.data.loading import Asked, read


@pytest.mark.parametrize("prefix", ["audio-folder:", ""])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_folder_of_sounds_becomes_waveforms(prefix: str, suffix: str, tmp_path: Path) -> None:
    paths = write_sounds(tmp_path, per_class=20, suffix=suffix)
    data = load_data(f"{prefix}{tmp_path}")
    assert (data.spec.input_shape, data.spec.classes, data.labels) == ((800,), 2, ("high", "low"))
    assert data.preprocessing == {"input": {"kind": "audio", "sample_rate": RATE, "samples": 800, "channels": 1}}
    assert data.record["sizes"] == {"train": 26, "validation": 6, "test": 8}
    written = {soundfile.read(path, dtype="float32")[0].tobytes(): data.labels.index(path.parent.name) for path in paths}
    found = {}
    for part in (data.train, data.validation, data.test):
        batch = part.batch(torch.arange(len(part)))
        waves = batch.inputs["input"]
        assert (waves.shape, waves.dtype, batch.targets.dtype) == ((len(part), 800), torch.float32, torch.int64)
        found |= {wave.numpy().tobytes(): int(label) for wave, label in zip(waves, batch.targets, strict=True)}
    assert found == written  # every file is in one part, as it is, with the label of its folder


def test_worker_processes_read_the_same(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    train = load_data(f"audio-folder:{tmp_path}").train
    order = [Asked(indices) for indices in torch.tensor([3, 0, 5, 1]).split(2)]
    here, there = (list(read(train, order, workers)) for workers in (0, 1))
    assert [batch.targets.tolist() for batch in here] == [batch.targets.tolist() for batch in there]
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.inputs["input"], other.inputs["input"])


def test_the_parts_are_those_of_the_folders(tmp_path: Path) -> None:
    for part, per_class in (("train", 10), ("val", 3), ("test", 4)):
        write_sounds(tmp_path / part, per_class=per_class)
    (tmp_path / "LICENSE").write_text("free")
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 6, 8)
    assert data.record["split"] == {"train": "train/", "validation": "val/", "test": "test/"}
    (tmp_path / "val").rename(tmp_path / "other")
    with pytest.raises(TrainerError, match=r"has other/ beside train/; allowed are train, validation and test"):
        load_data(f"audio-folder:{tmp_path}")
    (tmp_path / "other").rename(tmp_path.with_name("moved"))
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (17, 3, 8)
    assert data.record["split"] == {"train": "train/", "validation": "split off, by class", "test": "test/"}


def test_the_length_is_the_usual_one_or_as_asked_for(tmp_path: Path) -> None:
    paths = write_sounds(tmp_path, per_class=50)
    soundfile.write(paths[0], tone(100, 0.9), RATE)  # one that is far longer than the others
    data = load_data(str(tmp_path))
    assert (data.spec.input_shape, data.record["cut"]) == ((800,), 1)
    data = load_data(str(tmp_path), {"seconds": 0.25})
    assert (data.spec.input_shape, data.record["cut"]) == ((2000,), 1)
    assert data.record["options"] == {"seconds": 0.25}
    waves = data.train.batch(torch.arange(len(data.train))).inputs["input"]
    assert (waves[:, :799].abs().amax(dim=1) > 0.4).all()
    assert (waves[:, 800:] == 0).all(dim=1).sum() >= len(waves) - 1  # filled up with zeros at the end
    for path in paths:
        soundfile.write(path, np.zeros(11 * RATE, np.float32), RATE)
    with pytest.raises(TrainerError, match=r"take up to 11\.0 s; say how much of each is used, for example seconds=2"):
        load_data(str(tmp_path))
    assert load_data(str(tmp_path), {"seconds": 2}).spec.input_shape == (2 * RATE,)


def test_several_channels_are_averaged_and_the_record_says_so(tmp_path: Path) -> None:
    paths = write_sounds(tmp_path)
    left, right = tone(200), tone(300)
    soundfile.write(paths[0], np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    spec = {"sample_rate": RATE, "samples": 800}
    assert read_sound(paths[0], spec) == pytest.approx((left + right)[None] / 2, abs=1e-6)
    assert load_data(str(tmp_path)).record["mixed_down_to_mono"] == 1


def test_another_rate_is_refused_or_resampled_where_a_rate_is_asked_for(tmp_path: Path) -> None:
    paths = write_sounds(tmp_path)
    soundfile.write(paths[3], tone(500, 0.1, 22050), 22050)
    with pytest.raises(
        TrainerError, match=rf"{paths[3].name}' has 22050 samples per second, '.*{paths[0].name}' 8000; .*sample_rate=8000"
    ):
        load_data(str(tmp_path))
    data = load_data(str(tmp_path), {"sample_rate": RATE})
    assert (data.spec.input_shape, data.record["resampled"]) == ((800,), 1)
    resampled = read_sound(paths[3], data.preprocessing["input"])[0]
    assert resampled[100:700] == pytest.approx(tone(500)[100:700], abs=0.01)
    assert load_data(str(tmp_path), {"sample_rate": 4000}).spec.input_shape == (400,)


def test_a_cut_sound_is_resampled_as_the_whole(tmp_path: Path) -> None:
    """Only what is needed is read of a long file; the end of it must not hear that."""
    rng = np.random.default_rng(0)
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * rng.standard_normal(44100), 44100, subtype="FLOAT")
    whole = read_sound(path, {"sample_rate": 16000, "samples": 16000})
    cut = read_sound(path, {"sample_rate": 16000, "samples": 4000})
    assert cut == pytest.approx(whole[:, :4000], abs=1e-4)


# What is refused


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".wav", shorten, "truncated: 1500 bytes of samples, its header promises 1600"),
        (".wav", lambda path: path.write_text("no sound"), "cannot be read as a sound: Format not recognised"),
        (".wav", lambda path: path.write_bytes(b""), "cannot be read as a sound"),
        (".wav", lambda path: soundfile.write(path, np.zeros(0, np.float32), RATE), "holds no samples"),
        (".flac", lambda path: path.write_bytes(path.read_bytes()[:30]), "cannot be read as a sound"),
    ],
)
def test_a_damaged_file_is_named_before_the_training(
    suffix: str, damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    damaged = write_sounds(tmp_path, suffix=suffix)[7]
    damage(damaged)
    with pytest.raises(TrainerError, match=f"{damaged}': {message}"):
        load_data(f"audio-folder:{tmp_path}")
    with pytest.raises(SoundError, match=message):
        read_sound(damaged, {"sample_rate": RATE, "samples": 800})


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, "cannot be read to its end"),
        (
            lambda path: soundfile.write(path, np.full(800, np.nan), RATE, subtype="FLOAT", format="WAV"),
            "sample 0 is no finite",
        ),
        (Path.unlink, "cannot be read as a sound"),
    ],
)
def test_a_file_that_is_damaged_in_the_middle_of_an_epoch_is_named(
    damage: Callable[[Path], Any], message: str, workers: int, tmp_path: Path
) -> None:
    write_sounds(tmp_path, suffix=".flac")
    data = load_data(f"audio-folder:{tmp_path}")
    damaged = Path(data.train.path(4))
    damage(damaged)
    batches = read(data.train, [Asked(indices) for indices in torch.arange(6).split(2)], workers)
    assert [len(next(batches).targets), len(next(batches).targets)] == [2, 2]
    with pytest.raises(TrainerError, match=f"{damaged}': .*{message}"):
        next(batches)


def test_what_is_no_folder_of_sounds_is_refused(tmp_path: Path) -> None:
    def refused(message: str, folder: Path = tmp_path) -> None:
        with pytest.raises(TrainerError, match=message):
            load_data(f"audio-folder:{folder}")

    refused(r"sound folder '.*nothing' does not exist; expected is one folder per class", tmp_path / "nothing")
    refused("0 class folders; allowed are two and more")
    paths = write_sounds(tmp_path)
    (tmp_path / "low" / "notes.txt").write_text("taken on Monday")
    refused(r"low/notes\.txt' \(1 of 11 files there\): allowed are sound files \(\.wav, \.flac\)")
    (tmp_path / "low" / "notes.txt").unlink()
    (tmp_path / "low" / ".hidden").write_text("is left out")
    load_data(f"audio-folder:{tmp_path}")
    (tmp_path / "middle").mkdir()
    refused("middle': holds no file")
    (tmp_path / "middle").rmdir()
    paths[0].rename(tmp_path / "loose.wav")
    refused(r"loose\.wav lies in no class folder")


def test_a_class_that_the_training_files_lack_is_refused(tmp_path: Path) -> None:
    write_sounds(tmp_path / "train")
    write_sounds(tmp_path / "test", classes=("high", "shrill"))
    with pytest.raises(TrainerError, match=r"test/shrill': 'shrill' is no class of the training files"):
        load_data(f"audio-folder:{tmp_path}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds = 0: allowed are numbers above 0"),
        ({"seconds": "1"}, "seconds = '1'"),
        ({"sample_rate": 16000.5}, "sample_rate = 16000.5: allowed are whole numbers from 1"),
        ({"sample_rate": 0}, "sample_rate = 0"),
        ({"shift_seconds": -1}, "shift_seconds = -1"),
        ({"size": 32}, "has no option 'size'; allowed are seconds, sample_rate, shift_seconds"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_sounds(tmp_path)
    with pytest.raises(TrainerError, match=message):
        load_data(f"audio-folder:{tmp_path}", options)


# Augmentation


def test_sounds_are_moved_in_time_by_up_to_a_tenth_of_a_second(tmp_path: Path) -> None:
    write_sounds(tmp_path, per_class=20, seconds=0.5)
    data = load_data(str(tmp_path))
    before = data.train.batch(torch.arange(26))
    assert data.augment is not None
    inputs, targets = data.augment(before.inputs, before.targets, Generator().manual_seed(0))
    padded = torch.nn.functional.pad(before.inputs["input"], (800, 800))
    places = set()
    for moved, source in zip(inputs["input"], padded, strict=True):
        (place,) = (i for i in range(1601) if torch.equal(source[i : i + 4000], moved))
        places.add(place)
    assert len(places) > 20
    assert targets is before.targets
    assert load_data(str(tmp_path), {"shift_seconds": 0}).augment is None


def test_moving_in_time_is_reproducible() -> None:
    waves, labels = torch.rand(8, 50), torch.arange(8)
    once, again, other = (shift_in_time(5)({"input": waves}, labels, Generator().manual_seed(s))[0]["input"] for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


# The words of the example


def test_spoken_words_are_of_voices_that_only_one_part_has(tmp_path: Path) -> None:
    assert write_speech(tmp_path, words=("yes", "no")) == 208
    data = load_data(str(tmp_path))
    assert (data.labels, data.spec.input_shape) == (("no", "yes"), (6400,))
    assert data.record["sizes"] == {"train": 144, "validation": 32, "test": 32}
    paths = list(tmp_path.rglob("*.wav"))
    voices = {part: {p.stem.split("-")[-2] for p in paths if part in p.parts} for part in ("train", "validation", "test")}
    assert [len(found) for found in voices.values()] == [9, 2, 2]
    assert len(set.union(*voices.values())) == 13
    assert len({path.read_bytes() for path in paths}) == 208
