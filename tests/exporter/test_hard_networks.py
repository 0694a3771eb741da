"""Networks that are hard to write as a graph: right in both precisions, or refused with the reason, never wrong in silence.

Shapes: N batch, T tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exporter import ExportError, export
from exporter.bundle.session import open_session, relative_error, rms_error, run_session
from tests.helpers.exports import calibrated
from tests.helpers.hard_networks import (
    Inputs,
    LikeGpt2,
    Masked,
    NamedLikeAWeight,
    NamedLikeOurs,
    One,
    Patches,
    PicksAToken,
    Positive,
    WithAttention,
    tied,
    tokens,
    vectors,
)
from trainer import NestedModel, TrainerError
from trainer.data import Samples
from trainer.macs import MacCounter

IN_PROJECTION = {"layer.self_attn.in_proj_weight": 0, "layer.self_attn.in_proj_bias": 0}
RIGHT = {
    "picks a token": One(PicksAToken, tokens),
    "patches": One(Patches, lambda n: {"image": torch.rand(n, 3, 8, 8)}, {"qkv.weight": 0, "qkv.bias": 0}),
    "like GPT-2": One(
        LikeGpt2, lambda n: {"ids": torch.randint(50, (n, 6))}, {"attention.weight": 1, "attention.bias": 0}, ids="time"
    ),
    "named like ours": One(NamedLikeOurs, lambda n: {"y": torch.rand(n, 32), "v7": torch.rand(n, 32)}),
    "named like a weight": One(NamedLikeAWeight, lambda n: {"w": torch.randn(n, 32)}),
    "attention": One(WithAttention, tokens, IN_PROJECTION),
    "positive": One(Positive, vectors),
    "tied head": tied(lambda h, weight: nn.functional.linear(h, weight, weight[:, 0])),
    "embedding as memory": tied(lambda h, weight: (h @ weight.t()).softmax(-1) @ weight),
    "distance from embeddings": tied(lambda h, weight: (h[:, None] - weight).square().sum(-1)),
    "masked": One(lambda width: Masked(width, -math.inf, lambda w: linear(w, nn.Sequential)), vectors),
}


@pytest.mark.parametrize("name", RIGHT)
def test_both_precisions_of_every_size_answer_as_torch_does(name: str, tmp_path: Path) -> None:
    nested = calibrated(RIGHT[name])
    inputs = nested.family.example_inputs(64)
    data = Samples(inputs, torch.zeros(64, dtype=torch.int64))
    bundle = export(nested, tmp_path / "bundle", int8_calibration=data, show_progress=False)
    feed = {key: tensor.numpy() for key, tensor in inputs.items()}
    for sub in nested.submodels:
        with torch.no_grad():
            wanted = {"logits": nested.extract(sub)(*inputs.values()).numpy()}
        fp32, int8 = (run_session(open_session(bundle.graph_path(i)), feed) for i in (sub.id, f"{sub.id}-int8"))
        assert relative_error(fp32, wanted) < 1e-4
        assert rms_error(int8, wanted) < 0.1
    int8_bytes, fp32_bytes = ((bundle.path / "models" / f).stat().st_size for f in ("weights.int8.bin", "weights.bin"))
    assert int8_bytes > 0.1 * fp32_bytes


def test_an_attention_layers_products_are_counted_and_torch_is_left_as_it_was(tmp_path: Path) -> None:
    nested = calibrated(RIGHT["attention"])
    assert torch.backends.mha.get_fastpath_enabled()
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    assert torch.backends.mha.get_fastpath_enabled()
    counter = MacCounter()
    with counter:  # with gradients no fast path is taken
        nested(nested.family.example_inputs(1))
    assert bundle.submodels["w16"].macs == counter.macs > 6 * 16 * (32 + 8 * 16)


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(32, width), nn.Linear(32, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.a(x) if x.sum() > 0 else self.b(x))
        return result


class Centred(nn.Module):
    """Of several examples the difference from their mean, of one what it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(32, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.hidden(x))
        return result - result.mean(0) if len(result) > 1 else result


