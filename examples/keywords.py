"""Keyword spotting: which of ten words is said, from the samples of a sound.

What it shows: the gates of a GRU or an LSTM lie side by side in one parameter, each a prefix of its own (`fused_blocks`); the
graph takes raw samples, because what makes a spectrum of them is the network's first layer; sounds come from a folder, and
`sortednet run BUNDLE --input yes.wav` says the word.

    python examples/keywords.py                     synthesises the sounds first: they are eSpeak NG's, no person's
    sortednet train --family keywords:Keywords --data audio-folder:PATH --out run --optimizer adamw        (in examples/)

Shapes: N sounds, T samples, F frames, B filters.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from math import pi
from pathlib import Path
from typing import Any

import torch
from speech import SAMPLE_RATE, SECONDS, WORDS, write_speech
from torch import Tensor, nn
from torch.nn import functional as F
from whole_path import as_script, whole_path

from trainer import DataSpec, Family, SubModel, TrainerError

FILTERS, WINDOW, HOP = 32, 256, 96  # samples: 32 ms every 12 ms at 8 kHz
LOWEST, HIGHEST = 100.0, 0.45  # Hz, and of the sample rate
GATES = {"GRU": 3, "LSTM": 4}


class _Spectrum(nn.Module):
    """The logarithm of the energy in bands spaced as the ear hears; for each a pair of filters, a cosine and a sine in a
    window, which are learnt from there on (after Zeghidour et al. 2021, arXiv 2101.08596)."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        ends = [2595 * torch.log10(torch.tensor(1 + hertz / 700)) for hertz in (LOWEST, HIGHEST * sample_rate)]  # in mel
        hertz = 700 * (10 ** (torch.linspace(float(ends[0]), float(ends[1]), FILTERS) / 2595) - 1)
        phase = 2 * pi * hertz[:, None] * torch.arange(WINDOW) / sample_rate
        waves = torch.cat([phase.cos(), phase.sin()]) * torch.hann_window(WINDOW) / WINDOW**0.5
        self.filters = nn.Parameter(waves[:, None])  # (2 B, 1, WINDOW)
        self.norm = nn.BatchNorm1d(FILTERS)

    def forward(self, samples: Tensor) -> Tensor:  # (N, T) -> (N, F, B)
        cosine, sine = F.conv1d(samples[:, None], self.filters, stride=HOP).chunk(2, dim=1)
        energies: Tensor = self.norm((cosine**2 + sine**2 + 1e-6).log())
        return energies.transpose(1, 2)


class _Network(nn.Module):
    def __init__(self, family: Keywords, width: int, layers: int) -> None:
        super().__init__()
        self.spectrum = _Spectrum(family.sample_rate)
        self.rnn = getattr(nn, family.cell)(FILTERS, width, layers, batch_first=True)
        self.head = nn.Linear(width, family.classes)

    def forward(self, samples: Tensor) -> Tensor:  # (N, T) -> (N, classes)
        states, _ = self.rnn(self.spectrum(samples))
        logits: Tensor = self.head(states.mean(dim=1))
        return logits


class Keywords(Family):
    """Axes: width is the size of the state, layers how many recurrent layers lie on each other."""

    def __init__(
        self,
        samples: int = round(SECONDS * SAMPLE_RATE),
        classes: int = len(WORDS),
        cell: str = "GRU",
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        if cell not in GATES:
            raise TrainerError(f"cell = {cell!r}: allowed are {', '.join(GATES)}")
        self.samples, self.classes, self.cell, self.sample_rate = samples, classes, cell, sample_rate
        self.axes = {"width": (16, 32, 64, 96), "layers": (1, 2)}

    @classmethod
    def for_data(cls, spec: DataSpec, **settings: Any) -> Keywords:
        return cls.configured({"samples": spec.input_shape[0], "classes": spec.classes, **settings})

    def config(self) -> dict[str, Any]:
        return {"samples": self.samples, "classes": self.classes, "cell": self.cell, "sample_rate": self.sample_rate}

    def build(self, sub: SubModel) -> nn.Module:
        width, layers = sub["width"], sub["layers"]
        assert isinstance(width, int)
        assert isinstance(layers, int)
        return _Network(self, width, layers)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"samples": torch.rand(batch_size, self.samples) - 0.5}

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        width, layers = sub["width"], sub["layers"]
        assert isinstance(width, int)
        assert isinstance(layers, int)
        gates = {0: (width,) * GATES[self.cell]}
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return {f"rnn.{kind}_l{layer}": gates for kind in kinds for layer in range(layers)}


def main() -> None:
    """Synthesises the sounds, trains the network on them, exports it, measures it and runs it."""
    folder = Path(tempfile.mkdtemp(prefix="speech-"))
    print(f"{write_speech(folder, takes=2)} sounds in {folder}")
    whole_path("keywords:Keywords", f"audio-folder:{folder}", epochs=20, batch_size=32, optimizer="adamw")


if __name__ == "__main__":
    as_script(main)
