"""What was shipped, opened and checked: the manifest's schema, the hashes, the self-test, how a session is opened.

No torch and no onnx here. ONNX Runtime and numpy come with `session` and `verify`, which are imported by those that run a
graph; whoever only reads a bundle waits for neither.
"""

from exporter.bundle.bundle import (
    CANARY_FILE,
    MANIFEST_FILE,
    MODELS_FOLDER,
    SELFTEST_FILE,
    SIGNATURE_FILE,
    SIGNED_FILE,
    Bundle,
    BundleError,
    manifest_hash,
)
from exporter.bundle.written import CASCADES_FILE, PROFILES_FOLDER

__all__ = [
    "CANARY_FILE",
    "CASCADES_FILE",
    "MANIFEST_FILE",
    "MODELS_FOLDER",
    "PROFILES_FOLDER",
    "SELFTEST_FILE",
    "SIGNATURE_FILE",
    "SIGNED_FILE",
    "Bundle",
    "BundleError",
    "manifest_hash",
]
