"""The `inspect` document of a bundle (CONTRACT.md), which the REST service serves too."""

from __future__ import annotations

from typing import Any

from exporter.bundle.bundle import Bundle


def inspect(bundle: Bundle) -> dict[str, Any]:
    """What a bundle holds, as JSON values; paths are relative to the bundle. A sub-model's `bytes` are its graph's: what it
    takes beside the shared weights."""
    manifest = bundle.manifest.model_dump(mode="json", exclude={"submodels": {"__all__": {"layers"}}})
    return {
        "format_version": manifest["format_version"],
        "family": manifest["family"],
        "axes": manifest["axes"],
        "task": {name: manifest["task"][name] for name in ("kind", "metric", "labels")},
        "quality_from": manifest["quality_from"],
        "preprocessing": manifest["preprocessing"],
        "bytes_total": bundle.bytes_total,
        "weights_bytes": bundle.weights_bytes,
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
        **({"decoder": manifest["decoder"]} if bundle.decoder else {}),
        "devices": bundle.devices(),
        "fingerprint": bundle.fingerprint,
        "submodels": [_described(bundle, entry) for entry in manifest["submodels"]],
    }


def _described(bundle: Bundle, entry: dict[str, Any]) -> dict[str, Any]:
    """With `accuracy` where the metric is that."""
    accuracy = {"accuracy": entry["quality"]} if bundle.metric == "accuracy" else {}
    return {**entry, **accuracy, "bytes": bundle.manifest.files[entry["graph"]].bytes}
