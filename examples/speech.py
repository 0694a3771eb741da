"""Spoken words for the keyword-spotting example: `python examples/speech.py OUT` writes a folder for `audio-folder:OUT`.

The speech is synthesised by eSpeak NG: ten words, eight accents of English, thirteen voices, speed and pitch at random, in
noise. Voices for validation and test are others than those for training. eSpeak NG comes with `pip install espeakng-loader`,
or as Debian's package espeak-ng.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import typer

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")  # as in Warden 2018, arXiv 1804.03209
ACCENTS = ("en", "en-us", "en-us-nyc", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
VOICES = {
    "train": ("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3"),
    "validation": ("m8", "f4"),
    "test": ("m7", "f5"),
}
SAMPLE_RATE, SECONDS = 8000, 0.8
WORDS_PER_MINUTE, PITCH, SIGNAL_TO_NOISE_DB = (120, 200), (20, 80), (5, 25)

Wave = np.ndarray[Any, np.dtype[np.float32]]


def write_speech(out: Path, takes: int = 1, seed: int = 0, words: tuple[str, ...] = WORDS) -> int:
    """Writes PART/WORD/ACCENT-VOICE-TAKE.wav, 16 bits, and returns how many: 104 for each word and take."""
    say, source, count = espeak(), random.Random(seed), 0
    for part, voices in VOICES.items():
        for word in words:
            (out / part / word).mkdir(parents=True, exist_ok=True)
            for accent in ACCENTS:
                for voice in voices:
                    for take in range(takes):
                        wave = say(word, f"{accent}+{voice}", source.randint(*WORDS_PER_MINUTE), source.randint(*PITCH))
                        path = out / part / word / f"{accent}-{voice}-{take}.wav"
                        soundfile.write(path, in_noise(wave, source), SAMPLE_RATE, subtype="PCM_16")
                        count += 1
    return count


def in_noise(wave: Wave, source: random.Random) -> Wave:
    """The wave somewhere in a clip of white noise; the largest sample is 0.5."""
    clip = np.zeros(round(SECONDS * SAMPLE_RATE), dtype=np.float32)
    wave = wave[: len(clip)]
    place = source.randint(0, len(clip) - len(wave))
    clip[place : place + len(wave)] = wave
    level = float(np.sqrt(np.mean(wave**2))) * 10 ** (-source.uniform(*SIGNAL_TO_NOISE_DB) / 20)
    clip += np.random.default_rng(source.getrandbits(32)).normal(0, level, len(clip)).astype(np.float32)
    return clip * np.float32(0.5 / np.abs(clip).max())


def espeak() -> Callable[[str, str, int, int], Wave]:
    """`say(text, voice, words_per_minute, pitch)`: what eSpeak NG makes of it, resampled, without silence around it."""
    library, data = _library()
    rate = library.espeak_Initialize(2, 0, data, 1 << 15)  # 2: AUDIO_OUTPUT_SYNCHRONOUS, nothing is played; 1 << 15: never exit
    if rate <= 0:
        raise RuntimeError("eSpeak NG cannot be started: its data are missing")
    if hasattr(library, "espeak_ng_SetRandSeed"):  # from 1.52 on: this program writes the same files every time
        library.espeak_ng_SetRandSeed(ctypes.c_long(0))
    pieces: list[Wave] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32))
        return 0

    library.espeak_SetSynthCallback(collect)

    def say(text: str, voice: str, words_per_minute: int, pitch: int) -> Wave:
        pieces.clear()
        if library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"eSpeak NG has no voice {voice!r}")
        library.espeak_SetParameter(1, words_per_minute, 0)
        library.espeak_SetParameter(3, pitch, 0)
        content = text.encode() + b"\0"
        library.espeak_Synth(content, ctypes.c_size_t(len(content)), 0, 1, 0, 1, None, collect)  # 1s: by character, UTF-8
        wave = np.concatenate(pieces)
        loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
        resampled: Wave = soxr.resample(wave[loud[0] : loud[-1] + 1], rate, SAMPLE_RATE)
        return resampled

    return say


def _library() -> tuple[ctypes.CDLL, bytes | None]:
    """eSpeak NG, and where its data lie; None: where it expects them."""
    try:
        import espeakng_loader
    except ModuleNotFoundError:
        found = ctypes.util.find_library("espeak-ng")
        if found is None:
            raise SystemExit("eSpeak NG is not installed: pip install espeakng-loader, or apt-get install espeak-ng") from None
        return ctypes.CDLL(found), None
    return ctypes.CDLL(espeakng_loader.get_library_path()), espeakng_loader.get_data_path().encode()


def main(out: Path, takes: int = 1) -> None:
    """Writes the folder."""
    typer.echo(f"{write_speech(out, takes)} clips of {len(WORDS)} words in {out}")


if __name__ == "__main__":
    typer.run(main)
