"""Families that are named after an architecture, or several that are alike: `Transformers` that takes those alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.families.architecture import DECODERS
from trainer.families.transformers import Transformers


class Bert(Transformers):
    model_types = ("bert",)


class RoBERTa(Transformers):
    model_types = ("roberta",)


class DistilBert(Transformers):
    model_types = ("distilbert",)


class ViT(Transformers):
    """Pictures in [0, 1]; the mean and deviation of the data are part of the network."""

    model_types = ("vit",)


class Llama(Transformers):
    """Language models that are built like LLaMA: rotary positions, RMS norms, a gated width between, heads that share keys.

    The output `logits` (N, T, V) says of each token which one follows. Every size has the same final norm and head (Sorted
    LLaMA: Kavehzadeh et al. 2023, arXiv 2309.08968, section 3).
    """

    model_types = DECODERS
    usual_task = "language-modelling"

    @classmethod
    def usual_options(cls, pretrained: bool) -> Mapping[str, Any]:
        """The batch counts sequences. What the full model has learnt is to stay: a low rate, its own loss in every step, and a
        bound on what it may lose."""
        usual = {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.01, "warmup": 0.1, "batch_size": 8}
        return {**usual, "lr": 5e-5, "guard": 1.0, "may_lose": 0.01} if pretrained else usual
