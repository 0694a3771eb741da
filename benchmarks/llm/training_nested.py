"""The nested training within a time, what it shows on its way, and sizes that are trained alone with as many updates.

Everything that is found is written at once: who is stopped leaves what was measured last.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.llm import training_model as models
from benchmarks.llm.data import WORK
from benchmarks.llm.training_scores import about_device, mean_loss, ratios, scores
from benchmarks.llm.training_windows import Windows, held_out, mixture
from trainer import NestedModel, SubModel, TrainerError
from trainer.accelerator import find_accelerator
from trainer.checkpoint import load_parameters, load_tensors, save_tensors
from trainer.data.lengths import order_of_epoch
from trainer.hold import taken_back
from trainer.options import FitOptions
from trainer.training import _mixed, fit
from trainer.updates import make_rule

POINTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Parts of the way after which the exits are measured, beside its beginning and its end."""
PROBE = 14  # steps by which it is found out how long one takes
SLOWEST_START = 3  # of them, that are not counted
FEW = 32  # windows of each kind by which it is found how much of the way is kept
MORE = 1.15  # steps than there seems to be time for: a training may be shortened, not prolonged
PLANNED = 25  # steps between two looks at the time
MODEL = WORK / f"nested{os.environ.get('NAME', '')}" / "model.safetensors"
"""`NAME`: of this training, where several are made side by side."""

SAVED_FROM = 1 / 4  # of the way: from there on every point leaves its parameters


@dataclass(frozen=True)
class Plan:
    """How it is trained."""

    lr: float = 4e-4
    batch: int = 64
    length: int = 512
    positions: int = 64
    micro_batches: int = 2
    guard: float = 4.0
    edges: float = 0.3
    warmup: float = 0.05
    weight_decay: float = 0.01
    seed: int = 0
    precision: str = "bf16"
    windows: int = 64  # held-out ones of each kind
    may_lose: float = 0.008
    shares: tuple[tuple[str, float], ...] = (("chat", 0.45), ("code", 0.25), ("news", 0.15), ("gloss", 0.15))

    def fit_options(self, update: str = "depths", **other: Any) -> dict[str, Any]:
        nested = {"guard": self.guard, "edges": self.edges} if update == "depths" else {}
        return {
            "update": update, "epochs": 1, "batch_size": self.batch, "lr": self.lr, "optimizer": "adamw", "warmup": self.warmup,
            "weight_decay": self.weight_decay, "micro_batches": min(self.micro_batches, self.batch), "seed": self.seed,
            "precision": self.precision, **nested, **other,
        }  # fmt: skip


def prepared(plan: Plan) -> tuple[NestedModel, nn.Module]:
    """The sorted nested model and the original, where they are trained."""
    torch.set_float32_matmul_precision("high")
    device = find_accelerator("auto", plan.precision).device
    nested = models.original(plan.length, plan.positions)
    nested.full.to(device)
    teacher = models.teacher_of(nested)
    if models.ORDER.exists() and not models.tiny():
        changed = models.put_in_order(nested, models.orders())
        print(f"units in the order of {models.ORDER}, changed by {changed:.1e}", flush=True)
    else:
        models.sort(nested, mixture(256, plan.length, dict(plan.shares), plan.seed))
    return nested, teacher


