"""`sortednet export --format`: a bundle as others keep models, opened by their own libraries."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

import sortednet
from exporter.bundle import Bundle, BundleError
from exporter.bundle.verify import self_test
from selector import Budget, selector_for
from selector.ship.parts import open_signed
from selector.ship.signed import Trust
from sortednet.formats import write_format
from sortednet.formats.figures import figures_of
from sortednet.formats.oci import CONFIG, FILE_PATH, LAYOUT_FILE
from sortednet.signing import sign
from tests.conftest import DEVICE
from tests.helpers.keys import made
from tests.helpers.registry import registry
from tests.helpers.runtimes import stock, unmeasured
from tests.helpers.shelf import with_canary


def content_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2(2)")
def test_killed_at_any_moment_the_old_one_or_the_new_one_is_there(
    untrained_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(one: Path, other: Path) -> None:
        raise Killed

    write_format(Bundle(untrained_path), tmp_path / "digits", "oci")
    before = content_of(tmp_path / "digits")
    rename = Path.rename
    for allowed in (0, 1):  # of the steps by which it takes its place
        steps = iter([rename] * allowed)
        monkeypatch.setattr(Path, "rename", lambda one, other: next(steps, killed)(one, other))  # noqa: B023
        with contextlib.suppress(Killed):
            write_format(Bundle(untrained_path), tmp_path / "digits", "oci", overwrite=True)
        assert content_of(tmp_path / "digits") == before


@pytest.fixture
def pictures(untrained_path: Path) -> np.ndarray:
    """Two examples."""
    (array,) = Bundle(untrained_path).selftest_inputs.values()
    return np.asarray(array[:2])


@pytest.mark.parametrize("kind", ["hf", "ortpackage", "oci"])
def test_the_same_bundle_gives_the_same_bytes_and_what_stands_there_stays(
    untrained_path: Path, tmp_path: Path, kind: Any
) -> None:
    if kind == "ortpackage" and not hasattr(ort, "ModelPackage"):
        pytest.skip("this ONNX Runtime knows no model packages")
    for place in ("a", "b"):
        write_format(Bundle(untrained_path), tmp_path / place / "digits", kind)
    first = content_of(tmp_path / "a" / "digits")
    assert first == content_of(tmp_path / "b" / "digits")
    weights = hashlib.sha256((untrained_path / Bundle(untrained_path).manifest.weights).read_bytes()).hexdigest()
    assert list(first.values()).count(weights) == 1  # for all sizes
    with pytest.raises(BundleError, match="is there already; allowed is another place, or --overwrite"):
        write_format(Bundle(untrained_path), tmp_path / "a" / "digits", kind)
    write_format(Bundle(untrained_path), tmp_path / "a" / "digits", kind, overwrite=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="allowed is another place"):
        write_format(Bundle(untrained_path), mine, kind, overwrite=True)
    assert content_of(mine).keys() == {"letter.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "mine"}


def test_a_repository_for_the_hub_is_a_bundle_with_a_card(untrained_path: Path, pictures: np.ndarray, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from PIL import Image
    from safetensors.numpy import load_file

    out, source = tmp_path / "digits", Bundle(untrained_path)
    result = CliRunner().invoke(sortednet.app, ["export", str(untrained_path), "--format", "hf", "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = Bundle(out)
    self_test(found)
    chosen = [selector_for(one, DEVICE).select(Budget(latency_ms=3.2)).submodel for one in (source, found)]
    assert chosen[0] == chosen[1]
    card = hub.ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert {result.metric_value for result in card.data.eval_results} == {
        float(f"{quality:.6g}") for quality in source.qualities.values() if quality is not None
    }
    frontier = [line.entry.id for line in figures_of(source).lines if line.chosen]
    assert frontier
    assert all(f"| **{name}** |" in card.text for name in frontier)
    assert sum(line.startswith("| ") for line in card.text.splitlines()) == len(source.submodels) + 1
    with Image.open(out / "frontier.png") as picture:
        assert picture.size == (960, 600)
    config = json.loads((out / "config.json").read_text())
    assert config["submodels"] == list(source.submodels)
    tensors = load_file(out / "model.safetensors")
    largest = max(source.manifest.submodels, key=lambda entry: (entry.params, entry.precision == "fp32"))
    assert sum(tensor.size for tensor in tensors.values()) <= largest.params
    assert sum(tensor.nbytes for tensor in tensors.values()) <= (out / found.manifest.weights).stat().st_size
    session = ort.InferenceSession(out / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {found.manifest.inputs[0].name: pictures})
    np.testing.assert_allclose(answer, stock(source, largest.fp32_id, pictures), rtol=1e-5, atol=1e-5)


def test_a_model_package_opens_in_onnx_runtime_at_every_size(
    untrained_path: Path, pictures: np.ndarray, tmp_path: Path
) -> None:
    if not hasattr(ort, "ModelPackage"):
        pytest.skip("this ONNX Runtime knows no model packages")
    out, source = tmp_path / "digits.ortpackage", Bundle(untrained_path)
    write_format(source, out, "ortpackage")
    context = ort.ModelPackageContext(str(out))
    assert set(context.get_component_names()) == {"model", *source.submodels}
    variants = context.get_variant_names("model")
    assert set(variants) == set(source.submodels)
    options = ort.ModelPackageOptions(ort.SessionOptions())
    best = max(source.manifest.submodels, key=lambda entry: (entry.precision == "fp32", entry.quality or 0.0)).id
    for component, name in (("model", best), *((name, name) for name in source.submodels)):
        selected = context.select_component(component, options)
        assert selected.get_selected_variant_name() == name
        (answer,) = selected.create_session().run(None, {source.manifest.inputs[0].name: pictures})
        np.testing.assert_allclose(answer, stock(source, name, pictures), rtol=1e-5, atol=1e-5)
    info = ort.ModelPackage.open(str(out)).get_info()
    (component,) = [one for one in info["components"] if one["name"] == "model"]
    for variant in component["variants"]:
        said = json.loads(variant["additional_metadata_json"])["sortednet"]
        assert said["quality"] == source.qualities[variant["name"]]
        measured = source.profile(DEVICE).submodels[variant["name"]].latency_ms
        assert measured is not None
        assert said["costs"][DEVICE]["latency_ms"]["p99"] == measured.p99


def unpacked(layout: Path, out: Path) -> dict[str, Any]:
    """Puts each layer where it says, after its hash was compared; the artefact's manifest."""

    def blob(descriptor: dict[str, Any]) -> Path:
        path = layout / "blobs" / descriptor["digest"].replace(":", "/")
        content = path.read_bytes()
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
        assert len(content) == descriptor["size"]
        return path

    (descriptor,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest: dict[str, Any] = json.loads(blob(descriptor).read_text())
    config = json.loads(blob(manifest["config"]).read_text())
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    for layer in manifest["layers"]:
        place = out / layer["annotations"][FILE_PATH]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(blob(layer), place)
    return manifest


def test_an_oci_artefact_unpacks_to_the_bundle(untrained_path: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    write_format(Bundle(untrained_path), layout, "oci")
    assert json.loads((layout / LAYOUT_FILE).read_text()) == {"imageLayoutVersion": "1.0.0"}
    manifest = unpacked(layout, tmp_path / "digits")
    assert content_of(tmp_path / "digits") == content_of(untrained_path)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == CONFIG
    named = {one["digest"].partition(":")[2] for one in [manifest["config"], *manifest["layers"]]}
    assert len(list((layout / "blobs" / "sha256").iterdir())) == len(named) + 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # oras leaves its connections to the collector
def test_oras_carries_the_artefact_through_a_registry(bundle_path: Path, tmp_path: Path) -> None:
    provider = pytest.importorskip("oras.provider")
    write_format(Bundle(bundle_path), tmp_path / "layout", "oci")
    (descriptor,) = json.loads((tmp_path / "layout" / "index.json").read_text())["manifests"]
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    manifest = json.loads((blobs / descriptor["digest"].partition(":")[2]).read_text())
    with registry(tmp_path / "registry") as address:
        oras = provider.Registry(insecure=True)
        target = oras.get_container(f"{address}/models/digits:1")
        for one in [manifest["config"], *manifest["layers"]]:
            assert oras.upload_blob(str(blobs / one["digest"].partition(":")[2]), target, one).status_code in (200, 201, 202)
        assert oras.upload_manifest(manifest, target).status_code == 201
        oras.pull(f"{address}/models/digits:1", outdir=str(tmp_path / "pulled"))
        oras.session.close()
    assert content_of(tmp_path / "pulled") == content_of(bundle_path)
    self_test(Bundle(tmp_path / "pulled"))


@pytest.mark.parametrize(
    ("kind", "absent"),
    [
        ("oci", []),
        ("hf", ["signed.json", "signed.sig"]),
        ("ortpackage", ["signed.json", "signed.sig", "canary.npz", "selftest.npz"]),
    ],
)
def test_signature_and_labelled_examples_go_along_or_it_is_said_that_they_do_not(
    bundle_path: Path, tmp_path: Path, kind: str, absent: list[str]
) -> None:
    if kind == "ortpackage" and not hasattr(ort, "ModelPackage"):
        pytest.skip("this ONNX Runtime knows no model packages")
    keys, source = made(tmp_path), Path(shutil.copytree(bundle_path, tmp_path / "source"))
    with_canary(source)
    sign(Bundle(source), key=keys.private)
    out = tmp_path / "out"
    result = CliRunner().invoke(sortednet.app, ["export", str(source), "--format", kind, "--out", str(out)])
    assert (result.exit_code, "Not in it:" in result.stderr) == (0, bool(absent))
    assert all(name in result.stderr for name in absent)
    if kind == "oci":
        unpacked(out, tmp_path / "digits")
        open_signed(tmp_path / "digits", Trust(keys.public))
        assert content_of(tmp_path / "digits") == content_of(source)
    if kind == "hf":
        assert "sortednet sign" in result.stderr
        assert (out / "canary.npz").read_bytes() == (source / "canary.npz").read_bytes()
        assert not (out / "signed.json").exists()
        sign(Bundle(out), key=keys.private)
        open_signed(out, Trust(keys.public))


def test_what_a_format_cannot_hold_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="allowed are hf, ortpackage, oci"):
        write_format(Bundle(bundle_path), tmp_path / "out", "zip")  # type: ignore[arg-type]
    arguments = ["export", str(bundle_path), "--format", "hf", "--int8", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(sortednet.app, arguments)
    assert (result.exit_code, "int8: stands beside --format" in result.output) == (2, True)
    (tmp_path / "taken").mkdir()
    arguments = ["export", str(tmp_path / "no-run"), "--format", "oci", "--out", str(tmp_path / "taken")]
    result = CliRunner().invoke(sortednet.app, arguments)  # said before the run is looked at
    assert (result.exit_code, "is there already" in result.output) == (2, True)


def test_a_bundle_that_was_not_measured_is_written_by_its_macs(bundle_path: Path, tmp_path: Path) -> None:
    source = unmeasured(bundle_path, tmp_path)
    write_format(Bundle(source), tmp_path / "hub", "hf")
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "not measured yet" in text
    assert (tmp_path / "hub" / "frontier.png").is_file()
