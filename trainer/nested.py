"""`NestedModel`: one full module whose parameter prefixes are all the smaller models.

A sub-model is never a masked or special module. Its skeleton is the family's own module built on the `meta` device;
it is called with prefix views of the full parameters in place of its own, so a step costs what the small model costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.calling import named, takes_by_name
from trainer.family import Family
from trainer.initialisation import WithoutInitialisation
from trainer.layers import check_inputs, check_layers
from trainer.submodel import SubModel, TrainerError
from trainer.task import own

Segments = tuple[tuple[slice, ...], ...]
"""For each axis of a parameter, the slices of the full axis that a sub-model keeps, side by side."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a sub-model: what a bundle's manifest takes, whose graphs are called so."""


class NestedModel(nn.Module):
    """The full model and every sub-model of a family over the same parameters.

    Raises TrainerError when the family cannot build its largest network, has layers that are not allowed
    (`trainer.layers`), or is not nested: a sub-model's parameter has
    another name, another number of axes, or is larger than the full model's; or two sub-models of the grid are the same
    network, or one's id cannot be a file's name.

    Inputs are one tensor or several by name, as `Family.example_inputs` names them; outputs are by name, the task's.
    """

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family
        name = type(family).__name__
        with own(f"{name} cannot build {family.largest.id}"):
            self.full = family.build(family.largest)
        check_layers(self.full, name)
        with own(f"{name}.example_inputs"):
            examples = family.example_inputs(1)
            self.input_names = list(examples)
        check_inputs(examples, f"{name}.example_inputs")
        self._by_name = takes_by_name(self.full, self.input_names)
        self.submodels: list[SubModel] = family.grid()
        self._refuse_ids()
        self.calibration: dict[SubModel, dict[str, Tensor]] = {}
        """BatchNorm statistics per sub-model, by buffer name; filled by `trainer.calibrate`."""
        self._parameters_by_name = dict(self.full.named_parameters(remove_duplicate=False))
        first_names: dict[int, str] = {}
        self.canonical_names = {n: first_names.setdefault(id(p), n) for n, p in self._parameters_by_name.items()}
        """Every parameter name, tied ones included, to the one name under which `view` and `segments` list it."""
        self._skeletons: dict[SubModel, _Skeleton] = {}
        self._refuse_twins()

    def forward(self, inputs: Tensor | Mapping[str, Tensor], sub: SubModel | None = None) -> Any:
        """What the network of a sub-model (None: the full one) returns; gradients flow into the full parameters.

        In eval mode BatchNorm uses the sub-model's calibrated statistics.
        """
        sub = sub or self.family.largest
        return self._run(sub, inputs, self.view(sub))

    def call(self, sub: SubModel, inputs: Tensor | Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, by name, of the sub-model's network with the given parameters, in the mode (train or eval) of this
        module. Raises TrainerError when the task has an output that the network does not give.
        """
        return named(self._run(sub, inputs, parameters), list(self.family.task.outputs))

    def outputs(self, inputs: Tensor | Mapping[str, Tensor], sub: SubModel | None = None) -> dict[str, Tensor]:
        """The same with the model's own parameters."""
        sub = sub or self.family.largest
        return self.call(sub, inputs, self.view(sub))

    def _run(self, sub: SubModel, inputs: Tensor | Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Any:
        with self._holding(sub, parameters) as module:
            return self._called(module, self._given(inputs))

    @contextmanager
    def _holding(self, sub: SubModel, parameters: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Within: the sub-model's module with these parameters and its buffers, in the mode of this one."""
        skeleton = self._prepare(sub)
        if skeleton.module.training != self.training:
            skeleton.module.train(self.training)
        with skeleton.holding({**parameters, **self.buffers_of(sub)}):
            yield skeleton.module

    def _given(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {self.input_names[0]: inputs} if isinstance(inputs, Tensor) else inputs

    def applied(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, by name, of a plain module of this family."""
        return named(self._called(module, inputs), list(self.family.task.outputs))

    def _called(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        if self._by_name:
            return module(**inputs)
        return module(*(inputs[name] for name in self.input_names))

    def view(self, sub: SubModel) -> dict[str, Tensor]:
        """The sub-model's parameters as prefix views of the full ones (fused blocks: as copies), by name."""
        return {name: cut(self._parameters_by_name[name], segments) for name, segments in self.segments(sub).items()}

    def extract(self, sub: SubModel) -> nn.Module:
        """The sub-model as a plain module with its own copies of parameters and calibrated buffers."""
        state = {**self.view(sub), **self.buffers_of(sub)}
        with WithoutInitialisation():
            module = self.family.build(sub)
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                tensor.copy_(state[name])
        return module.train(self.training)

    def skeleton(self, sub: SubModel) -> nn.Module:
        """The sub-model's module on the meta device: shapes without values."""
        return self._prepare(sub).module

    def segments(self, sub: SubModel) -> Mapping[str, Segments]:
        """For each parameter of the sub-model, what it keeps of the full parameter's axes."""
        return self._prepare(sub).segments

    def buffers_of(self, sub: SubModel) -> dict[str, Tensor]:
        """The sub-model's buffers by name: from a real build, BatchNorm statistics from the calibration."""
        skeleton = self._prepare(sub)
        device = next(iter(self._parameters_by_name.values())).device
        if skeleton.device != device:
            skeleton.buffers = {name: buffer.to(device) for name, buffer in skeleton.buffers.items()}
            skeleton.device = device
        # A forward pass in train mode updates running statistics in place: never the calibrated ones.
        calibrated = {} if self.training else self.calibration.get(sub, {})
        return {**skeleton.buffers, **{name: tensor.to(device) for name, tensor in calibrated.items()}}

    def needs_calibration(self, sub: SubModel) -> bool:
        """Whether the sub-model has BatchNorm statistics that have not been calibrated."""
        return sub not in self.calibration and bool(batchnorm_names(self.skeleton(sub)))

    def accumulate_gradients(
        self,
        sub: SubModel,
        inputs: Tensor | Mapping[str, Tensor],
        loss_of: Callable[[dict[str, Tensor]], Tensor],
        context: AbstractContextManager[Any] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward of one sub-model; adds its gradients to the full parameters' `.grad`.

        The same gradients as `loss_of(self.outputs(inputs, sub)).backward()`, but they are added straight into the prefix:
        differentiating through the views would fill one full-sized tensor of zeros per cut axis and sub-model. A
        parameter that the sub-model does not have keeps its gradient (None included).

        `context`: within it the forward pass runs (automatic mixed precision). What `loss_of` returns is differentiated.
        Returns the loss and the outputs, detached.
        """
        segments = self.segments(sub)
        # Contiguous copies of what is cut: convolutions on strided weights copy them in forward and backward anyway
        # (a step of the default ResNet at half width took 3-7 % longer).
        full = self._parameters_by_name
        leaves = {
            name: cut(full[name].detach(), kept).contiguous().requires_grad_(full[name].requires_grad)
            for name, kept in segments.items()
        }
        with self._holding(sub, leaves) as module:  # a backward pass may compute parts of the forward pass again
            with context or nullcontext():
                outputs = named(self._called(module, self._given(inputs)), list(self.family.task.outputs))
            loss = loss_of(outputs)
            loss.backward()  # type: ignore[no-untyped-call]
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                _add_gradient(full[name], segments[name], leaf.grad)
        return loss.detach(), {name: output.detach() for name, output in outputs.items()}

    def _prepare(self, sub: SubModel) -> _Skeleton:
        found = self._skeletons.get(sub)
        if found is None:
            self.family.check(sub)
            found = self._skeletons[sub] = _Skeleton(self, sub)
        return found

    def _refuse_ids(self) -> None:
        for sub in self.submodels:
            if not _ID.fullmatch(sub.id):
                raise TrainerError(
                    f"axes {', '.join(map(repr, sub.axes))}: a sub-model would be called {sub.id!r}; allowed are names of "
                    "ASCII letters, digits, '.', '_' and '-', a letter or digit first"
                )

    def _refuse_twins(self) -> None:
        seen: dict[tuple[tuple[str, torch.Size], ...], SubModel] = {}
        for sub in self.submodels:
            shapes = tuple((name, p.shape) for name, p in self.skeleton(sub).named_parameters())
            twin = seen.setdefault(shapes, sub)
            if twin is not sub:
                raise TrainerError(f"grid: {twin.id} and {sub.id} are the same network after rounding; leave one out")


class _Skeleton:
    """What is known of a sub-model without its values: module on meta, cuts, buffers, and where each tensor goes."""

    def __init__(self, nested: NestedModel, sub: SubModel) -> None:
        family = nested.family
        with own(f"{type(family).__name__}.build({sub.id})"), WithoutInitialisation():
            self.module = family.build(sub)
        self.buffers = {name: buffer.detach() for name, buffer in self.module.named_buffers()}
        self.device = torch.device("cpu")
        _move_parameters_to_meta(self.module)
        with own(f"{type(family).__name__}.fused_blocks"):
            fused, full_fused = family.fused_blocks(sub), family.fused_blocks(family.largest)
        self.segments: dict[str, Segments] = {}
        for name, parameter in self.module.named_parameters():
            full = nested._parameters_by_name.get(name)
            if full is None:
                raise TrainerError(f"sub-model {sub.id}: parameter {name!r} does not exist in the full model")
            self.segments[name] = _segments(
                sub, name, parameter.shape, full.shape, fused.get(name, {}), full_fused.get(name, {})
            )
        self._places = _places(self.module)

    @contextmanager
    def holding(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Within this context the module has these tensors for its own.

        What `torch.func.functional_call` does, which walks through all modules at every call: 0.4 ms more for a ResNet
        of three blocks.
        """
        own = [holder[leaf] for holder, leaf, _ in self._places]
        try:
            for holder, leaf, name in self._places:
                holder[leaf] = state[name]
            yield
        finally:
            for (holder, leaf, _), tensor in zip(self._places, own, strict=True):
                holder[leaf] = tensor


def cut(full: Tensor, segments: Segments) -> Tensor:
    """The part of a full parameter that the segments keep: a view where every axis keeps one prefix."""
    for axis, slices in enumerate(segments):
        if len(slices) > 1:
            full = torch.cat([full.narrow(axis, s.start, s.stop - s.start) for s in slices], dim=axis)
        elif slices[0].stop != full.shape[axis]:
            full = full.narrow(axis, 0, slices[0].stop)
    return full


def batchnorm_names(module: nn.Module) -> list[str]:
    """Names of the BatchNorm layers that keep running statistics."""
    return [n for n, m in module.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _segments(
    sub: SubModel,
    name: str,
    shape: Sequence[int],
    full_shape: Sequence[int],
    blocks: Mapping[int, Sequence[int]],
    full_blocks: Mapping[int, Sequence[int]],
) -> Segments:
    if len(shape) != len(full_shape):
        raise TrainerError(f"sub-model {sub.id}: parameter {name!r} has {len(shape)} axes, the full model's {len(full_shape)}")
    result = []
    for axis, (size, full_size) in enumerate(zip(shape, full_shape, strict=True)):
        kept = tuple(blocks.get(axis, (size,)))
        available = tuple(full_blocks.get(axis, (full_size,)))
        fits = len(kept) == len(available) and all(k <= a for k, a in zip(kept, available, strict=True))
        if sum(kept) != size or sum(available) != full_size or not fits:
            raise TrainerError(
                f"sub-model {sub.id}: axis {axis} of parameter {name!r} has size {size} in blocks {kept}, "
                f"which is no prefix of the full model's {full_size} in blocks {available}"
            )
        starts = [sum(available[:i]) for i in range(len(available))]
        slices = tuple(slice(start, start + k) for start, k in zip(starts, kept, strict=True))
        result.append((slice(0, size),) if size == full_size else slices)
    return tuple(result)


def _places(module: nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    """Where a module keeps each parameter and buffer, and by which name it is known; tied ones by their first."""
    first_names = {id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]}
    holders: list[dict[str, Any]] = [h for owner in module.modules() for h in (owner._parameters, owner._buffers)]
    return [(h, leaf, first_names[id(t)]) for h in holders for leaf, t in h.items() if t is not None]


def _move_parameters_to_meta(module: nn.Module) -> None:
    """Keeps shapes and ties, frees values; buffers (rotary frequencies, position ids) stay as they were built."""
    moved: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                meta = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
                owner._parameters[name] = moved.setdefault(id(parameter), meta)


def _add_gradient(parameter: nn.Parameter, segments: Segments, gradient: Tensor) -> None:
    """Takes a gradient that is as large as the parameter for its own, when the parameter has none yet."""
    if parameter.grad is None:
        if gradient.shape == parameter.shape:
            parameter.grad = gradient
            return
        parameter.grad = torch.zeros_like(parameter)
    _add_into(parameter.grad, segments, gradient)


def _add_into(target: Tensor, segments: Segments, part: Tensor, axis: int = 0) -> None:
    """The inverse of `cut`: adds to the prefix of each axis from `axis` on; where one has several blocks, to each block's."""
    while axis < len(segments) and len(segments[axis]) == 1:
        kept = segments[axis][0].stop
        target = target if kept == target.shape[axis] else target.narrow(axis, 0, kept)
        axis += 1
    if axis == len(segments):
        target.add_(part)
        return
    start = 0
    for s in segments[axis]:
        size = s.stop - s.start
        _add_into(target.narrow(axis, s.start, size), segments, part.narrow(axis, start, size), axis + 1)
        start += size
