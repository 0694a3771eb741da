"""The angles of rotary positions, as transformers computes them for a configuration: scaled linearly, as LLaMA 3 does, …"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from exporter.decoder.store import Array
from exporter.selftest import ExportError


@torch.no_grad()
def rotary_caches(rotary: Any, context: int) -> tuple[Array, Array]:
    """Cosines and sines of positions 0 to context - 1, each (context, rotated numbers / 2), of a model's module `rotary_emb`.

    Raises ExportError where the two halves of a head are not turned alike: another way of turning.
    """
    positions = torch.arange(context)[None]
    both = rotary(torch.zeros(1, 1, 1), positions)
    found = []
    for angles in both:
        half = angles.shape[-1] // 2
        if not torch.equal(angles[..., :half], angles[..., half:]):
            raise ExportError("config: rotary positions turn neighbours (interleaved); allowed are the halves of a head")
        found.append(np.ascontiguousarray(angles[0, :, :half].numpy(), dtype=np.float32))
    return found[0], found[1]