def train(plan: Plan, seconds: float, steps: int, target: Path) -> dict[str, Any]:
    """Trains for about so many seconds in all, measuring included, or for so many steps."""
    clock = Clock(seconds)
    nested, teacher = prepared(plan)
    device, largest = next(nested.full.parameters()).device, nested.family.largest
    found: dict[str, Any] = {"plan": asdict(plan), **about_device(device), "grid": [sub.id for sub in nested.submodels]}
    held = {part: held_out(part, plan.length, plan.windows) for part in ("validation", "test")}
    likeliest: dict[str, dict[str, Tensor]] = {part: {} for part in held}
    begun = clock.now()
    found["untrained"] = {part: scores(nested, nested.submodels, held[part], likeliest[part]) for part in held}
    of_all = clock.now() - begun
    found["seconds_until_measured"], found["seconds_measuring_all"] = round(clock.now(), 1), round(of_all, 1)
    _write(target, found)
    print(f"{clock.now():.0f} s: measured, {of_all:.1f} s; original {_shown(found['untrained']['test'], largest)}", flush=True)
    reserve = 1.4 * of_all + 0.5 * of_all * (plan.may_lose < 1) + 8  # for the end
    if not steps:
        each, plan = probe(nested, teacher, plan)
        steps = max(2, int(MORE * (clock.left() - reserve - len(POINTS) * of_all / 6) / each))
        print(f"{clock.now():.0f} s: {each:.3f} s a step, {steps} steps, {plan.micro_batches} micro-batches", flush=True)
    found |= {"planned_steps": steps, "plan": asdict(plan)}
    examples = mixture(steps * plan.batch, plan.length, dict(plan.shares), plan.seed)
    exits = [sub for sub in nested.submodels if all(sub[a] == largest[a] for a in sub.axes if a != models.DEPTH)]
    watch = Watch(nested, plan, exits, held["validation"], likeliest["validation"], found, clock, reserve, steps, target)
    watch.measure(0)
    before = {name: p.detach().clone() for name, p in nested.full.named_parameters()}
    at = clock.now()
    try:
        fit(nested, examples, teacher=teacher, show_progress=False, watch=watch, **plan.fit_options())
    except (torch.OutOfMemoryError, TrainerError) as error:  # what it has learnt is measured all the same
        print(f"{clock.now():.0f} s: after step {watch.step}: {error}", flush=True)
        found["ended_by"] = str(error)[:300]
        nested.full.zero_grad(set_to_none=True)
    nested.eval()
    rule, done = _rule(nested, plan), watch.step
    drawn = [rule.sample(step, plan.seed) for step in range(done)]
    found |= {
        "steps": done, "tokens": done * plan.batch * plan.length, "seconds_training": round(clock.now() - at, 1),
        "losses": [round(sum(part) / len(part), 4) for part in np.array_split(watch.losses, min(done, 100))] if done else [],
        "updates": {sub.id: sum(sub in of_step for of_step in drawn) for sub in nested.submodels},
        "updates_of_full": done if plan.guard else None,
    }  # fmt: skip
    _write(target, found)
    watch.save()
    watch.measure(done)
    if plan.may_lose < 1:
        few = {kind: part.part(torch.arange(min(FEW, len(part)))) for kind, part in held["validation"].items()}

        def quality() -> float:
            return math.exp(-mean_loss(scores(nested, [largest], few), largest.id))

        kept = taken_back(dict(nested.full.named_parameters()), before, quality, plan.may_lose)
        found["kept"] = kept
        print(f"{clock.now():.0f} s: {kept:.0%} of the way are kept", flush=True)
        watch.save()
    found["trained"] = {part: scores(nested, nested.submodels, held[part], likeliest[part]) for part in held}
    found["full_ppl_ratio"] = {part: ratios(found["trained"][part], found["untrained"][part], largest.id) for part in held}
    found["seconds"] = round(clock.now(), 1)
    _write(target, found)
    print(f"{clock.now():.0f} s: trained {_shown(found['trained']['test'], largest)}; {found['full_ppl_ratio']}", flush=True)
    return found


class Clock:
    def __init__(self, seconds: float) -> None:
        self.begun, self.seconds = time.monotonic(), seconds

    def now(self) -> float:
        return time.monotonic() - self.begun

    def left(self) -> float:
        return self.seconds - self.now()


