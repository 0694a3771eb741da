"""Devices and precisions: what is found, what is refused, and that half precision trains as well and as repeatably."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, distributed, nn

from tests.helpers.runs import equal, first, hard, network, noise, train, weights
from trainer import Family, NestedModel, Samples, SubModel, TrainerError, fit
from trainer import training as training_module
from trainer.accelerator import Accelerator, find_accelerator
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.data import DataSet
from trainer.distributed import backend_for, joined
from trainer.interruption import TrainingInterrupted
from trainer.options import FitOptions
from trainer.schedule import make_optimizer

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if torch found two of CUDA's: nothing is computed on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *of: "an old card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    return monkeypatch


@pytest.fixture
def none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("none")
def test_without_a_gpu_it_is_the_cpu() -> None:
    assert find_accelerator() == Accelerator(CPU, "fp32")
    assert find_accelerator("cpu", "bf16") == Accelerator(CPU, "bf16")


@pytest.mark.usefixtures("none")
@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("cuda", "fp32", r"accelerator = 'cuda': torch .* finds none; allowed here are cpu$"),
        ("mps", "fp32", r"accelerator = 'mps': torch .* finds none; allowed here are cpu$"),
        ("tpu", "fp32", "accelerator = 'tpu': allowed are auto, cpu, cuda, mps$"),
        ("auto", "int8", "precision = 'int8': allowed are fp32, bf16, fp16$"),
        ("cpu", "fp16", "precision = 'fp16': allowed on cuda and mps; on the cpu fp32 and bf16$"),
        ("auto", "fp16", "precision = 'fp16': allowed on cuda and mps"),
    ],
)
def test_what_is_not_here_is_refused(name: str, precision: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message) as caught:
        find_accelerator(name, precision)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_the_first_gpu_is_taken_and_under_torchrun_each_rank_its_own(two_gpus: pytest.MonkeyPatch) -> None:
    assert find_accelerator().device == torch.device("cuda", 0)
    assert find_accelerator("cpu").device == CPU
    for rank, gpu in (("1", 1), ("2", 0)):  # more ranks than GPUs share them
        two_gpus.setenv("LOCAL_RANK", rank)
        assert find_accelerator("cuda", "fp16") == Accelerator(torch.device("cuda", gpu), "fp16")
    with pytest.raises(TrainerError, match="precision = 'bf16': an old card does not have it; allowed are fp32 and fp16"):
        find_accelerator("cuda", "bf16")


def test_apples_gpu_is_for_one_process(none: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_accelerator().device.type == "mps"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert find_accelerator().device.type == "cpu"


def test_nccl_where_every_rank_has_a_gpu_and_gloo_elsewhere(two_gpus: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, torch.device | None]] = []
    two_gpus.setattr(distributed, "is_nccl_available", lambda: True)
    two_gpus.setattr(distributed, "init_process_group", lambda backend, device_id: begun.append((backend, device_id)))
    two_gpus.setattr(distributed, "destroy_process_group", lambda: None)
    two_gpus.setattr(torch.cuda, "set_device", lambda device: None)
    gpu = torch.device("cuda", 1)
    assert (backend_for(gpu), backend_for(CPU)) == ("nccl", "gloo")
    two_gpus.setenv("WORLD_SIZE", "4")
    for local, wanted in (("2", ("nccl", gpu)), ("4", ("gloo", None))):  # nccl refuses two ranks on one GPU
        two_gpus.setenv("LOCAL_WORLD_SIZE", local)
        with joined(gpu):
            assert begun[-1] == wanted
    with joined(CPU):
        assert begun[-1] == ("gloo", None)


@pytest.mark.parametrize("asked", [True, False])
def test_kernels_are_deterministic_while_it_trains_and_where_it_is_asked_for(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # somebody's choice stays
    seen: set[bool] = set()

    def augment(inputs: Any, targets: Any, generator: torch.Generator) -> tuple[Any, Any]:
        seen.add(torch.are_deterministic_algorithms_enabled())
        return inputs, targets

    nested, data = hard()
    fit(nested, data, epochs=1, batch_size=8, deterministic=asked, augment=augment, show_progress=False)
    assert seen == {asked}
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.usefixtures("none")
def test_a_run_on_a_device_that_is_not_here_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"accelerator = 'cuda': .*finds none"):
        train(tmp_path / "run", options={"accelerator": "cuda"})
    assert not (tmp_path / "run").exists()
    nested, data = hard()
    with pytest.raises(TrainerError, match=r"accelerator = 'cuda': .*finds none"):
        fit(nested, data, accelerator="cuda", run=tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


class _Watched(Family):
    """Notes in which precision each forward pass computes."""

    axes: ClassVar[dict[str, Sequence[int]]] = {"width": (2, 4)}
    seen: ClassVar[set[tuple[bool, torch.dtype]]] = set()

    def build(self, sub: SubModel) -> nn.Module:
        return _Noting(int(sub["width"]))  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.rand(batch_size, 5)}


class _Noting(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.first(x)))
        _Watched.seen.add((self.training, logits.dtype))
        return logits


def test_half_precision_is_for_the_passes_of_training_alone(tmp_path: Path) -> None:
    """Parameters, gradients, optimizer, calibration and scores stay in single precision."""
    torch.manual_seed(0)
    nested, data = NestedModel(_Watched()), Samples(torch.rand(40, 5), torch.arange(40) % 4)
    begun = False

    def augment(inputs: Any, targets: Any, generator: torch.Generator) -> tuple[Any, Any]:
        nonlocal begun
        if not begun:  # what comes before the first batch are checks
            begun = True
            _Watched.seen.clear()
        return inputs, targets

    options: dict[str, Any] = {"precision": "bf16", "epochs": 2, "batch_size": 8, "update": "sandwich", "augment": augment}
    fit(nested, data, data, run=tmp_path, show_progress=False, **options)
    assert _Watched.seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {p.dtype for p in nested.full.parameters()} == {torch.float32}
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118
    assert {s.dtype for named in nested.calibration.values() for k, s in named.items() if "running" in k} == {torch.float32}


def test_bf16_learns_what_fp32_learns(digits: DataSet) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        nested = network(digits)
        options: dict[str, Any] = {"epochs": 4, "batch_size": 16, "lr": 0.3, "precision": precision, "show_progress": False}
        result = fit(nested, first(digits, 512), digits.validation, **options)
        assert result.validation[nested.family.largest.id] > 0.4  # 0.1 by chance
        losses[precision] = result.loss
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"] != losses["fp32"]


def half(growth_interval: int = 2) -> Accelerator:
    """fp16 on the CPU, where we refuse it for being slow, with a scale of losses that falls at first and rises soon."""

    class Half(Accelerator):
        def scaler(self) -> torch.amp.GradScaler:
            return torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=growth_interval)

    return Half(CPU, "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("at_step", [4, 9])
def test_a_training_in_half_precision_is_resumed_to_the_bit(
    precision: str, at_step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the scale of the losses, which changes within these steps."""
    if precision == "fp16":
        monkeypatch.setattr(training_module, "find_accelerator", lambda name, asked: half())
    options: dict[str, Any] = {"epochs": 3, "batch_size": 4, "precision": precision, "show_progress": False}
    whole, data = hard()
    fit(whole, data, data, run=tmp_path / "whole", augment=noise(), **options)
    interrupted, _ = hard()
    with pytest.raises(TrainingInterrupted):
        fit(interrupted, data, data, run=tmp_path / "run", augment=noise(at_step, (signal.SIGTERM,)), **options)
    when_stopped = scaler_of(tmp_path / "run")
    resumed, _ = hard()
    fit(resumed, data, data, run=tmp_path / "run", resume=True, augment=noise(), **options)
    assert equal(weights(resumed), weights(whole))
    assert scaler_of(tmp_path / "run") == scaler_of(tmp_path / "whole")
    if precision == "fp16":
        assert when_stopped["scale"] not in (2.0**40, scaler_of(tmp_path / "run")["scale"])