class Pairs(Centred):
    """Takes no single example."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            raise ValueError("two examples are needed")
        result: Tensor = self.fc(self.hidden(x))
        return result


class Sizes(nn.Module):
    """What is done with two free sizes, as numbers of Python."""

    def __init__(self, width: int, use: Callable[[Tensor, int, int], Tensor]) -> None:
        super().__init__()
        self.hidden, self.fc, self.use = nn.Linear(5, width), nn.Linear(width, 4), use

    def forward(self, s: Tensor, t: Tensor) -> Tensor:  # (N, S, 5), (N, T, 5)
        hidden = self.use(self.hidden(s), int(s.shape[1]), int(t.shape[1])).mean(1) + self.hidden(t).mean(1)
        result: Tensor = self.fc(hidden)
        return result


def of_sizes(use: Callable[[Tensor, int, int], Tensor]) -> One:
    return One(
        lambda width: Sizes(width, use),
        lambda n: {"s": torch.rand(n, 6, 5), "t": torch.rand(n, 4, 5)},
        s="length",
        t="time",
    )


@pytest.mark.parametrize(
    ("family", "inputs", "constant"),
    [
        (One(Branch, vectors), "other values", "boolean"),
        (One(lambda width: Masked(width, -1e9, Branch), vectors), "other values", "boolean"),
        (One(Centred, vectors), "a single example", "len "),
        (of_sizes(lambda h, s, t: h / s), "another size of 'length'", "integer"),
        (of_sizes(lambda h, s, t: h.narrow(1, 0, s)), "another size of 'length'", "integer"),  # right where it is shorter
        (of_sizes(lambda h, s, t: h * (s / t)), "another size of 'length'", "integer"),  # right where both are halved
    ],
    ids=["branch", "masked branch", "single", "length", "cut", "ratio"],
)
def test_what_tracing_made_constant_is_noticed_and_shown(family: One, inputs: str, constant: str, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=rf"sub-model w8: on inputs with {inputs} .*made constant: test_hard.*line \d+: .*{constant}"
    ):
        export(calibrated(family), tmp_path / "bundle", show_progress=False)
    assert not list(tmp_path.iterdir())


def test_a_network_that_takes_no_single_example_is_exported(tmp_path: Path) -> None:
    export(calibrated(One(Pairs, vectors)), tmp_path / "bundle", show_progress=False)


def linear(width: int, wrapped: Callable[[nn.Linear], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(wrapped(nn.Linear(32, width, dtype=dtype)), nn.ReLU(), nn.Linear(width, 4, dtype=dtype))


def normed(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(6, width, 1), nn.InstanceNorm1d(width, track_running_stats=True), nn.Flatten())


def halves(count: int) -> dict[str, Tensor]:
    return {"x": torch.rand(count, 32, dtype=torch.bfloat16)}


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (lambda w: linear(w, nn.utils.parametrizations.spectral_norm), vectors, "layer '0' has spectral_norm.*weight_norm"),
        (lambda w: linear(w, nn.utils.spectral_norm), vectors, "layer '0' has spectral_norm.*weight_norm"),
        (normed, tokens, "layer '1' is InstanceNorm1d with running statistics.*track_running_stats=False"),
        (lambda w: linear(w, nn.Sequential, torch.bfloat16), halves, r"parameter '0\.0\.weight' holds bfloat16.*float32"),
        (lambda w: linear(w, nn.Sequential), halves, "input 'x' holds bfloat16.*float32"),
    ],
    ids=["spectral_norm", "spectral_norm of old", "InstanceNorm", "bfloat16", "bfloat16 inputs"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_cannot_be_nested_is_refused_before_the_work(network: Any, inputs: Inputs, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        NestedModel(One(network, inputs))


def test_what_cannot_be_written_is_refused_with_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(network: Callable[[int], nn.Module], inputs: Inputs, message: str, **options: Any) -> None:
        with pytest.raises((ExportError, TrainerError), match=message):
            export(NestedModel(One(network, inputs)), tmp_path / "bundle", show_progress=False, **options)

    def doubles(count: int) -> dict[str, Tensor]:
        return {"x": torch.rand(count, 32, dtype=torch.float64)}

    data = Samples(doubles(8), torch.zeros(8, dtype=torch.int64))
    message = "int8: parameter '0.weight' holds float64; allowed are networks whose parameters are float32"
    refused(lambda w: linear(w, lambda layer: layer, torch.float64), doubles, message, int8_calibration=data)
    refused(lambda w: nn.Sequential(linear(w, nn.Sequential), Unwritable()), vectors, "sub-model w8: .* as ONNX: .*vdot")
    refused(lambda w: linear(w, nn.Sequential), lambda n: {"logits": torch.rand(n, 32)}, "'logits' has the name of an output")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""  # torch prints the whole graph


def test_what_the_quantizer_cannot_do_is_told_with_the_sub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("cannot infer a shape")

    monkeypatch.setattr("exporter.quantize._quantize", fails)
    data = Samples(vectors(8), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(
        ExportError, match=r"sub-model w8-int8: no int8 graph can be written .*RuntimeError: cannot infer a shape"
    ):
        export(calibrated(One(Positive, vectors)), tmp_path / "bundle", int8_calibration=data, show_progress=False)
    assert not list(tmp_path.iterdir())


class Unwritable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.vdot(x[0], x[0])
