"""Data for cascades: what `sortednet cascade --data` names becomes arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from exporter.bundle import Bundle
from selector.choose.budget import BudgetError
from selector.run.files import read_inputs


def validation(bundle: Bundle, data: str) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """The inputs by name, each (N, …), and the labels (N,), as they were found; `calibrate_cascade` checks them.

    `data` is a data set as for `sortednet train`, whose validation split is used, or a .npz file with the inputs by name and
    `labels`. Raises BudgetError or InputError where these are not there.
    """
    names = [spec.name for spec in bundle.manifest.inputs]
    if data.endswith(".npz"):
        arrays = read_inputs(Path(data))
        if not isinstance(arrays, dict) or set(arrays) != {*names, "labels"}:
            raise BudgetError(f"data = {data!r}: holds {sorted(arrays)}; allowed is {', '.join([*names, 'labels'])}")
        return {name: arrays[name] for name in names}, arrays["labels"]
    import torch

    from trainer.data import load_data
    from trainer.data.dataset import as_inputs
    from trainer.start import check_same_vocabulary, data_options_of

    loaded = load_data(data, data_options_of(None, data, {}, bundle.path))
    check_same_vocabulary(bundle.path, loaded)
    examples = loaded.validation
    inputs, targets = examples.batch(torch.arange(len(examples)))
    if not isinstance(targets, torch.Tensor):
        raise BudgetError(f"data = {data!r}: has targets {', '.join(targets)}; allowed is a label for each example")
    try:
        arrays = {name: tensor.numpy() for name, tensor in as_inputs(inputs, names).items()}
    except ValueError as error:
        raise BudgetError(f"data = {data!r}: {error}") from None
    return arrays, targets.numpy()