def scaler_of(run: Path) -> dict[str, Any]:
    with safe_open(run / "checkpoint.safetensors", framework="pt") as file:
        scaler: dict[str, Any] = json.loads(file.metadata()["state"])["scaler"]
    return scaler


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_scaled_losses_give_the_same_steps(clip_norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a power of two, which changes no digit: gradients are clipped, and steps taken, in their own size again."""

    class Scaled(Accelerator):
        def scaler(self) -> torch.amp.GradScaler:
            return torch.amp.GradScaler("cpu", init_scale=2.0**10)

    results = []
    for accelerator in (Accelerator(CPU), Scaled(CPU)):
        monkeypatch.setattr(training_module, "find_accelerator", lambda name, asked, given=accelerator: given)
        nested, data = hard()
        fit(nested, data, epochs=2, batch_size=4, clip_norm=clip_norm, samples_per_step=2, show_progress=False)
        results.append(weights(nested))
    assert equal(*results)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizers_state_is_put_where_the_parameters_are(optimizer: str, tmp_path: Path) -> None:
    """All of it: fused kernels on a GPU read the number of steps there too. `meta` stands for another device."""
    options = FitOptions(optimizer=optimizer)
    nested, data = hard()
    saved = make_optimizer(nested.full, options)
    nested.accumulate_gradients(nested.family.largest, dict(data.inputs), lambda outputs: outputs["logits"].square().mean())
    saved.step()
    save_checkpoint(tmp_path, nested, saved, {})
    nested.full.to("meta")
    loaded = make_optimizer(nested.full, options)
    load_checkpoint(tmp_path, nested, loaded)
    held = [value for state in loaded.state.values() for value in state.values()]
    assert len(held) == sum(len(state) for state in saved.state.values())
    assert {tensor.device.type for tensor in held} == {"meta"}
