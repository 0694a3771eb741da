"""A case for each registered task: how its outputs look, what may stand in its targets, its scores by another way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.metrics import pairwise
from torch import Generator, Tensor, nn

from trainer import Family, SubModel, Task
from trainer.task import Targets
from trainer.tasks import (
    Classification,
    Embedding,
    LanguageModelling,
    MultiLabel,
    QuestionAnswering,
    Regression,
    Segmentation,
    TokenClassification,
)
from trainer.tasks.checks import IGNORED

Named = Mapping[str, Tensor]
CLASSES = 4


@dataclass(frozen=True)
class Case:
    """What is known of a task: how its outputs look, what may stand in its targets, and its scores by another way."""

    task: Task
    shapes: Mapping[str, tuple[int, ...]]  # of the outputs, without the batch
    targets: Callable[[Named], Targets]  # for such outputs
    reference: Callable[[Any, Any], Mapping[str, float]]  # of outputs and targets, in numpy
    wrong: Sequence[tuple[Callable[[Any], Any], str]]  # targets made wrong, and what is said of them
    settings: st.SearchStrategy[dict[str, Any]] = field(default_factory=lambda: st.just({}))

    def outputs(self, count: int, seed: int = 0) -> dict[str, Tensor]:
        generator = Generator().manual_seed(seed)
        return {name: torch.randn(count, *shape, generator=generator) for name, shape in self.shapes.items()}

    def example(self, count: int, seed: int = 0) -> tuple[dict[str, Tensor], Targets]:
        """Outputs, and targets that are right for some of them."""
        found, truth = self.outputs(count, seed), self.outputs(count, seed + 1)
        return {name: o + truth[name] for name, o in found.items()}, self.targets(truth)


def put(place: int | tuple[int, ...], value: float) -> Callable[[Tensor], Tensor]:
    def changed(targets: Tensor) -> Tensor:
        targets = targets.clone()
        targets[place] = value
        return targets

    return changed


def some_ignored(labels: Tensor) -> Tensor:
    """In bytes where there is room for the label of what counts for nothing."""
    return torch.where(torch.rand(labels.shape, generator=Generator().manual_seed(3)) < 0.3, IGNORED, labels)


LABELS: Sequence[tuple[Callable[[Any], Any], str]] = (
    (lambda t: t.float(), "targets: dtype float32; allowed are whole numbers from 0 to 3, the classes'"),
    (lambda t: t.bool(), "targets: dtype bool; allowed are whole numbers from 0 to 3"),
    (lambda t: t[:-1][..., None], r"targets: shape \(5, .*1\); allowed is \(N,"),
    (lambda t: {"one": t, "other": t}, "targets: one, other given; allowed is one tensor"),
)
PIXELS = (*LABELS, (put((1, 2, 3), -1), r"label -1 at position \(1, 2, 3\); allowed are 0 to 3, and -100, which is ignored"))
TOKENS = (*LABELS, (put((1, 2), 4), r"label 4 at position \(1, 2\); allowed are 0 to 3, and -100, which is ignored"))


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = torch.from_numpy(logits).double().softmax(-1).numpy()
    return found


def counted(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits (M, C) and labels (M,) of the positions that count."""
    logits = np.moveaxis(outputs["logits"], axis, -1)
    return logits[labels != IGNORED], labels[labels != IGNORED]


def of_classification(outputs: Any, labels: Any) -> dict[str, float]:
    return {"accuracy": metrics.accuracy_score(labels, outputs["logits"].argmax(1))}


def of_labels(outputs: Any, wanted: Any) -> dict[str, float]:
    found = outputs["logits"] > 0
    f1 = {a: metrics.f1_score(wanted, found, average=a, zero_division=1.0) for a in ("micro", "macro")}
    return {"f1": f1["micro"], "macro_f1": f1["macro"], "exact_match": metrics.accuracy_score(wanted, found)}


def of_pixels(outputs: Any, labels: Any) -> dict[str, float]:
    logits, counts = counted(outputs, labels, 1)
    found = logits.argmax(-1)
    present = np.union1d(counts, found)
    return {
        "mean_iou": metrics.jaccard_score(counts, found, labels=present, average="macro"),
        "pixel_accuracy": metrics.accuracy_score(counts, found),
    }


def of_tokens(outputs: Any, labels: Any) -> dict[str, float]:
    logits, counts = counted(outputs, labels, -1)
    return {"token_accuracy": metrics.accuracy_score(counts, logits.argmax(-1))}


