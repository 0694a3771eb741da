"""A BERT with an attention mask and a LLaMA go the whole path: trained, exported at any length, verified, measured, run.

Shapes: N texts of T bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from exporter import export
from exporter.bundle.session import relative_error
from exporter.bundle.verify import self_test
from selector import Budget, Runtime, profile_bundle
from tests.helpers.hugging_face import Bert, Llama
from trainer import Family, NestedModel, Samples, fit
from trainer.evaluate import scores_of

REPOSITORY = Path(__file__).parents[2]
BYTES, LENGTH = 256, 25
TEXTS = ("LICENSE", "Makefile", "trainer/nested.py")


def chunks(name: str) -> Tensor:
    """(N, LENGTH) bytes of a real text."""
    content = (REPOSITORY / name).read_bytes()
    return torch.tensor(list(content[: len(content) // LENGTH * LENGTH])).reshape(-1, LENGTH)


def split(inputs: dict[str, Tensor], targets: Tensor) -> tuple[Samples, Samples]:
    """For training and for test, shuffled."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    parts = order[: len(order) * 3 // 4], order[len(order) * 3 // 4 :]
    train, test = (Samples({name: t[part] for name, t in inputs.items()}, targets[part]) for part in parts)
    return train, test


def masks(count: int, length: int) -> Tensor:
    """Of every second text the last quarter is padding."""
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[1::2, -(length // 4) :] = 0
    return mask


def sources() -> tuple[Samples, Samples]:
    """Which of the texts the bytes are from."""
    parts = [chunks(name) for name in TEXTS]
    ids = torch.cat(parts)
    labels = torch.cat([torch.full((len(part),), label) for label, part in enumerate(parts)])
    return split({"input_ids": ids, "attention_mask": masks(len(ids), LENGTH)}, labels)


def following() -> tuple[Samples, Samples]:
    """Of each byte the next one."""
    ids = chunks("LICENSE")
    mask = masks(len(ids), LENGTH - 1)
    return split({"input_ids": ids[:, :-1], "attention_mask": mask}, ids[:, 1:].masked_fill(mask == 0, -100))


def feeds(length: int) -> dict[str, np.ndarray]:
    ids = torch.randint(0, BYTES, (3, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids.numpy(), "attention_mask": masks(3, length).numpy()}


@pytest.mark.parametrize(("family", "data"), [(Bert(BYTES), sources), (Llama(BYTES), following)], ids=["bert", "llama"])
def test_the_whole_path(family: Family, data: object, tmp_path: Path) -> None:
    train, test = data()  # type: ignore[operator]
    torch.manual_seed(0)
    nested = NestedModel(family).eval()
    (before,) = scores_of(nested, [family.largest], test).values()
    fit(nested, train, epochs=8, batch_size=16, optimizer="adamw", show_progress=False)
    bundle = export(nested, tmp_path / "bundle", test_data=test, show_progress=False)
    quality = bundle.submodels[family.largest.id].quality
    assert quality is not None
    assert quality > before.quality
    assert self_test(bundle).submodels == len(nested.submodels)
    assert all("sequence" in spec.shape for spec in bundle.manifest.inputs)
    bundle.save_profile(profile_bundle(bundle, device="here", threads=1, repeats=3, show_progress=False))
    runtime = Runtime(bundle, sensors=False, cache=False)
    for length in (1, 7, 40):
        ran = runtime.run(feeds(length), Budget(min_quality=0.0))
        assert ran.outputs["logits"].shape[0] == 3
    runtime.close()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [Bert, Llama])
def test_nothing_that_tracing_saw_is_frozen(kind: type[Bert] | type[Llama], attention: str, tmp_path: Path) -> None:
    """Neither the length, nor the mask, nor the number of texts."""
    torch.manual_seed(0)
    nested = NestedModel(kind(BYTES, attention=attention)).eval()
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    for sub in (nested.family.smallest, nested.family.largest):
        session, module = ort.InferenceSession(str(bundle.graph_path(sub.id))), nested.extract(sub)
        for length in (1, 7, 40):
            feed = feeds(length)
            for mask in (feed["attention_mask"], np.ones_like(feed["attention_mask"])):
                given = {**feed, "attention_mask": mask}
                with torch.no_grad():
                    wanted = module(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
                got = session.run(["logits"], given)[0]
                assert relative_error({"logits": got}, {"logits": wanted}) < 1e-4
