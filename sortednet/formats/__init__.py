"""A bundle as others keep models: a repository of Hugging Face's hub, a model package of ONNX Runtime, an OCI artefact.

Each is written from a bundle that is there, with what was measured, and holds the weights once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, SIGNATURE_FILE, SIGNED_FILE, Bundle, BundleError
from exporter.bundle.folder import Written, check_free
from sortednet.formats import hub, oci, ortpackage

__all__ = ["FORMATS", "Format", "check_out", "is_bundle", "left_out", "write_format"]

Format = Literal["bundle", "hf", "ortpackage", "oci"]
FORMATS: tuple[str, ...] = get_args(Format)
_WRITTEN: dict[str, Written] = {"hf": hub.written, "ortpackage": ortpackage.written, "oci": oci.written}
_WRITERS: dict[str, Callable[..., None]] = {
    "hf": hub.write_hub,
    "ortpackage": ortpackage.write_ortpackage,
    "oci": oci.write_oci,
}


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST_FILE).is_file()


def check_out(out: Path, kind: Format, *, overwrite: bool = False) -> None:
    """Looks, before the work, whether `write_format` would put something there. Raises BundleError as that does."""
    check_free(out, _WRITTEN[kind], overwrite=overwrite)


def left_out(bundle: Bundle, kind: Format) -> list[str]:
    """Files of the bundle that the format does not hold: a signature is of files where they were, a model package has no place
    but for graphs, weights and figures."""
    there = [name for name in (SIGNED_FILE, SIGNATURE_FILE) if (bundle.path / name).is_file() and kind in ("hf", "ortpackage")]
    if kind == "ortpackage":
        held = {*bundle.manifest.weights_files, *(graph for entry in bundle.manifest.submodels for graph in entry.graphs)}
        there += sorted(set(bundle.manifest.files) - held)
        there += [name for name in (CASCADES_FILE,) if (bundle.path / name).is_file()]
    return there


def write_format(bundle: Bundle, out: Path, kind: Format, *, overwrite: bool = False) -> None:
    """Writes the folder `out`. With `overwrite` one of the same format that stands there is replaced; what is git's stays.

    Raises BundleError for a format that is none or that a bundle is already, where `out` cannot be written or holds files that
    were not written in this format, and where this machine lacks what the format needs.
    """
    if kind not in _WRITERS:
        raise BundleError(f"format = {kind!r}: of a bundle allowed are {', '.join(_WRITERS)}")
    _WRITERS[kind](bundle, out, overwrite=overwrite)