def of_language(outputs: Any, labels: Any) -> dict[str, float]:
    logits, counts = counted(outputs, labels, -1)
    loss = metrics.log_loss(counts, softmax(logits), labels=range(CLASSES))
    own = {"loss": loss, "perplexity": np.exp(loss), "token_probability": np.exp(-loss)}
    return {**own, **of_tokens(outputs, labels)}


def best_spans(outputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Of each example the start and end, not before it, with the highest sum: by looking at all."""
    pairs = zip(outputs["start_logits"].tolist(), outputs["end_logits"].tolist(), strict=True)
    return [
        max(((s, e) for s in range(len(a)) for e in range(s, len(b))), key=lambda p, a=a, b=b: a[p[0]] + b[p[1]])  # type: ignore[misc]
        for a, b in pairs
    ]


def spans(outputs: Named) -> dict[str, Tensor]:
    """Some are cut off."""
    found = torch.tensor(best_spans(outputs))
    found[some_ignored(torch.zeros(len(found))) == IGNORED] = IGNORED
    return {"start": found[:, 0], "end": found[:, 1]}


def of_spans(outputs: Any, wanted: Any) -> dict[str, float]:
    exact, f1 = [], []
    for (start, end), first, last in zip(best_spans(outputs), wanted["start"], wanted["end"], strict=True):
        if first != IGNORED:
            ours, truth = set(range(start, end + 1)), set(range(first, last + 1))
            exact.append(ours == truth)
            f1.append(2 * len(ours & truth) / (len(ours) + len(truth)))
    return {"exact_match": float(np.mean(exact)), "span_f1": float(np.mean(f1))}


def of_vectors(outputs: Any, wanted: Any) -> dict[str, float]:
    found = outputs["embedding"]
    return {"cosine": float(pairwise.cosine_similarity(found, wanted[:, : found.shape[1]]).diagonal().mean())}


def of_numbers(outputs: Any, wanted: Any) -> dict[str, float]:
    pairs = [(wanted[n].reshape(len(o), -1), o.reshape(len(o), -1)) for n, o in outputs.items()]

    def mean(of: Callable[..., float]) -> float:
        return float(np.mean([of(t, o) for t, o in pairs]))

    own = {f"r2_{n}": metrics.r2_score(*pair) for n, pair in zip(outputs, pairs, strict=True)}
    own |= {f"mae_{n}": metrics.mean_absolute_error(*pair) for n, pair in zip(outputs, pairs, strict=True)}
    rmse = mean(metrics.mean_squared_error) ** 0.5
    return {"r2": mean(metrics.r2_score), "rmse": rmse, "mae": mean(metrics.mean_absolute_error), **own}


SMOOTHING = st.floats(0, 0.9).map(lambda value: {"label_smoothing": value})
IGNORING = st.sampled_from([IGNORED, 255, -1]).map(lambda value: {"ignored": value})
CASES: dict[str, Case] = {
    "classification": Case(
        Classification(label_smoothing=0.1),
        {"logits": (CLASSES,)},
        lambda outputs: outputs["logits"].argmax(1),
        of_classification,
        (
            *LABELS,
            (put(3, 4), "targets: label 4 at position 3; allowed are 0 to 3$"),
            (put(3, -1), "targets: label -1 at position 3; allowed are 0 to 3$"),
        ),
        SMOOTHING,
    ),
    "multi-label": Case(
        MultiLabel(),
        {"logits": (CLASSES,)},
        lambda outputs: (outputs["logits"] > 0.3).long(),
        of_labels,
        (
            (put((2, 1), 2), r"targets: 2 at position \(2, 1\); allowed are 0 and 1"),
            (put((2, 1), -1), r"targets: -1 at position \(2, 1\); allowed are 0 and 1"),
            (lambda t: put((2, 1), 0.5)(t.float()), r"targets: 0.5 at position \(2, 1\); allowed are 0 and 1"),
            (lambda t: put((2, 1), float("nan"))(t.float()), r"targets: nan at position \(2, 1\); allowed are 0 and 1"),
            (lambda t: t.argmax(1), r"targets: shape \(6,\); allowed is \(N, 4\), a 0 or 1 for each class"),
        ),
    ),
    "regression": Case(
        Regression(names=("place", "size"), objective="huber"),
        {"place": (3,), "size": (1,)},
        lambda outputs: {n: 2 * o + 10 for n, o in outputs.items()},
        of_numbers,
        (
            (lambda t: {**t, "place": t["place"].long()}, "targets 'place': dtype int64; allowed are float32"),
            (lambda t: {**t, "place": t["place"][:, :2]}, r"targets 'place': shape \(6, 2\); allowed is \(N, 3\)"),
            (
                lambda t: {**t, "size": put((4, 0), float("inf"))(t["size"])},
                r"targets 'size': inf at position \(4, 0\); allowed are finite numbers",
            ),
            (lambda t: {"place": t["place"]}, "targets: place given; allowed are place, size"),
            (lambda t: t["place"], "targets: one tensor given; allowed is one for each of place, size"),
        ),
        st.builds(
            lambda names, objective: {"names": names, "objective": objective},
            st.lists(st.text("abc", min_size=1), min_size=1, unique=True),
            st.sampled_from(["mse", "mae", "huber"]),
        ),
    ),
    "segmentation": Case(
        Segmentation(),
        {"logits": (CLASSES, 5, 6)},
        lambda outputs: some_ignored(outputs["logits"].argmax(1)),
        of_pixels,
        PIXELS,
        IGNORING,
    ),
    "token-classification": Case(
        TokenClassification(),
        {"logits": (7, CLASSES)},
        lambda outputs: some_ignored(outputs["logits"].argmax(-1)),
        of_tokens,
        TOKENS,
        IGNORING,
    ),
    "question-answering": Case(
        QuestionAnswering(),
        {"start_logits": (7,), "end_logits": (7,)},
        spans,
        of_spans,
        (
            (lambda t: t["start"], "targets: one tensor given; allowed are start and end, places of tokens"),
            (lambda t: {"start": t["start"]}, "targets: start given; allowed are start and end, places of tokens"),
            (lambda t: {**t, "end": t["end"].float()}, "targets 'end': dtype float32; allowed are whole numbers"),
            (lambda t: {**t, "end": t["end"][:, None]}, r"targets 'end': shape \(6, 1\); allowed is \(N,\)"),
            (lambda t: {**t, "end": put(2, 7)(t["end"])}, "targets 'end': token 7 of example 2; allowed are 0 to 6, and -100"),
            (lambda t: {**t, "start": put(2, -1)(t["start"])}, "targets 'start': token -1 of example 2; allowed are 0 to 6"),
            (
                lambda t: {"start": put(1, 5)(t["start"]), "end": put(1, 4)(t["end"])},
                "targets: start 5 and end 4 of example 1; allowed is an end from the start on, or -100 for both",
            ),
            (
                lambda t: {"start": put(1, 5)(t["start"]), "end": put(1, IGNORED)(t["end"])},
                "targets: start 5 and end -100 of example 1; allowed is an end from the start on, or -100 for both",
            ),
        ),
        IGNORING,
    ),
    "embedding": Case(
        Embedding(),
        {"embedding": (5,)},
        lambda outputs: torch.cat([outputs["embedding"], torch.ones(len(outputs["embedding"]), 2)], dim=1),  # of 7 numbers
        of_vectors,
        (
            (lambda t: t.long(), "targets: dtype int64; allowed are float32 and other floating point numbers"),
            (put((2, 1), float("nan")), r"targets: nan at position \(2, 1\); allowed are finite numbers"),
            (lambda t: t[:, :4], r"targets: shape \(6, 4\); allowed is \(N, 5\) or more numbers, a vector each"),
            (lambda t: t[:, 0], r"targets: shape \(6,\); allowed is \(N, 5\) or more numbers, a vector each"),
        ),
    ),
    "language-modelling": Case(
        LanguageModelling(),
        {"logits": (7, CLASSES)},
        lambda outputs: some_ignored(outputs["logits"].argmax(-1)),
        of_language,
        TOKENS,
        IGNORING,
    ),
}


class Head(Family):
    """Gives a case's outputs as sums of an input's four numbers at each place, by way of `width` others."""

    def __init__(self, case: Case) -> None:
        self.case, self.task, self.axes = case, case.task, {"width": (8, 16)}

    def build(self, sub: SubModel) -> nn.Module:
        return _HeadNetwork(self.case, int(sub["width"]))  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.randn(batch_size, *self.places(), 4)}

    def places(self) -> tuple[int, ...]:
        (shape, *_) = self.case.shapes.values()
        return {1: (), 2: shape[:1], 3: shape[1:]}[len(shape)]


class _HeadNetwork(nn.Module):
    def __init__(self, case: Case, width: int) -> None:
        super().__init__()
        self.first, self.last_axis = nn.Linear(4, width), len(next(iter(case.shapes.values()))) != 3
        sizes = {name: shape[-1] if self.last_axis else shape[0] for name, shape in case.shapes.items()}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x).relu()
        found = {name: head(hidden) for name, head in self.heads.items()}
        return found if self.last_axis else {name: o.movedim(-1, 1) for name, o in found.items()}
