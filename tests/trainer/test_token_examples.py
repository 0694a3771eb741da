"""Token ids of unequal lengths: padded to the longest of a batch, and batches of like lengths."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.hard import filled
from tests.helpers.hugging_face import Bert
from trainer import FitOptions, NestedModel, Samples, TrainerError, evaluate, fit
from trainer.data import Examples, TokenExamples, batches_of
from trainer.data.lengths import WINDOW, by_length, order_of_epoch
from trainer.data.loading import Asked, read
from trainer.evaluate import scores_of
from trainer.training import _Training


def texts(count: int = 40, longest: int = 12, seed: int = 0) -> TokenExamples:
    """Ids from 4 to 49, of 1 to `longest` tokens; the class is told by the first."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    rows = [torch.randint(4, 50, (n,), generator=generator).tolist() for n in lengths]
    return TokenExamples(rows, torch.tensor([row[0] % 3 for row in rows]))


def test_a_batch_is_as_long_as_its_longest() -> None:
    examples = TokenExamples([[5], [6, 7, 8], [9, 4]], torch.tensor([0, 1, 2]), types=[[0], [0, 1, 1], [0, 0]], pad_id=3)
    assert isinstance(examples, Examples)
    batch = examples.batch(torch.tensor([2, 0]))
    assert {name: tensor.tolist() for name, tensor in batch.inputs.items()} == {
        "input_ids": [[9, 4], [5, 3]],
        "attention_mask": [[1, 1], [1, 0]],
        "token_type_ids": [[0, 0], [0, 0]],
    }
    assert batch.targets.tolist() == [2, 0]  # type: ignore[union-attr]
    assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.int64}
    (by_worker,) = read(examples, [Asked(torch.tensor([2, 0]))], workers=1)
    assert torch.equal(by_worker.inputs["input_ids"], batch.inputs["input_ids"])
    tagged = TokenExamples([[5], [6, 7, 8]], tags=[[1], [0, -100, 2]])
    assert tagged.batch(torch.tensor([0, 1])).targets.tolist() == [[1, -100, -100], [0, -100, 2]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [[1], []], "targets": torch.tensor([0, 1])}, "example 1 has no token; allowed is one and more"),
        ({"ids": [[1], [2]], "targets": torch.tensor([0])}, "2 examples, targets 1; allowed is one for each"),
        ({"ids": [[1], [2, 3]], "tags": [[0], [1]]}, "tags of other lengths than the token ids"),
        ({"ids": [[1]]}, "allowed are targets, or tags, one for each token; not both"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        TokenExamples(**arguments)


def spread(order: Tensor, lengths: Tensor, batch_size: int) -> float:
    """Padded tokens over real ones."""
    batches = lengths[order].split(batch_size)  # type: ignore[no-untyped-call]
    return sum(int(b.max()) * len(b) for b in batches) / int(lengths.sum())


def test_an_epoch_has_every_example_once_in_batches_of_like_lengths() -> None:
    size, examples = 4, texts(4 * WINDOW * 3 + 2, longest=40)
    first, again, other = (order_of_epoch(examples, size, seed) for seed in (7, 7, 8))
    assert sorted(first.tolist()) == list(range(len(examples)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    whole = len(examples) // size * size
    assert set(first[whole:].tolist()) != set(other[whole:].tolist())  # an incomplete batch is left out: not always the same
    plain = torch.randperm(len(examples), generator=torch.Generator().manual_seed(7))
    assert spread(first, examples.lengths, size) < 1.1 < 1.3 < spread(plain, examples.lengths, size)
    longest = examples.lengths[first[:whole]].view(-1, size).amax(dim=1)
    assert not torch.equal(longest, longest.sort().values)  # short ones are not all learnt first
    ids = torch.zeros(len(examples), 3)
    assert torch.equal(order_of_epoch(Samples(ids, ids), size, 7), plain)  # without lengths as ever


def test_a_resumed_training_sees_the_batches_that_are_left() -> None:
    def order(step: int) -> list[tuple[list[int], int]]:
        training = _Training(NestedModel(Bert()), texts(), None, FitOptions(epochs=3, batch_size=4), None, None)
        training.step = step
        return [(asked.indices.tolist(), asked.seed) for asked in islice(training._order(), 40)]

    whole = order(0)
    assert len(whole) == 30
    for step in (1, 10, 17):
        assert order(step) == whole[step:]


def test_scores_do_not_depend_on_the_order_and_batches_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = texts()
    nested = filled(Bert()).eval()
    padded = Samples(*examples.batch(torch.arange(len(examples))))
    wanted = scores_of(nested, nested.submodels, padded)
    monkeypatch.setattr(evaluate, "TOKENS", 30)
    batches = list(batches_of(examples, 8, tokens=30))
    assert all(b.inputs["input_ids"].numel() <= 30 and len(b.targets) <= 8 for b in batches)
    assert sum(len(b.targets) for b in batches) == len(examples)
    assert scores_of(nested, nested.submodels, examples) == wanted
    given = torch.tensor([3, 0, 2])  # asked for by index: as asked
    (chosen,) = batches_of(examples, 8, given)
    assert torch.equal(chosen.targets, examples.batch(given).targets)  # type: ignore[arg-type]


def test_a_text_beyond_all_measure_among_short_ones() -> None:
    lengths = torch.tensor([5] * 30 + [100_000] + [3] * 30)
    batches = list(by_length(lengths, 64))
    assert batches[0].tolist() == [30]
    assert sorted(torch.cat(batches).tolist()) == list(range(61))
    assert [len(b) for b in batches] == [1, 60]


def test_a_family_learns_from_them() -> None:
    torch.manual_seed(0)
    examples, nested = texts(96), NestedModel(Bert())
    options: dict[str, Any] = {"optimizer": "adamw", "batch_size": 16, "show_progress": False}
    begun = fit(nested, examples, examples, epochs=1, lr=1e-9, **options)
    result = fit(nested, examples, examples, epochs=12, lr=0.01, **options)
    assert result.loss is not None
    assert begun.loss is not None
    assert result.loss < 0.8 * begun.loss
