"""`--format oci`: an OCI image layout on disk that holds one artefact, as the CNCF's ModelPack specifies it (model-spec v1).

    oci-layout, index.json        what is here
    blobs/sha256/…                the artefact's manifest, its configuration, and every file of the bundle as it is

Each file is a layer of its own, not packed: of two versions a registry keeps, and a client fetches, only the files that differ.
Whoever pulls it puts each layer where `org.cncf.model.filepath` says, and has the bundle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from exporter.bundle import CANARY_FILE, CASCADES_FILE, MANIFEST_FILE, PROFILES_FOLDER, SIGNATURE_FILE, SIGNED_FILE, Bundle
from exporter.bundle.folder import built
from exporter.bundle.written import WRITTEN_FILE

LAYOUT_FILE, INDEX_FILE, TAG = "oci-layout", "index.json", "latest"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT, WEIGHT_CONFIG, DATA = (f"application/vnd.cncf.model.{name}.v1.raw" for name in ("weight", "weight.config", "dataset"))
MANIFEST, INDEX = (f"application/vnd.oci.image.{name}.v1+json" for name in ("manifest", "index"))
FILE_PATH = "org.cncf.model.filepath"
_MODALITIES = ("text", "image", "audio")


def write_oci(bundle: Bundle, out: Path, *, overwrite: bool = False) -> None:
    """Writes the folder, the same bytes for the same bundle. Raises BundleError where `out` cannot be written."""
    names = [MANIFEST_FILE, *bundle.manifest.files, *_written_later(bundle)]
    with built(out, written, overwrite=overwrite) as folder:
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        layers = [_layer(bundle, name, blobs) for name in names]
        config = _blob(_config(bundle, out.name, [layer["digest"] for layer in layers]), CONFIG, blobs)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": config,
            "layers": layers,
            "annotations": {"org.opencontainers.image.title": out.name, "org.opencontainers.image.version": _version(bundle)},
        }
        manifest = _blob(document, MANIFEST, blobs)
        manifest |= {"artifactType": ARTIFACT, "annotations": {"org.opencontainers.image.ref.name": TAG}}
        _write(folder / INDEX_FILE, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]})
        _write(folder / LAYOUT_FILE, {"imageLayoutVersion": "1.0.0"})


def written(folder: Path) -> set[str]:
    """The names of the files in the folder that are of this format: the layout's own and the blobs of the artefacts that are
    bundles; none where there is no such artefact."""
    names = set()
    try:
        for descriptor in json.loads((folder / INDEX_FILE).read_bytes())["manifests"]:
            blob = _place(descriptor)
            document = json.loads((folder / blob).read_bytes())
            if MANIFEST_FILE in [layer.get("annotations", {}).get(FILE_PATH) for layer in document["layers"]]:
                names |= {blob, *map(_place, [document["config"], *document["layers"]])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()
    return {LAYOUT_FILE, INDEX_FILE, *names} if names else set()


def _place(descriptor: dict[str, Any]) -> str:
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def _written_later(bundle: Bundle) -> list[str]:
    """Profiles, cascades and the signature, which the manifest does not list."""
    found = [f"{PROFILES_FOLDER}/{device}.json" for device in bundle.devices()]
    later = (CASCADES_FILE, WRITTEN_FILE, SIGNED_FILE, SIGNATURE_FILE)
    return [*found, *(name for name in later if (bundle.path / name).is_file())]


def _layer(bundle: Bundle, name: str, blobs: Path) -> dict[str, Any]:
    source = bundle.path / name
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    shutil.copyfile(source, blobs / digest)
    manifest = bundle.manifest
    weights = PurePosixPath(name).suffix == ".onnx" or name in manifest.weights_files
    kind = WEIGHT if weights else DATA if name in (manifest.selftest.file, CANARY_FILE) else WEIGHT_CONFIG
    annotations = {FILE_PATH: name, "org.opencontainers.image.title": name}
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": source.stat().st_size, "annotations": annotations}


def _config(bundle: Bundle, name: str, digests: list[str]) -> dict[str, Any]:
    manifest = bundle.manifest
    whole = max(manifest.submodels, key=lambda entry: entry.params)
    kinds = sorted({str(spec.get("kind", "other")) for spec in manifest.preprocessing.values()})
    given = [kind if kind in _MODALITIES else "other" for kind in kinds] or ["other"]
    answered = "text" if manifest.decoder is not None else "embedding" if manifest.task.kind == "embedding" else "other"
    return {
        "descriptor": {
            "name": name,
            "family": manifest.family,
            "version": _version(bundle),
            "description": f"{len(manifest.submodels)} sizes of one nested model over one weights file",
        },
        "config": {
            "architecture": manifest.family,
            "format": "onnx",
            "paramSize": str(whole.params),
            "precision": ",".join(sorted({entry.precision for entry in manifest.submodels})),
            "capabilities": {"inputTypes": list(dict.fromkeys(given)), "outputTypes": [answered]},
        },
        "modelfs": {"type": "layers", "diffIds": digests},
    }


def _version(bundle: Bundle) -> str:
    return bundle.manifest.sha256[:12]


def _blob(document: Any, kind: str, blobs: Path) -> dict[str, Any]:
    """Keeps a document by its hash, and returns its descriptor."""
    content = json.dumps(document, separators=(",", ":")).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")
