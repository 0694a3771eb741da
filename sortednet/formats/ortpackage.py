"""`--format ortpackage`: a model package of ONNX Runtime (from 1.32; its interface is experimental).

    NAME.ortpackage/manifest.json                    components and variants, with our figures as `additional_metadata`
    NAME.ortpackage/ID/model.onnx                    a graph for each sub-model
    NAME.ortpackage/shared_assets/sha256-…/          each weights file, once

The component `model` has all sub-models as variants, the best first: ONNX Runtime takes the first that its execution provider
fits, and knows no budget. Each sub-model is a component of its own too, so that who has chosen by the figures can open it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime as ort

from exporter.bundle import MANIFEST_FILE, Bundle, BundleError
from exporter.bundle.folder import built
from exporter.bundle.manifest import SubModelEntry
from exporter.bundle.session import CPU

COMPONENT, MODEL_FILE, ASSETS = "model", "model.onnx", "shared_assets"
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


def write_ortpackage(bundle: Bundle, out: Path, *, overwrite: bool = False) -> None:
    """Writes the folder. Raises BundleError where `out` cannot be written, where this ONNX Runtime knows no model packages, and
    for a sub-model that is named as the component of all."""
    package = getattr(ort, "ModelPackage", None)
    if package is None:
        raise BundleError(f"format = 'ortpackage': this ONNX Runtime is {ort.__version__}; allowed are 1.32 and later ones")
    if COMPONENT in bundle.submodels or ASSETS in bundle.submodels:
        raise BundleError(f"format = 'ortpackage': a sub-model is named {COMPONENT!r} or {ASSETS!r}, which the package uses")
    metadata = {one.id: _figures(bundle, one) for one in bundle.manifest.submodels}
    # What a device finds first it takes: the best, and in full precision before one that a processor may saturate in.
    order = sorted(bundle.manifest.submodels, key=lambda one: (one.precision != "fp32", -(one.quality or 0.0), -one.params))
    with built(out, written, overwrite=overwrite) as folder:
        assets = {name: _asset(bundle.path / name, folder, package) for name in bundle.manifest.weights_files}
        variants = {}
        for one in order:
            (folder / one.id).mkdir()
            shutil.copyfile(bundle.graph_path(one.id), folder / one.id / MODEL_FILE)
            session_options = {_FOLDER_OPTION: assets[bundle.weights_path(one.id)]}
            variants[one.id] = {
                "ep": CPU,
                "variant_directory": one.id,
                "executor_info": {"ort": {"model_file": MODEL_FILE, "session_options": session_options}},
                "additional_metadata": {"sortednet": metadata[one.id]},
            }
        alone = {name: {"variants": {name: variant}} for name, variant in variants.items()}
        manifest = bundle.manifest
        document = {
            "schema_version": "1.0",
            "layout": "portable",
            "package_name": out.name.removesuffix(".ortpackage"),
            "package_version": manifest.sha256[:12],
            "components": {COMPONENT: {"variants": variants}, **alone},
            "additional_metadata": {"sortednet": {"family": manifest.family, "task": manifest.task.kind}},
        }
        (folder / MANIFEST_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        try:
            package.open(str(folder)).close()
        except Exception as refused:  # ONNX Runtime has one exception type per status code
            raise BundleError(f"format = 'ortpackage': ONNX Runtime {ort.__version__} does not open it: {refused}") from None


def written(folder: Path) -> set[str]:
    """The names of the files in the folder that are of this format; none where its manifest is another package's, or a
    bundle's."""
    try:
        document = json.loads((folder / MANIFEST_FILE).read_bytes())
        if "sortednet" not in document["additional_metadata"]:
            return set()
        variants = document["components"][COMPONENT]["variants"].items()
        assets = {variant["executor_info"]["ort"]["session_options"][_FOLDER_OPTION] for _, variant in variants}
        weights = [path for uri in assets for path in (folder / ASSETS / uri.replace(":", "-")).glob("*.bin")]
        graphs = {f"{name}/{MODEL_FILE}" for name, _ in variants}
        return {MANIFEST_FILE, *graphs, *(path.relative_to(folder).as_posix() for path in weights)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def _asset(weights: Path, folder: Path, package: Any) -> str:
    """Puts a weights file into a folder of its own, and returns its address: `sha256:…`, of the folder as ONNX Runtime hashes
    it."""
    place = folder / ASSETS / "new"
    place.mkdir(parents=True)
    shutil.copyfile(weights, place / weights.name)  # as the graphs name it
    uri = str(package.compute_directory_hash(str(place)))
    place.rename(folder / ASSETS / uri.replace(":", "-"))
    return uri


def _figures(bundle: Bundle, one: SubModelEntry) -> dict[str, Any]:
    """What a budget is compared with: quality, sizes, and costs by device."""
    costs, wanted = {}, {"latency_ms", "energy_mj", "memory_mb"}
    for device in bundle.devices():
        measured = bundle.profile(device).submodels.get(one.id)
        if measured is not None:
            costs[device] = measured.model_dump(mode="json", exclude_none=True, include=wanted)
    return {
        "axes": {name: list(value) if isinstance(value, tuple) else value for name, value in one.axes.items()},
        "params": one.params,
        "macs": one.macs,
        "precision": one.precision,
        "metric": bundle.metric,
        "quality": one.quality,
        "costs": costs,
    }
