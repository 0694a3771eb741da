"""`Bundle`: opens what was shipped, and notices a wrong byte. Needs neither torch nor onnx.

bundle/
  manifest.json            what is here, every file's sha256 and size
  models/weights.bin       the full model's parameters, once; and weights.int8.bin, where there are int8 graphs
  models/<sub-model>.onnx  one graph per sub-model
  selftest.npz             a few inputs, and each sub-model's expected outputs
  profiles/<device>.json   what was measured on that device; written later, not in the manifest
  cascades.json            pairs of sub-models (selector.choose.cascades); the same
  written.json             which profiles and cascades were written, with their checksums
  signed.json, signed.sig  all of this but the profiles, signed (selector.ship.signed); of a bundle that is
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_profiles import DeviceInfo, Profile, ProfileError, profile_document, read_profile, write_profile
from device_profiles.atomic import check_writable
from device_profiles.host import readable
from device_profiles.merge import check_merge, merged
from device_profiles.seal import SealError
from exporter.bundle.manifest import DecoderEntry, Manifest, SubModelEntry, checked, inside
from exporter.bundle.written import PROFILES_FOLDER, locked, recording

if TYPE_CHECKING:  # importing numpy takes longer than choosing a sub-model, which needs none
    from numpy.typing import NDArray

MANIFEST_FILE = "manifest.json"
SELFTEST_FILE = "selftest.npz"
SIGNED_FILE, SIGNATURE_FILE = "signed.json", "signed.sig"
CANARY_FILE = "canary.npz"
"""Of a bundle that has labelled examples (`selector.ship.trial`): arrays `input/NAME` and `labels`, class numbers."""
MODELS_FOLDER = "models"


class BundleError(ValueError):
    """A bundle that is missing, damaged, of a newer format, or does not hold what was asked for."""

    exit_code = 2


class Bundle:
    """A bundle on disk, opened and checked: a constructor that returns has seen every file with the right hash."""

    def __init__(self, path: str | Path, *, verify: bool = True, name: str | None = None) -> None:
        """`name`: under which it is served; default: its folder's. Raises BundleError naming the file that differs.
        `verify=False` skips the hashes, not the manifest's checks."""
        self.path = Path(path)
        self.name = readable(self.path.resolve().name) if name is None else name
        """A text that any document can hold."""
        self.manifest = _read_manifest(self.path)
        self.submodels: Mapping[str, SubModelEntry] = {entry.id: entry for entry in self.manifest.submodels}
        self._check_listing()
        if verify:
            self.verify_files()

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        return cls(path, verify=verify)

    def submodel(self, identifier: str) -> SubModelEntry:
        """Raises BundleError naming what there is when the id is unknown."""
        if identifier not in self.submodels:
            raise BundleError(f"sub-model {identifier!r} is not in this bundle; it holds {_some(list(self.submodels))}")
        return self.submodels[identifier]

    def graph_path(self, identifier: str) -> Path:
        """The sub-model's ONNX file; opens in stock ONNX Runtime by itself."""
        return self.path / self.submodel(identifier).graph

    def weights_path(self, identifier: str) -> str:
        """The weights file that the sub-model's graph reads, relative to the bundle."""
        return self.manifest.weights_of(self.submodel(identifier).precision)

    @property
    def decoder(self) -> DecoderEntry | None:
        """Of a bundle whose sub-models generate text, what a loop around their graphs needs to know; else None."""
        return self.manifest.decoder

    @cached_property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def metric(self) -> str:
        """What the sub-models' quality is: "accuracy", "mean_iou", …"""
        return self.manifest.task.metric

    @property
    def qualities(self) -> dict[str, float | None]:
        """Of each sub-model by the metric on the test split, 0 to 1, None where it was exported without test data."""
        return {name: entry.quality for name, entry in self.submodels.items()}

    @property
    def accuracies(self) -> dict[str, float | None]:
        """The qualities where the metric is accuracy, else None for each sub-model."""
        return self.qualities if self.metric == "accuracy" else dict.fromkeys(self.submodels)

    @property
    def weights_bytes(self) -> int:
        return sum(self.manifest.files[name].bytes for name in self.manifest.weights_files)

    @property
    def bytes_total(self) -> int:
        """Of the manifest and all files that it lists."""
        return (self.path / MANIFEST_FILE).stat().st_size + sum(f.bytes for f in self.manifest.files.values())

    @property
    def stands(self) -> bool:
        """Whether it is still the one in its folder: another may have been put there since it was opened."""
        return manifest_hash(self.path) == self.manifest.sha256

    def verify_files(self, names: Collection[str] | None = None) -> None:
        """Compares size and hash of these files, default: of every one, with the manifest. Raises BundleError naming the first
        that differs."""
        for name in self.manifest.files if names is None else names:
            entry = self.manifest.files[name]
            path = self._locate(name)
            if path.stat().st_size != entry.bytes:
                raise BundleError(
                    f"{name}: {path.stat().st_size} bytes, the manifest says {entry.bytes}: truncated or replaced"
                )
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry.sha256:
                raise BundleError(
                    f"{name}: its content differs from what was exported (sha256 {found[:12]}…, manifest {entry.sha256[:12]}…)"
                )

    def selftest(self) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, NDArray[Any]]]]:
        """Inputs by name, and expected outputs by sub-model and name; every array has the same batch axis."""
        inputs: dict[str, NDArray[Any]] = {}
        outputs: dict[str, dict[str, NDArray[Any]]] = {}
        import numpy as np

        with np.load(self._locate(self.manifest.selftest.file), allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, _, name = key.partition("/")  # of an input or an output it may have a slash
                if kind == "input":
                    inputs[name] = arrays[key]
                else:
                    identifier, _, name = name.partition("/")
                    outputs.setdefault(identifier, {})[name] = arrays[key]
        return inputs, outputs

    @cached_property
    def selftest_inputs(self) -> dict[str, NDArray[Any]]:
        """The self-test's inputs alone, by name."""
        import numpy as np

        with np.load(self._locate(self.manifest.selftest.file), allow_pickle=False) as arrays:
            return {key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith("input/")}

    def devices(self) -> list[str]:
        """Names of the devices that a profile is here for."""
        found = (self.path / PROFILES_FOLDER).glob("*.json")
        return sorted(path.stem for path in found if not path.name.startswith("."))  # macOS leaves ._NAME.json beside NAME.json

    def profile(self, device: str | Path) -> Profile:
        """A device's profile by name, or from the path of a profile file.

        Raises BundleError when there is none, when it is damaged or of another device than its name says, or when it was
        measured on another bundle.
        """
        named = self.path / PROFILES_FOLDER / f"{device}.json"
        path = named if str(device) in self.devices() else Path(device)
        if not path.is_file():
            known = ", ".join(self.devices()) or "none yet"
            raise BundleError(
                f"device {str(device)!r}: no profile; there are {known}; measure with `sortednet profile {self.path}`"
            )
        try:
            profile = read_profile(path)
        except ProfileError as error:
            raise BundleError(str(error)) from None
        if path == named and profile.device.name != path.stem:
            raise BundleError(
                f"profile {path.name}: is of device {profile.device.name!r}; a profile's file has the name of its device"
            )
        if profile.bundle != self.fingerprint:
            raise BundleError(
                f"profile {path.name}: was measured on another bundle ({profile.bundle[:8]}, this is {self.fingerprint[:8]}); "
                f"measure again with `sortednet profile {self.path}`"
            )
        unknown = [name for name in profile.submodels if name not in self.submodels]
        if unknown:
            raise BundleError(f"profile {path.name}: sub-model {unknown[0]!r} is not in this bundle")
        return profile

    def save_profile(self, profile: Profile, *, overwrite: bool = False) -> Path:
        """Keeps what a device has measured, and returns the file. What a profile of the same device and conditions says of
        other sub-models stays; with `overwrite` the file holds this profile alone.

        Raises BundleError when it was measured on another bundle, or one of other networks was put in this one's place;
        ProfileError when the profile of that name is damaged or of other conditions, or when it cannot be written.
        """
        if profile.bundle != self.fingerprint:
            name = f"profile of {profile.device.name}"
            raise BundleError(f"{name}: was measured on another bundle ({profile.bundle[:8]}, this is {self.fingerprint[:8]})")
        name = f"{PROFILES_FOLDER}/{profile.device.name}.json"
        try:
            with locked(self.path):
                if _read_manifest(self.path).fingerprint != self.fingerprint:
                    raise BundleError(f"profile {name!r}: another bundle was put in {str(self.path)!r}; measure again")
                old = None if overwrite else self._standing(profile.device.name)
                kept = merged(old, profile) if old else profile
                with recording(self.path, name, profile_document(kept)):
                    write_profile(kept, self.path / name)
        except (OSError, SealError) as error:
            raise ProfileError(f"profile {name!r}: cannot be written to {str(self.path)!r}: {_words(error)}") from None
        return self.path / name

    def check_profile(
        self,
        device: DeviceInfo,
        measured: Sequence[str],
        length: int | None = None,
        prompt: int | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Looks before the measuring, at most at this length and prompt, whether its profile will be kept. Raises ProfileError
        as `save_profile` would."""
        try:
            check_writable(self.path / PROFILES_FOLDER)
        except OSError as error:
            path = str(self._profile_path(device.name))
            raise ProfileError(f"profile {path!r}: cannot be written: {error.strerror}") from None
        old = None if overwrite else self._standing(device.name)
        if old is not None:
            check_merge(old, device, measured, length, prompt)

    def _profile_path(self, device: str) -> Path:
        return self.path / PROFILES_FOLDER / f"{device}.json"

    def _standing(self, device: str) -> Profile | None:
        """The device's profile of this bundle; None where there is none, or one of another bundle, which is of no use here."""
        path = self._profile_path(device)
        if not path.exists():
            return None
        try:
            found = read_profile(path)
        except ProfileError as error:
            raise ProfileError(f"{error}; --overwrite replaces it") from None
        return found if found.bundle == self.fingerprint else None

    def _check_listing(self) -> None:
        """Every path that the manifest uses is listed with a hash."""
        if len(self.submodels) != len(self.manifest.submodels):
            raise BundleError(f"{MANIFEST_FILE}: a sub-model id appears twice")
        graphs = (graph for entry in self.manifest.submodels for graph in entry.graphs)
        used = [*self.manifest.weights_files, self.manifest.selftest.file, *graphs]
        int8 = self.manifest.decoder is None and any(entry.precision == "int8" for entry in self.manifest.submodels)
        if int8 and not self.manifest.int8_weights:
            raise BundleError(f"{MANIFEST_FILE}: there are int8 sub-models but no int8_weights")
        if self.manifest.decoder is not None and (unknown := set(self.submodels) ^ set(self.manifest.decoder.graph)):
            raise BundleError(f"{MANIFEST_FILE}: decoder.graph and the sub-models differ: {min(unknown)}")
        for name in used:
            if name not in self.manifest.files:
                raise BundleError(f"{MANIFEST_FILE}: {name} is used but not listed under files")

    def _locate(self, name: str) -> Path:
        """The file behind a manifest's path; links are refused, because they could leave the bundle."""
        inside(name)
        path = self.path / name
        links = [
            part for part in [path, *path.parents] if part != self.path and self.path in part.parents and part.is_symlink()
        ]
        if links:
            raise BundleError(f"{name}: is a symbolic link; a bundle holds plain files only")
        if not path.is_file():
            raise BundleError(f"{name}: is missing from the bundle")
        return path


def manifest_hash(folder: Path) -> str | None:
    """The checksum that the manifest there has of itself; None where there is none."""
    try:
        document = json.loads((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document.get("sha256") if isinstance(document, dict) else None


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST_FILE
    if not path.is_file():
        run = (root / "run.json").is_file()  # as `trainer.folder` writes it
        how = f"it is a run; make one of it with `sortednet export {root}`" if run else "make one with `sortednet export`"
        raise BundleError(f"{str(root)!r} is no bundle: it has no {MANIFEST_FILE}; {how}")
    try:
        document = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_FILE}: is truncated or no JSON: {error}") from None
    try:
        return checked(document)
    except ValueError as error:
        raise BundleError(f"{MANIFEST_FILE}: {error}") from None


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:4])}, … {names[-1]} ({len(names)} in all)"
