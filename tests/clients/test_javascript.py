"""The JavaScript client's own tests, and what it has to do as Python does: seals and pictures."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from device_profiles.seal import seal_of
from exporter.bundle.preprocessing import ImagePreprocessing, read_image

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "clients" / "js" / "src"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node found: apt-get install nodejs")

SPECS: list[dict[str, Any]] = [
    {"size": (8, 8), "channels": 1},
    {"size": (32, 24), "channels": 3, "interpolation": "bicubic", "resize": 40},
    {"size": (9, 16), "channels": 3, "interpolation": "lanczos", "crop": "none", "value_range": (-1.0, 1.0)},
    {"size": (50, 61), "channels": 3, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)},
    {"size": (7, 5), "channels": 1, "interpolation": "nearest", "crop": "none"},
    {"size": (37, 53), "channels": 3, "crop": "none"},  # as it is
]
DOCUMENTS: list[dict[str, Any]] = [
    {"b": 1, "a": [1.5, 1e-7, 1e21, 0.1, -0.0, 12345678901234567890.0], "ä": "é\n\u2028\U0001f600", "": None, "sha256": "x"},
    {"submodels": {"w2": {"latency_ms": {"p50": 0.30000000000000004, "n": 3}}, "w10": {}}, "yes": True},
]


def node(code: str, given: object) -> Any:
    """What the module prints as JSON; it reads `given` from its standard input."""
    head = "import { readFileSync } from 'node:fs'; const given = JSON.parse(readFileSync(0, 'utf-8'));"
    found = subprocess.run(
        [str(NODE), "--input-type=module", "-e", head + code], input=json.dumps(given), capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("path", sorted((ROOT / "clients/js/test").glob("*.test.js")), ids=lambda path: path.name)
def test_its_own_tests_pass(path: Path) -> None:
    found = subprocess.run([str(NODE), "--test", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr


def test_it_seals_documents_as_python_does() -> None:
    code = f"import {{ sealed }} from '{SOURCES.as_uri()}/measure.js';"
    found = node(
        f"{code} console.log(JSON.stringify((await Promise.all(given.map(sealed))).map((one) => one.sha256)))", DOCUMENTS
    )
    assert found == [seal_of(document) for document in DOCUMENTS]


def test_it_makes_the_same_input_of_a_picture() -> None:
    """To the bit: Pillow's whole numbers, and single precision after them."""
    pixels = np.random.default_rng(0).integers(0, 256, (53, 37, 3), dtype=np.uint8).transpose(1, 0, 2)
    pixels[:, ::3] = np.minimum(pixels[:, ::3], 40)  # edges, at which weights below zero overshoot
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    code = f"import {{ pixelsOf }} from '{SOURCES.as_uri()}/picture.js'; const {{ rgba, width, height, specs }} = given;"
    given = {"rgba": rgba.ravel().tolist(), "width": pixels.shape[1], "height": pixels.shape[0], "specs": SPECS}
    found = node(f"{code} console.log(JSON.stringify(specs.map((one) => [...pixelsOf(rgba, width, height, one)])))", given)
    for spec, values in zip(SPECS, found, strict=True):
        wanted = read_image(io.BytesIO(file.getvalue()), ImagePreprocessing(**spec))
        np.testing.assert_array_equal(np.array(values, np.float32).reshape(wanted.shape), wanted, err_msg=str(spec))
