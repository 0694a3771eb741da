"""Bytes that are altered, one at a time, anywhere in a signed bundle and its signature."""

from __future__ import annotations

import random
import shutil

from benchmarks.ship.bundles import shipped
from exporter.bundle import SIGNATURE_FILE, SIGNED_FILE, BundleError
from selector.ship.parts import open_signed
from selector.ship.signed import files_of, verified

BYTES = 1000
NOTES = {
    "tampered": "single bytes altered in a bundle that was pulled with a key: half of them anywhere in its files, by size, "
    "a quarter in signed.json and signed.sig each, the manifest and graphs included; each opened with the key",
    "tampered_refused": "of these, refused; the others are in parts of the signature's file that say nothing (spelling of "
    "JSON, padding of base64): what was verified is byte for byte what was signed",
    "missed": "of these, opened with any other content than was signed",
}


def measure(count: int = BYTES) -> dict[str, float]:
    with shipped() as bundles:
        mine = bundles.scratch / "device" / "digits"
        bundles.fetch(bundles.first, mine, "w0.50-d1", "w1.00-d1")
        whole = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
        text = whole[mine / SIGNED_FILE]
        draw = random.Random(0)
        signed_files = [path for path in whole if path.name not in (SIGNED_FILE, SIGNATURE_FILE, "written.json")]
        sizes = [len(whole[path]) for path in signed_files]
        refused = missed = 0
        for number in range(count):
            place = {0: mine / SIGNED_FILE, 1: mine / SIGNATURE_FILE}.get(number % 4)
            path = place or draw.choices(signed_files, weights=sizes)[0]
            content = bytearray(whole[path])
            content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
            path.write_bytes(content)
            try:
                open_signed(mine, bundles.trust)
            except BundleError:
                refused += 1
            else:
                signed, signature = files_of(mine)
                same = all(path.read_bytes() == found for path, found in whole.items() if path.name != SIGNATURE_FILE)
                missed += not (same and signed == text and verified(signed, signature, bundles.trust))
            path.write_bytes(whole[path])
        shutil.rmtree(mine)
        return {"tampered": count, "tampered_refused": refused, "missed": missed}
