"""From a torch module to an ONNX template: the one place that decides how torch writes a graph.

The TorchScript-based exporter takes 0.03-0.3 s for a topology; the one based on torch.export takes 1.5-5 s and needs
onnxscript. It is used once per topology and every graph is compared with torch afterwards, so its deprecation is a
matter of this function alone.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.onnx import TrainingMode

from exporter.attention import lean_attention
from exporter.names import name_in_graph, rename
from exporter.torch_state import silent
from trainer import SubModel
from trainer.nested import NestedModel, batchnorm_names

OPSET = 17
_TORCH = os.path.dirname(torch.__file__)


@dataclass(frozen=True)
class Traced:
    """The graph of one sub-model with its parameters and buffers as named graph inputs, without values; and what torch warned
    of while it traced: places where a number or a branch became constant. `assumes_keys`: see `exporter.attention`."""

    model: onnx.ModelProto
    warnings: tuple[str, ...]
    assumes_keys: bool


def export_template(nested: NestedModel, sub: SubModel, exact: bool = False) -> Traced:
    """`exact`: also where an attention's query has no key. Raises what torch raises for a network that it cannot write."""
    module = nested.family.build(sub).eval()
    _make_values_distinct(module)
    _called_in_order(module, nested)
    inputs = nested.family.example_inputs(3)  # not as many as the self-test has: a batch size turned constant must show
    axes = dynamic_axes(nested, inputs)
    buffer = io.BytesIO()
    # For the time of the export names that no module's tensor can have: torch would rename the tensor.
    ours = {f".in.{name}": name for name in inputs}
    theirs = {f".out.{name}": name for name in nested.family.task.outputs}
    free = {name: axes[own] for name, own in {**ours, **theirs}.items() if own in axes}
    with warnings.catch_warnings(record=True) as warned, torch.no_grad(), silent(), lean_attention(exact) as lean:
        warnings.simplefilter("always")  # what is no TracerWarning stays unsaid
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type]  # a file object is taken with dynamo=False
            dynamo=False,
            export_params=False,
            training=TrainingMode.PRESERVE,  # EVAL would fold BatchNorm into the convolutions and lose their names
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=list(ours),
            output_names=list(theirs),
            dynamic_axes=free,
        )
    model = onnx.load_from_string(buffer.getvalue())
    interface = {**ours, **theirs}
    clashing = {name: name_in_graph(name, set(interface.values())) for name in _given(model.graph)}
    rename(model.graph, clashing | interface)
    said = [w for w in warned if issubclass(w.category, TracerWarning)]
    said = [w for w in said if not w.filename.startswith(_TORCH)] or said  # the user's own code, if it is there
    told = tuple(dict.fromkeys(f"{os.path.basename(w.filename)}, line {w.lineno}: {_brief(w)}" for w in said))
    return Traced(model, told, lean.assumes_keys)


def _given(graph: onnx.GraphProto) -> list[str]:
    """The names of everything in a graph whose inputs and outputs have names of their own."""
    return [*(value.name for value in graph.input), *(name for node in graph.node for name in node.output)]


def _brief(warned: warnings.WarningMessage) -> str:
    """The first sentence; the others are the same for all."""
    return str(warned.message).partition(". ")[0]


def dynamic_axes(nested: NestedModel, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Input and output name → the axes of free size and their names. An output has those of the task's that an input has."""
    declared = nested.family.dynamic_axes or {name: {0: "batch"} for name in inputs}
    axes = {name: dict(free) for name, free in declared.items()}
    named = {name for free in axes.values() for name in free.values()}
    for output, free in nested.family.task.outputs.items():
        axes.setdefault(output, {axis: name for axis, name in free.items() if axis == 0 or name in named})
    return axes


def _called_in_order(module: nn.Module, nested: NestedModel) -> None:
    """Lets the module take tensors in the order of the inputs' names and return them in that of the outputs'."""
    forward, names = module.forward, list(nested.input_names)

    def in_order(*tensors: Tensor) -> tuple[Tensor, ...]:
        module.forward = forward
        try:
            return tuple(nested.applied(module, dict(zip(names, tensors, strict=True))).values())
        finally:
            module.forward = in_order

    module.forward = in_order


def _make_values_distinct(module: nn.Module) -> None:
    """Tensors of equal values would be merged into one and lose their names."""
    statistics = {f"{name}.{leaf}" for name in batchnorm_names(module) for leaf in ("running_mean", "running_var")}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(0.5, 1.5)
        for name, buffer in module.named_buffers():
            if name in statistics:
                buffer.uniform_(0.5, 1.5)
