"""`--format hf`: a folder that can be uploaded to Hugging Face's hub as it is, and that is a bundle at the same time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, MODELS_FOLDER, PROFILES_FOLDER, Bundle, BundleError
from exporter.bundle.folder import built
from exporter.bundle.local import own_names
from exporter.bundle.manifest import sealed
from exporter.bundle.written import WRITTEN_FILE
from selector.choose.metrics import metric_name
from sortednet.formats.card import FRONTIER, card_of
from sortednet.formats.figures import figures_of, largest
from sortednet.formats.picture import draw_frontier

README, CONFIG, WEIGHTS, GRAPHS = "README.md", "config.json", "model.safetensors", "onnx"
MODEL_TYPE = "sortednet"
OWN = (README, CONFIG, WEIGHTS, FRONTIER, f"{GRAPHS}/model.onnx")
_LATER = (PROFILES_FOLDER, CASCADES_FILE, WRITTEN_FILE)


def write_hub(bundle: Bundle, out: Path, *, overwrite: bool = False) -> None:
    """Writes the folder. Its graphs lie in `onnx/`, where the hub's libraries look for them; profiles and cascades go along.

    Raises BundleError where `out` cannot be written, or where a file of the bundle has one of our names.
    """
    moved = {name: _moved(name) for name in bundle.manifest.files}
    if taken := [name for name in moved.values() if name in OWN]:
        raise BundleError(f"{taken[0]}: is a file of the bundle, and of the hub's format; give it another name")
    figures, name = figures_of(bundle), out.name
    with built(out, written, overwrite=overwrite) as folder:
        for old, new in moved.items():
            (folder / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / old, folder / new)
        for later in _LATER:
            if (bundle.path / later).is_dir():
                shutil.copytree(bundle.path / later, folder / later)
            elif (bundle.path / later).is_file():
                shutil.copyfile(bundle.path / later, folder / later)
        _write(folder / MANIFEST_FILE, sealed(_moved_in(json.loads((bundle.path / MANIFEST_FILE).read_bytes()))))
        whole = largest(bundle)
        shutil.copyfile(bundle.graph_path(whole.id), folder / GRAPHS / "model.onnx")
        _write(folder / CONFIG, _config(bundle))
        _write_safetensors(bundle, whole.id, folder / WEIGHTS)
        picture = draw_frontier(figures, metric_name(bundle.metric), name, folder / FRONTIER)
        (folder / README).write_text(card_of(bundle, figures, name, picture=picture), encoding="utf-8")
        Bundle(folder)


def written(folder: Path) -> set[str]:
    """The names of the files in the folder that are of this format; none where its config.json is another model's."""
    try:
        if json.loads((folder / CONFIG).read_bytes())["model_type"] != MODEL_TYPE:
            return set()
        return {*OWN, *own_names(folder, Bundle(folder, verify=False).manifest)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError, BundleError):
        return set()


def _moved(name: str) -> str:
    first, slash, rest = name.partition("/")
    return f"{GRAPHS}/{rest}" if slash and first == MODELS_FOLDER else name


def _moved_in(document: Any) -> Any:
    """A manifest's document with its files where they lie in the hub's folder. The record of the training stays as it is."""
    if isinstance(document, dict):
        return {_moved(key): value if key == "training" else _moved_in(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_moved_in(one) for one in document]
    return _moved(document) if isinstance(document, str) else document


def _config(bundle: Bundle) -> dict[str, Any]:
    """What the hub's libraries look for in a model's config.json, and our axes."""
    manifest = bundle.manifest
    labels = {str(number): label for number, label in enumerate(manifest.task.labels)}
    named = {"id2label": labels, "label2id": {label: int(number) for number, label in labels.items()}} if labels else {}
    return {
        "model_type": MODEL_TYPE,
        "architectures": [manifest.family],
        "task": manifest.task.kind,
        **named,
        "axes": manifest.model_dump(mode="json")["axes"],
        "submodels": [entry.id for entry in manifest.submodels],
    }


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _write_safetensors(bundle: Bundle, submodel: str, out: Path) -> None:
    """The weights that the sub-model's graph reads, by the names that it gives them."""
    from safetensors.numpy import save_file

    save_file(_tensors(bundle, submodel), out, metadata={"format": "np"})  # of two keys the order would be chance


def _tensors(bundle: Bundle, submodel: str) -> dict[str, NDArray[Any]]:
    import onnx

    path = bundle.graph_path(submodel)
    graph = onnx.load(path, load_external_data=False).graph
    found: dict[str, NDArray[Any]] = {}
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        found[tensor.name] = np.fromfile(
            path.parent / place["location"], dtype, int(np.prod(shape)), offset=int(place.get("offset", 0))
        ).reshape(shape)
    return found
