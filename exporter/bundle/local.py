"""What a device or its owner has added to a bundle, and what becomes of it when another bundle takes that one's place.

Profiles stay where they are of the same networks, cut to those that the new bundle has; cascades where their sub-models
answer as before. What does not fit is named before anything is replaced.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from device_profiles import Profile, ProfileError, read_profile, write_profile
from exporter.bundle.bundle import MANIFEST_FILE, MODELS_FOLDER, SIGNATURE_FILE, SIGNED_FILE, Bundle, BundleError
from exporter.bundle.manifest import Manifest
from exporter.bundle.refit import refit, same_networks
from exporter.bundle.written import CASCADES_FILE, PROFILES_FOLDER, WRITTEN_FILE

_SYSTEMS = re.compile(r"lost\+found|\.DS_Store|\._.*|\.nfs.*|\..+\.partial-\d+")
"""Names that systems give, and that ours have while they are being written."""


@dataclass(frozen=True)
class Lost:
    """What a replacement does not keep, each in words: files that go as a whole, and what profiles say of sub-models that are
    not there any more."""

    files: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        everything = [*self.files, *self.measurements]
        return ", ".join(everything[:6]) + (f" and {len(everything) - 6} more" if len(everything) > 6 else "")


def lost(old: Bundle, same: Collection[str], offered: str | None = None) -> Lost:
    """What would go if these sub-models alone stayed as they are: to be asked before the work. `offered`: the device of a
    profile that comes with the new bundle."""
    files, measurements = foreign(old.path, old.manifest), []
    for path in _profiles(old.path):
        profile = _read(path)
        name = f"{PROFILES_FOLDER}/{path.name}"
        gone = [one for one in profile.submodels if one not in same] if profile is not None else []
        if path.stem == offered:
            continue
        if profile is None or profile.bundle != old.fingerprint or len(gone) == len(profile.submodels):
            files.append(name)
        elif gone:
            measurements.append(f"{', '.join(gone)} in {name}")
    if not _pairs(old.path) <= set(same):
        files.append(CASCADES_FILE)
    return Lost(tuple(files), tuple(measurements))


def carry_over(target: Path, old: Bundle | None, folder: Path, new: Manifest, offered: Profile | None = None) -> Lost:
    """Writes into `folder`, which holds the new bundle, what stays of what was added to the one at `target`, and returns what
    does not. `old` is that bundle, None where it is damaged; its profiles are then known by the new fingerprint alone, and its
    files by the new names. What was measured here goes before what `offered` says of the same device."""
    came = None if offered is None else offered.device.name
    for path in _profiles(target):
        profile = _read(path)
        kept = profile if profile is not None and profile.bundle == new.fingerprint else None
        if kept is None and profile is not None and old is not None:
            kept = refit(profile, old.manifest, new)
        if kept is None:
            continue
        if offered is not None and path.stem == came:
            kept = kept.model_copy(update={"submodels": {**offered.submodels, **kept.submodels}})
            offered = None
        (folder / PROFILES_FOLDER).mkdir(exist_ok=True)
        if kept == profile:
            shutil.copyfile(path, folder / PROFILES_FOLDER / path.name)
        else:
            write_profile(kept, folder / PROFILES_FOLDER / path.name)
    if offered is not None:
        write_profile(offered, folder / PROFILES_FOLDER / f"{came}.json")
    if old is None:
        return Lost(tuple(foreign(target, new, damaged=True)))
    found = lost(old, same_networks(old.manifest, new), came)
    if CASCADES_FILE in found.files or not (target / CASCADES_FILE).is_file():
        return found
    if not _answers_as_before(old, folder):
        return Lost((*found.files, CASCADES_FILE), found.measurements)
    shutil.copyfile(target / CASCADES_FILE, folder / CASCADES_FILE)
    return found


def foreign(target: Path, manifest: Manifest, *, damaged: bool = False) -> list[str]:
    """Files at `target` that no command of ours has written there. `manifest`: that of the bundle, or where that is `damaged`
    of the one to come; any of the models may then have been the old one's."""
    found = others(target, own_names(target, manifest))
    return [name for name in found if not (damaged and name.startswith(f"{MODELS_FOLDER}/"))]


def own_names(target: Path, manifest: Manifest) -> set[str]:
    """Of the files of a bundle of this manifest at `target`: its own, and what commands of ours write there."""
    later = (CASCADES_FILE, WRITTEN_FILE, SIGNED_FILE, SIGNATURE_FILE)
    return {MANIFEST_FILE, *later, *manifest.files, *_profile_names(target)}


def others(target: Path, own: Collection[str]) -> list[str]:
    """Files at `target` that have none of these names, but for those that systems keep there."""
    beside = f".{target.resolve().name}."  # what a pull keeps, where that is a mount point
    found = []
    for path in sorted(target.rglob("*")):
        parts = path.relative_to(target).parts
        systems = any(_SYSTEMS.fullmatch(part) for part in parts) or parts[0].startswith(beside)
        name = "/".join(parts)
        if not (path.is_dir() and not path.is_symlink()) and name not in own and not systems:
            found.append(name)
    return found


def _profile_names(target: Path) -> list[str]:
    return [f"{PROFILES_FOLDER}/{path.name}" for path in _profiles(target)]


def _profiles(target: Path) -> list[Path]:
    return sorted((target / PROFILES_FOLDER).glob("[!.]*.json"))


def _read(path: Path) -> Profile | None:
    try:
        return read_profile(path)
    except ProfileError:
        return None


def _pairs(target: Path) -> set[str]:
    """The sub-models that the bundle's cascades ask; a name that no bundle has where the file is damaged."""
    try:
        document = json.loads((target / CASCADES_FILE).read_bytes())
        cascades = document["cascades"] if isinstance(document, dict) else document  # a list alone is one from before
        return {str(cascade[part]) for cascade in cascades for part in ("first", "then")}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError):
        return {""}


def _answers_as_before(old: Bundle, folder: Path) -> bool:
    """A cascade's threshold was found on the answers of two sub-models: these must be there and answer as before, by their
    files or, where the weights were cut to what is needed, to the self-test."""
    import numpy as np

    names = _pairs(old.path)
    try:
        new = Bundle(folder, verify=False)
        if _hashes(old, names) == _hashes(new, names):
            return True
        (inputs, before), (same_inputs, now) = old.selftest(), new.selftest()
        pairs = [(inputs, same_inputs), *((before[name], now[name]) for name in names)]
        return all(a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a) for a, b in pairs)
    except (BundleError, OSError, ValueError, KeyError):
        return False


def _hashes(bundle: Bundle, names: Collection[str]) -> list[str]:
    paths = [path for name in sorted(names) for path in (bundle.submodel(name).graph, bundle.weights_path(name))]
    return [bundle.manifest.files[path].sha256 for path in paths]