class Watch:
    """Measures the exits at some steps, and lets the training have as many steps as there is time for."""

    def __init__(
        self,
        nested: NestedModel,
        plan: Plan,
        exits: list[SubModel],
        held: Mapping[str, Windows],
        likeliest: dict[str, Tensor],
        found: dict[str, Any],
        clock: Clock,
        reserve: float,
        steps: int,
        target: Path,
    ) -> None:
        self.nested, self.plan, self.exits, self.held, self.likeliest = nested, plan, exits, held, likeliest
        self.found, self.clock, self.reserve, self.steps, self.target = found, clock, reserve, steps, target
        self.points = {max(1, round(point * steps)) for point in POINTS}
        self.losses: list[float] = []
        self.step, self.at, self.spent = 0, time.monotonic(), 0.0  # when the first step had ended; of measuring since then

    def measure(self, step: int) -> None:
        begun = time.monotonic()
        point = {"step": step, "tokens": step * self.plan.batch * self.plan.length, "seconds": round(self.clock.now(), 1)}
        self.found.setdefault("curve", []).append(
            {**point, "exits": scores(self.nested, self.exits, self.held, self.likeliest)}
        )
        _write(self.target, self.found)
        largest = self.nested.family.largest
        print(f"{self.clock.now():.0f} s: step {step}: {_shown(self.found['curve'][-1]['exits'], *self.exits)}", flush=True)
        ratio = ratios(self.found["curve"][-1]["exits"], self.found["curve"][0]["exits"], largest.id)
        print(f"    the full model's perplexity by what it was: {ratio}", flush=True)
        self.spent += time.monotonic() - begun

    def save(self) -> None:
        save_tensors({name: p.detach() for name, p in self.nested.full.named_parameters()}, MODEL)

    def __call__(self, step: int, loss: float) -> int | None:
        self.losses.append(loss)
        self.step = step
        if step == 1:  # before it the data were looked at
            self.at, self.spent = time.monotonic(), 0.0
        if step in self.points:
            if step >= SAVED_FROM * self.steps:
                self.save()
            self.measure(step)
        if step % PLANNED or not math.isfinite(self.clock.seconds):
            return None
        each = (time.monotonic() - self.at - self.spent) / (step - 1)
        left = self.clock.left() - self.reserve
        print(
            f"{self.clock.now():.0f} s: step {step}: loss {sum(self.losses[-PLANNED:]) / PLANNED:.4f}, {each:.3f} s", flush=True
        )
        possible = step + max(0, int(left / each))
        if possible < 0.97 * self.steps or left < 3 * PLANNED * each:
            self.steps = min(self.steps, possible)
            return self.steps
        return None


def probe(nested: NestedModel, teacher: nn.Module, plan: Plan) -> tuple[float, Plan]:
    """Seconds of a mean step, and a plan whose micro-batches fit into memory. Parameters stay as they are."""
    before = {name: p.detach().clone() for name, p in nested.full.named_parameters()}
    examples = mixture(PROBE * plan.batch, plan.length, dict(plan.shares), plan.seed + 1)
    while True:
        times: list[float] = []

        def at(step: int, loss: float, times: list[float] = times) -> None:
            times.append(time.monotonic())

        try:
            fit(nested, examples, teacher=teacher, show_progress=False, watch=at, **plan.fit_options(lr=1e-12))
            break
        except torch.OutOfMemoryError:
            if plan.micro_batches >= plan.batch:
                raise
        plan = replace(plan, micro_batches=2 * plan.micro_batches)
        nested.full.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        print(f"out of memory: {plan.micro_batches} micro-batches", flush=True)
    nested.full.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, parameter in nested.full.named_parameters():
            parameter.copy_(before[name])
    took = [after - earlier for earlier, after in pairwise(times)]  # of step 1, 2, …
    rule = _rule(nested, plan)
    by_widths: dict[str, list[float]] = {}
    for step, of_step in enumerate(took[SLOWEST_START:], 1 + SLOWEST_START):
        by_widths.setdefault(rule.sample(step, plan.seed)[0].id, []).append(of_step)
    slowest = max(sum(of) / len(of) for of in by_widths.values())
    drawn = [rule.sample(step, plan.seed)[0].id for step in range(400)]
    print({name: round(sum(of) / len(of), 3) for name, of in by_widths.items()}, flush=True)
    return sum(sum(by_widths[name]) / len(by_widths[name]) if name in by_widths else slowest for name in drawn) / 400, plan


