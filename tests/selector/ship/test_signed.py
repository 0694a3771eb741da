"""Signed bundles: what is refused, before a graph is opened, and what is not signed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from exporter.bundle import Bundle, session
from exporter.bundle.manifest import sealed
from exporter.ranges import ranges_of
from selector.choose.cascades import Cascade, write_cascades
from selector.ship import signed as signed_module
from selector.ship.parts import open_signed
from selector.ship.signed import SignatureError, Trust, files_of, verified
from sortednet.signing import sign
from tests.helpers.commands import document, refused
from tests.helpers.keys import Keys, made, signed_copy

CASCADE = Cascade(
    id="both",
    first="w0.50-d1",
    then="w1.00-d1",
    threshold=0.5,
    escalation=0.2,
    accuracy=0.9,
    floor=0.8,
    confidence=0.95,
    examples=9,
)


@pytest.fixture(scope="module")
def signed_path(untrained_path: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a cascade. Tests must not change it."""
    copied = Path(shutil.copytree(untrained_path, tmp_path_factory.mktemp("bundles") / "digits"))
    write_cascades(Bundle(copied), [CASCADE])
    sign(Bundle(copied), key=keys.private, version=7)
    return copied


@pytest.fixture
def mine(signed_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed_path, tmp_path / "mine"))


def test_what_was_signed_is_opened_and_says_so(mine: Path, keys: Keys) -> None:
    assert open_signed(mine, Trust(keys.public)).manifest == Bundle(mine).manifest
    assert document("verify", mine, "--key", keys.public)["signature"] == "holds"
    assert document("verify", mine)["signature"] == "not checked"


def test_every_file_and_every_byte_that_a_graph_reads_is_signed(signed_path: Path, keys: Keys) -> None:
    content = verified(*files_of(signed_path), Trust(keys.public))
    assert content.version == 7
    assert set(content.content.files) == set(Bundle(signed_path).manifest.files)
    for name, ranges in content.ranges.items():
        read = np.zeros((signed_path / name).stat().st_size, bool)
        for one in ranges:
            assert not read[one.begin : one.end].any()
            read[one.begin : one.end] = True
        left = np.fromfile(signed_path / name, np.uint8)[~read]
        assert len(left) < 0.05 * len(read)  # padding
    bundle = Bundle(signed_path)
    small, large = (content.needs[bundle.submodel(name).graph] for name in ("w0.50-d1", "w1.00-d2"))
    weights = bundle.manifest.weights
    assert set(small[weights]) < set(large[weights])


def test_ranges_are_cut_where_any_graph_begins_or_ends() -> None:
    found = ranges_of({"small": [(0, 100), (192, 200)], "large": [(0, 150), (192, 300)]})
    assert found.bounds == ((0, 100), (100, 150), (192, 200), (200, 300))
    assert found.needs == {"small": (0, 2), "large": (0, 1, 2, 3)}
    assert ranges_of({"a": [(0, 90)], "b": [(128, 130)], "c": [(0, 90), (128, 130)]}).bounds == ((0, 90), (128, 130))
    assert ranges_of({"one": [(0, 90), (128, 130)]}).bounds == ((0, 130),)  # the padding between is signed with them


def _altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    found = json.loads((bundle / "manifest.json").read_bytes())
    change(found)
    (bundle / "manifest.json").write_text(json.dumps(sealed(found), indent=1) + "\n")


def _graph_of_another(bundle: Path) -> None:
    """With a manifest that fits: whoever can write a graph can write that too."""
    entry = Bundle(bundle).submodel("w0.50-d1").graph
    content = (bundle / entry).read_bytes() + b"\x08\x09"
    (bundle / entry).write_bytes(content)
    figures = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    _manifest(bundle, lambda found: found["files"].update({entry: figures}))


