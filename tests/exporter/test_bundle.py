"""Opening a bundle: a wrong byte is noticed and named, a path cannot leave it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.bundle import MANIFEST_FILE, Bundle, BundleError
from exporter.bundle.manifest import Manifest, inside, sealed
from exporter.bundle.session import relative_error, rms_error
from exporter.bundle.verify import self_test


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle_path, tmp_path / "copy")
    return tmp_path / "copy"


def edit(bundle: Path, change: Callable[[dict[str, Any]], None], *, seal: bool = True) -> None:
    """Changes the manifest; sealed again it is what somebody wrote on purpose, unsealed what an accident did."""
    document = json.loads((bundle / MANIFEST_FILE).read_text())
    change(document)
    (bundle / MANIFEST_FILE).write_text(json.dumps(sealed(document) if seal else document))


def test_a_whole_bundle_passes_its_self_test(bundle: Bundle) -> None:
    result = self_test(bundle)
    assert result.submodels == len(bundle.submodels) == 6
    assert 0 <= result.largest_error < 1e-5
    assert bundle.bytes_total == sum(
        p.stat().st_size for p in bundle.path.rglob("*") if p.is_file() and "profiles" not in p.parts
    )


@pytest.mark.parametrize("name", ["models/weights.bin", "models/w0.50-d1.onnx", "selftest.npz"])
def test_a_changed_byte_a_truncation_and_a_missing_file_are_named(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    middle = len(content) // 2
    for damaged in (
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        content[:-1],
        content + b"\0",
        b"",
    ):
        (copy / name).write_bytes(damaged)
        with pytest.raises(BundleError, match=name):
            Bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: is missing"):
        Bundle(copy)


def test_an_altered_manifest_is_noticed(copy: Path) -> None:
    edit(copy, lambda d: d["submodels"][0].update(quality=0.999), seal=False)
    with pytest.raises(BundleError, match=r"manifest\.json: was altered"):
        Bundle(copy)


def test_a_truncated_manifest_is_noticed(copy: Path) -> None:
    text = (copy / MANIFEST_FILE).read_text()
    for size in (0, 1, len(text) // 2, len(text) - 3):
        (copy / MANIFEST_FILE).write_text(text[:size])
        with pytest.raises(BundleError, match=r"manifest\.json: is truncated or no JSON"):
            Bundle(copy)
    (copy / MANIFEST_FILE).write_text("[]")
    with pytest.raises(BundleError, match="no JSON object"):
        Bundle(copy)


def test_a_newer_format_is_refused_with_what_to_do(copy: Path) -> None:
    edit(copy, lambda d: d.update(format_version=3, invented_later=True))
    with pytest.raises(BundleError, match="format_version = 3 is newer than 2: update sortednet"):
        Bundle(copy)
    edit(copy, lambda d: d.update(format_version="one"))
    with pytest.raises(BundleError, match="format_version = 'one'"):
        Bundle(copy)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "models/../../secret", "C:\\secret", "\\\\host\\share", ""])
def test_a_path_cannot_leave_the_bundle(copy: Path, path: str) -> None:
    (copy.parent / "secret").write_text("secret")

    def point_outside(document: dict[str, Any]) -> None:
        document["submodels"][0]["graph"] = path
        document["files"][path] = {"sha256": "0" * 64, "bytes": 6}

    edit(copy, point_outside)
    with pytest.raises(BundleError, match=r"manifest\.json: .*leaves the bundle"):
        Bundle(copy)


@given(st.text(alphabet="ab./\\:~\0", max_size=12))
def test_what_is_taken_for_inside_is_inside(path: str) -> None:
    try:
        inside(path)
    except ValueError:
        return
    root = Path("/bundle")
    assert os.path.normpath(root / path).startswith("/bundle")
    assert not Path(path).is_absolute()


def test_links_are_refused(copy: Path) -> None:
    weights = copy / "models" / "weights.bin"
    weights.rename(copy.parent / "outside.bin")
    weights.symlink_to(copy.parent / "outside.bin")
    with pytest.raises(BundleError, match=r"models/weights\.bin: is a symbolic link"):
        Bundle(copy)
    weights.unlink()
    (copy.parent / "outside.bin").rename(weights)
    Bundle(copy)
    (copy / "models").rename(copy.parent / "models")
    (copy / "models").symlink_to(copy.parent / "models")
    with pytest.raises(BundleError, match="is a symbolic link"):
        Bundle(copy)


def test_a_file_that_is_used_but_not_listed_is_refused(copy: Path) -> None:
    edit(copy, lambda d: d["files"].pop("models/w0.50-d1.onnx"))
    with pytest.raises(BundleError, match=r"models/w0\.50-d1\.onnx is used but not listed"):
        Bundle(copy)


def test_no_bundle_and_unknown_sub_models_are_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        Bundle(tmp_path)
    with pytest.raises(BundleError, match=r"'w9' is not in this bundle; it holds w0\.50-d1"):
        bundle.graph_path("w9")


def test_a_graph_that_answers_wrongly_on_this_device_fails_the_self_test(copy: Path) -> None:
    """Hashes are right, but the device computes something else: only the self-test can tell."""
    arrays = dict(np.load(copy / "selftest.npz"))
    arrays["output/w0.50-d1/logits"] = arrays["output/w0.50-d1/logits"] * np.float32(1.01)
    np.savez_compressed(copy / "selftest.npz", **arrays)
    _rehash(copy, "selftest.npz")
    with pytest.raises(BundleError, match=r"models/w0\.50-d1\.onnx: its outputs on this device are off by"):
        self_test(Bundle(copy))


def test_the_fingerprint_is_that_of_the_networks_not_of_the_weights(copy: Path, bundle: Bundle) -> None:
    edit(copy, lambda d: d["submodels"][0].update(quality=0.5))
    assert Bundle(copy).fingerprint == bundle.fingerprint
    edit(copy, lambda d: d["submodels"][0].update(macs=1))
    assert Bundle(copy).fingerprint != bundle.fingerprint


def test_a_manifest_nested_too_deeply_is_none(copy: Path) -> None:
    opened = Bundle(copy)
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match=r"manifest\.json: is truncated or no JSON"):
        Bundle(copy)
    assert not opened.stands


def test_a_manifest_survives_a_round_trip(bundle: Bundle) -> None:
    assert Manifest.model_validate_json(bundle.manifest.model_dump_json()) == bundle.manifest


@given(st.lists(st.floats(-9e3, 9e3, width=32), min_size=1, max_size=20), st.floats(0, 0.5))  # larger ones may be masks
def test_relative_error_is_relative_to_the_largest_output(values: list[float], share: float) -> None:
    wanted = np.array(values, dtype=np.float64)
    scale = np.abs(wanted).max()
    got = wanted.copy()
    got[0] += share * scale
    assert relative_error({"y": got}, {"y": wanted}) == pytest.approx(share if scale else 0.0, abs=1e-9)
    assert relative_error({"y": got[:-1]}, {"y": wanted}) == float("inf")
    assert relative_error({"y": np.full_like(got, np.nan)}, {"y": wanted}) == float("inf")


@pytest.mark.parametrize("mask", [-1e9, -1e4, float(np.finfo(np.float32).min), -np.inf, np.inf])
@pytest.mark.parametrize("error", [relative_error, rms_error])
def test_what_masks_an_output_hides_no_error_of_the_rest(mask: float, error: Callable[[Any, Any], float]) -> None:
    rest = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    masks = np.full((2, 30), mask, np.float32)
    wanted = {"y": np.concatenate([rest, masks], 1)}
    assert error(wanted, wanted) == 0.0
    other = {"y": np.concatenate([1.25 * rest, masks], 1)}
    assert error(other, wanted) == pytest.approx(error({"y": 1.25 * rest}, {"y": rest}), rel=1e-6)
    for value in (0.0, -mask, np.nan, 2 * mask if np.isfinite(2 * mask) and mask > -1e30 else 1.0):
        bad = wanted["y"].copy()
        bad[:, 6] = value
        assert error({"y": bad}, wanted) > 0.1
    assert error(wanted, {"y": np.concatenate([rest, np.ones_like(masks)], 1)}) > 0.1


@pytest.mark.parametrize("values", [[3e5, 20.0], [2e5, 2.1e5, 7.0, 0.0], [1e-9, 1.0, 0.0], [2e4, 2e4, 1e3]])
def test_large_numbers_are_no_masks(values: list[float]) -> None:
    wanted = np.array(values)
    got = wanted.copy()
    got[-1] += 1e-3 * max(values)
    assert relative_error({"y": got}, {"y": wanted}) == pytest.approx(1e-3)


def _rehash(bundle: Path, name: str) -> None:
    import hashlib

    content = (bundle / name).read_bytes()
    edit(bundle, lambda d: d["files"][name].update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)))