def alone(plan: Plan, seconds: float, names: list[str], nested_result: Path, target: Path, most: int = 0) -> dict[str, Any]:
    """Trains these sizes, each by itself from what it is in the sorted original, with the batches of the steps at which it was
    trained in the nested run. One that there is no time for is left out. `most`: steps at most, 0: all."""
    clock = Clock(seconds)
    told = json.loads(nested_result.read_text(encoding="utf-8"))
    said = told["plan"]
    plan = Plan(**{**said, "shares": tuple((kind, share) for kind, share in said["shares"])})
    nested, teacher = prepared(plan)
    device = next(nested.full.parameters()).device
    held = {part: held_out(part, plan.length, plan.windows) for part in ("validation", "test")}
    examples = mixture(told["planned_steps"] * plan.batch, plan.length, dict(plan.shares), plan.seed)
    permuted = order_of_epoch(examples, plan.batch, _mixed(plan.seed, "order", 0))
    rule = _rule(nested, plan)
    sizes = {sub.id: sub for sub in nested.submodels}
    done = told["steps"] if "steps" in told else told["curve"][-1]["step"]  # of one that was killed what it has measured
    known: dict[str, Any] = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {"sizes": {}}
    found: dict[str, Any] = {**known, "plan": asdict(plan), **about_device(device)}
    chosen = [sub.id for sub in models.named(nested)] if names == ["all"] else names
    if unknown := [name for name in chosen if name not in sizes]:
        raise SystemExit(f"size {unknown[0]!r}: allowed are all, {', '.join(sizes)}")
    for name in chosen:
        sub = sizes[name]
        steps = [step for step in range(done) if sub in rule.sample(step, plan.seed)][: most or None]
        if clock.left() < 5 or not steps:
            print(f"{clock.now():.0f} s: {name}: {len(steps)} steps, no time left", flush=True)
            continue
        places = torch.cat([permuted[step * plan.batch : (step + 1) * plan.batch] for step in steps])
        one = models.alone(nested, sub, plan.length, plan.positions)
        begun = clock.now()

        def stop(step: int, loss: float, begun: float = begun, planned: int = len(steps)) -> int | None:
            late = step == 20 and (clock.now() - begun) / step * planned > clock.left() + (clock.now() - begun)
            return step if late or clock.left() < 1 else None

        result = fit(one, examples.part(places), teacher=teacher, show_progress=False, watch=stop, **plan.fit_options("full"))
        one.eval()
        if result.steps < len(steps):
            print(f"{clock.now():.0f} s: {name}: {len(steps)} steps would take too long", flush=True)
            found["sizes"][name] = {"updates": result.steps, "unfinished_of": len(steps)}
            _write(target, found)
            continue
        own = one.family.largest
        measured = {part: scores(one, [own], held[part]) for part in held}
        row = {part: {kind: of[own.id]["perplexity"] for kind, of in measured[part].items()} for part in held}
        found["sizes"][name] = {"updates": result.steps, "seconds": round(clock.now() - begun, 1), "loss": result.loss, **row}
        if "trained" in told:
            logs = [math.log(told["trained"]["test"][kind][name]["perplexity"] / value) for kind, value in row["test"].items()]
            found["sizes"][name]["nested_by_alone"] = round(math.exp(sum(logs) / len(logs)), 5)
        _write(target, found)
        print(f"{clock.now():.0f} s: {name}: {found['sizes'][name]}", flush=True)
        del one
    return found


def reopened(plan: Plan) -> tuple[NestedModel, dict[str, Tensor], nn.Module]:
    """The trained model, what it began with, sorted, and the original."""
    nested, teacher = prepared(plan)
    begin = {name: p.detach().cpu().clone() for name, p in nested.full.named_parameters()}
    load_parameters(nested, load_tensors(MODEL)[0], MODEL)
    return nested.eval(), begin, teacher


def _rule(nested: NestedModel, plan: Plan) -> Any:
    return make_rule("depths", nested.submodels, FitOptions().samples_per_step, plan.edges)


def _shown(found: Mapping[str, Mapping[str, Mapping[str, float]]], *subs: SubModel) -> str:
    """Of each kind perplexity/agreement of these sizes."""
    return "; ".join(
        f"{kind} " + " ".join(f"{of[sub.id]['perplexity']:.1f}/{of[sub.id]['agreement']:.2f}" for sub in subs)
        for kind, of in found.items()
    )


def _write(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found) + "\n", encoding="utf-8")
    partial.replace(path)
