"""Opens a Hugging Face data set: from a folder, from a file, from the cache or from the hub. No code of others is run.

Shapes: N rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.folders import PARTS
from trainer.submodel import TrainerError

if TYPE_CHECKING:
    from datasets import Dataset

FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


def opened(name: str, place: str, config: str | None) -> dict[str, Dataset]:
    """The data set's own splits by name; "train" where it has none.

    `place`: a folder that `save_to_disk` wrote, or one of files (Parquet, CSV, JSON, pictures in a folder per class), one such
    file, or a name on the hub. Raises TrainerError in one line, for whatever the library finds wrong.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing calls home
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets

    path = Path(place)
    if config is not None and path.exists():
        raise TrainerError(f"data {name!r}: config = {config!r}: allowed for a name on the hub; {place} is on this machine")
    if not path.exists() and (path.is_absolute() or place.startswith(".") or place.count("/") > 1):
        raise TrainerError(
            f"data {name!r}: there is no {place}; allowed are a folder, a file, or a name on the hub: owner/name"
        )
    if path.is_file() and path.suffix.lower() not in FILES:
        raise TrainerError(f"data {name!r}: a file {path.suffix or 'without a suffix'}; allowed are {', '.join(FILES)}")
    try:
        if any((path / saved).is_file() for saved in SAVED):
            found = datasets.load_from_disk(place)
        elif path.is_file():
            found = datasets.load_dataset(FILES[path.suffix.lower()], data_files=place)
        else:
            found = datasets.load_dataset(place, config)
    except ConnectionError as error:
        raise TrainerError(
            f"data {name!r}: is neither here nor in the cache, and the hub cannot be reached ({_reason(error)}); where there "
            f"is a network, datasets.load_dataset({place!r}).save_to_disk(FOLDER) fetches it: give it as hf:FOLDER"
        ) from None
    except Exception as error:  # the library raises what its readers and builders raise
        raise TrainerError(f"data {name!r}: {_reason(error)}") from None
    tables = found if isinstance(found, Mapping) else {PARTS["train"][0]: found}
    return {str(split): table.with_format(None) for split, table in tables.items()}


def splits_of(name: str, own: Mapping[str, Dataset], asked: Mapping[str, str | None]) -> dict[str, str]:
    """For each part of ours that is there the name of the data set's own split. `asked`: what was asked for, by part.

    Raises TrainerError where it is not there, or no split is for training.
    """
    chosen: dict[str, str] = {}
    for part, names in PARTS.items():
        split = asked[part]
        if split is not None and split not in own:
            raise TrainerError(f"data {name!r}: {part} = {split!r}: allowed are its splits {', '.join(own)}")
        found = split or next((n for n in names if n in own and n not in asked.values()), None)
        if found is not None:
            chosen[part] = found
    if "train" not in chosen:
        if len(own) > 1:
            free = next((split for split in own if split not in asked.values()), "SPLIT")
            raise TrainerError(f"data {name!r}: has splits {', '.join(own)}; say which is for training, such as train={free}")
        chosen = {"train": next(iter(own))}
    if len(set(chosen.values())) < len(chosen):
        raise TrainerError(f"data {name!r}: {chosen}: allowed is each split once")
    return chosen


def _reason(error: BaseException) -> str:
    """The first line of what went wrong at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
