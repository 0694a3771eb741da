"""Small Hugging Face data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

NAMES = ("bread", "river", "star")


def texts(rows: int = 60, first: int = 0, **more: Any) -> Dataset:
    """A document of its own in each row, its class in turn."""
    columns = {
        "text": [f"the {NAMES[i % 3]} of number{i}" for i in range(first, first + rows)],
        "label": [i % 3 for i in range(first, first + rows)],
        **more,
    }
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=list(NAMES)), **dict.fromkeys(more, Value("int64"))}
    )
    return Dataset.from_dict(columns, features=features)


def saved(table: Dataset | DatasetDict, folder: Path) -> str:
    table.save_to_disk(folder)
    return f"hf:{folder}"
