"""Keys, and bundles that are signed with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from exporter.bundle import Bundle
from sortednet.signing import sign


class Keys(NamedTuple):
    """The files of a pair."""

    private: Path
    public: Path


def made(folder: Path, name: str = "maker") -> Keys:
    """A new pair of the curve P-256."""
    keys = Keys(folder / f"{name}.private.pem", folder / f"{name}.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    keys.private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    keys.public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return keys


def signed_copy(bundle: Path, target: Path, keys: Keys, version: int = 1) -> Path:
    """The bundle, signed, under the same name in the folder `target`, where it takes the place of another."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(bundle, target)
    sign(Bundle(target), key=keys.private, version=version)
    return target
