"""What errors tell clients of the server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from selector.service.web.problems import without_folder


@pytest.mark.parametrize(
    ("folder", "said", "told"),
    [
        ("/srv/models/demo", "/srv/models/demo: is damaged", "pets: is damaged"),
        (
            "/srv/models/demo",
            "nothing in file:///srv/models/demo. Look at /srv/models/demo-2.",
            "nothing in file://pets. Look at /srv/models/demo-2.",
        ),
        ("/srv/models/demo", "/srv/models/.demo.versions/8fa0/w1.onnx: no graph", "pets/8fa0/w1.onnx: no graph"),
        ("models/demo", "models/demo/manifest.json is no JSON", "pets/manifest.json is no JSON"),
        ("demo", "demo holds w0.5, demo-2 does not", "pets holds w0.5, demo-2 does not"),
        (".", "models/w1.onnx: 0.5 MB at most. Nothing", "models/w1.onnx: 0.5 MB at most. Nothing"),
    ],
)
def test_a_bundle_is_called_by_its_name_and_not_by_where_it_lies(folder: str, said: str, told: str) -> None:
    bundle = SimpleNamespace(path=Path(folder), name="pets")
    assert without_folder(ValueError(said), bundle) == told  # type: ignore[arg-type]
