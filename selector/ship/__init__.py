"""What a device does with a bundle that it is to trust: whether a signature holds for what lies here (`signed`, `parts`), which
versions it has kept (`versions`), whether a new one is worse than the one before (`trial`, by the `runs` of all processes), and
what it remembers and tells of that (`state`). No torch, no onnx; the library that checks signatures, the extra `sign`, is
imported when there is one to check.
"""

from selector.ship.signed import SignatureError, Signed, Trust

__all__ = ["SignatureError", "Signed", "Trust"]