def _cascade(bundle: Path) -> None:
    write_cascades(Bundle(bundle), [CASCADE.model_copy(update={"threshold": 0.01})])


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no signature": (lambda b: (b / "signed.sig").unlink(), "is not signed: it has no signed.sig"),
    "no document": (lambda b: (b / "signed.json").unlink(), "is not signed: it has no signed.json"),
    "another document": (lambda b: _altered(b / "signed.json"), "is no signature of signed.json"),
    "another signature": (lambda b: _altered(b / "signed.sig"), "is no signature of signed.json"),
    "weights": (lambda b: _altered(b / "models/weights.bin"), "weights.bin: its content differs"),
    "a graph": (_graph_of_another, "manifest.json: is not what was signed"),
    "a quality": (lambda b: _manifest(b, lambda m: m["submodels"][0].update(quality=1.0)), "is not what was signed"),
    "a sub-model's name": (lambda b: _manifest(b, lambda m: m["submodels"][0].update(id="x")), "is not what was signed"),
    "a cascade": (_cascade, "cascades.json: is not what was signed"),
    "no cascade": (lambda b: (b / "cascades.json").unlink(), "cascades.json: is missing; it was signed"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_not_as_it_was_signed_is_refused_before_a_graph_is_opened(
    mine: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    damage, said = WRONG[fault]
    damage(mine)
    monkeypatch.setattr(session.ort, "InferenceSession", lambda *given, **named: pytest.fail("a graph was opened"))
    with pytest.raises(SignatureError if "differs" not in said else ValueError, match=re.escape(said)):
        open_signed(mine, Trust(keys.public))
    assert said in refused("verify", mine, "--key", keys.public, code=1)


def test_a_service_serves_no_bundle_that_its_key_has_not_signed(mine: Path, untrained_path: Path, tmp_path: Path) -> None:
    other = made(tmp_path, "other").public
    assert "is no signature of signed.json by the key" in refused("serve", mine, "--key", other, code=1)
    assert "is not signed" in refused("serve", untrained_path, "--key", other, code=1)


def test_a_foreign_signature_is_refused(mine: Path, untrained_path: Path, keys: Keys, tmp_path: Path) -> None:
    other = made(tmp_path, "other")
    with pytest.raises(SignatureError, match=r"is no signature of signed\.json by the key"):
        open_signed(mine, Trust(other.public))
    foreign = signed_copy(untrained_path, tmp_path / "foreign", other)
    shutil.copy(foreign / "signed.sig", mine)  # a signature that holds, of another document
    with pytest.raises(SignatureError, match=r"is no signature of signed\.json"):
        open_signed(mine, Trust(other.public))


def test_a_signature_of_nothing_is_none_of_the_document(mine: Path, keys: Keys, tmp_path: Path) -> None:
    """The key's owner has signed a folder that had only files that were ignored."""
    from model_signing import hashing, signing

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "signed.json").write_text("x")
    config = signing.Config().use_elliptic_key_signer(private_key=keys.private)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["signed.json"]))
    config.sign(tmp_path / "empty", mine / "signed.sig")
    with pytest.raises(SignatureError, match=r"signed\.json"):
        open_signed(mine, Trust(keys.public))


def test_profiles_are_the_devices_own(mine: Path, keys: Keys) -> None:
    shutil.rmtree(mine / "profiles")
    (mine / "written.json").unlink()
    open_signed(mine, Trust(keys.public))


def test_the_tool_of_model_signing_says_the_same(mine: Path, keys: Keys) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(mine), "--signature", str(mine / "signed.sig")]
    command += ["--public_key", str(keys.public), "--ignore_unsigned_files"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    _altered(mine / "signed.json")
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_keys_that_are_none_are_wrong_input(mine: Path, tmp_path: Path, keys: Keys) -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    (tmp_path / "rsa.pem").write_bytes(
        key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for path in ("rsa.pem", "nowhere.pem"):
        with pytest.raises(SignatureError, match="allowed is the public key of an elliptic curve") as caught:
            open_signed(mine, Trust(tmp_path / path))
        assert caught.value.exit_code == 2
    assert "the private key of an elliptic curve" in refused("sign", mine, "--key", keys.public)
    unread = f"key = '{tmp_path / 'no.pem'}': cannot be read: No such file or directory; allowed is the"
    assert unread in refused("sign", mine, "--key", tmp_path / "no.pem")
    assert unread in refused("verify", mine, "--key", tmp_path / "no.pem")
    assert "one of --key PRIVATE.pem and --sigstore" in refused("sign", mine)
    assert "--identity and --issuer" in refused("verify", mine, "--identity", "me@example.org")
    assert "key and identity" in refused(
        "verify", mine, "--key", keys.public, "--identity", "me", "--issuer", "https://a.example"
    )
    assert "'rsa.pem'" in refused("verify", mine, "--key", tmp_path / "rsa.pem", "--json").replace(f"{tmp_path}/", "")


def test_a_later_signature_is_of_a_later_version_whatever_the_clock_says(
    mine: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: -5e8)
    assert document("sign", mine, "--key", keys.private)["version"] == 8
    assert "version = 3: the signature that is here has 8" in refused("sign", mine, "--key", keys.private, "--version", "3")


def test_sigstore_is_asked_as_it_wants_to_be(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no network here: that the right calls are made."""
    from model_signing import signing, verifying

    asked: list[Any] = []

    class Signer:
        def use_sigstore_signer(self, **options: Any) -> None:
            asked.append(options)

        def sign(self, model: Path, out: Path) -> None:
            asked.append([path.name for path in model.iterdir()])
            out.write_text("{}")

    class Verifier:
        def use_sigstore_verifier(self, **options: Any) -> None:
            asked.append(options)

        def verify(self, model: Path, signature: Path) -> None:
            asked.append((model / "signed.json").read_bytes() == (mine / "signed.json").read_bytes())

    monkeypatch.setattr(signing, "Config", Signer)
    monkeypatch.setattr(verifying, "Config", Verifier)
    sign(Bundle(mine), sigstore={"identity_token": "a.b.c"})
    assert asked == [{"identity_token": "a.b.c"}, ["signed.json"]]
    asked.clear()
    monkeypatch.setattr(signed_module, "_digests", lambda signature: [_sha256(mine / "signed.json")])
    open_signed(mine, Trust(identity="me@example.org", issuer="https://issuer.example"))
    assert asked == [{"identity": "me@example.org", "oidc_issuer": "https://issuer.example"}, True]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
