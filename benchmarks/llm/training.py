"""`python -m benchmarks.llm.training COMMAND`: trains SmolLM2-135M-Instruct in 28 sizes, and what that is compared with.

data            here: texts and prompts as token ids, into build/llm-training
sort            here: the order of the units, once, into build/llm-training/order.safetensors
generate-data   on the GPU: what the original answers
nested          on the GPU: the nested training, its curve and scores, results/nested.json
alone           on the GPU: six sizes, each alone, results/alone.json
pack            on the GPU: the trained parameters in files that can be carried
unpack          here: a run's folder from these
report          here: figures and the picture of acceptance
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.llm import data as texts
from benchmarks.llm import training_model as models
from benchmarks.llm import training_nested as nestings
from benchmarks.llm import training_pack as packs
from benchmarks.llm import training_report as reports
from benchmarks.llm.training_generate import generate, prompts
from benchmarks.llm.training_nested import Plan
from benchmarks.llm.training_scores import ratios, scores
from benchmarks.llm.training_windows import held_out, mixture
from trainer.accelerator import find_accelerator

RESULTS = Path(__file__).parent / "results"
PIECE = 45 * 2**20  # of the GGUF file, which is too large to be carried at once

Seconds = Annotated[float, typer.Option(min=0, help="Of everything that the command does; 0: no limit.")]
Target = Annotated[Path, typer.Option(help="Where the result is written.")]

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def data() -> None:
    """Writes token ids, prompts, the tokenizer and the configuration; and the GGUF file in pieces that can be carried."""
    print(json.dumps(texts.write(), indent=1))
    content = texts.gguf().read_bytes()
    for number, begin in enumerate(range(0, len(content), PIECE)):
        folder = texts.WORK.with_name(f"{texts.WORK.name}-gguf{number}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"piece.{number}").write_bytes(content[begin : begin + PIECE])


@app.command()
def join(target: Target = texts.WORK / "model.gguf") -> None:
    """Puts the pieces of the GGUF file together again."""
    pieces = sorted(texts.WORK.parent.glob(f"{texts.WORK.name}-gguf*/piece.*"), key=lambda path: path.name)
    if not pieces:
        raise SystemExit(f"{texts.WORK}: and what lies beside it: no pieces of the GGUF file")
    with target.open("wb") as file:
        for piece in pieces:
            file.write(piece.read_bytes())
    print(f"{target}: {target.stat().st_size} bytes of {len(pieces)} pieces")


@app.command()
def sort(windows: int = 64, length: int = 512) -> None:
    """Finds the order of the units by their importance for the training texts, which takes minutes on a CPU."""
    nested = models.original(length)
    models.sort(nested, mixture(windows, length, dict.fromkeys(texts.KINDS, 1.0), 0))


@app.command("generate-data")
def generate_data(
    seconds: Seconds = 60,
    batch: int = 1024,
    most: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 256,
    limit: Annotated[int, typer.Option(help="Prompts of each part at most; 0: all.")] = 0,
    target: Target = RESULTS / "generated.json",
) -> None:
    """Lets the original answer the prompts: half of them by sampling, half greedily."""
    begun = time.monotonic()
    device = find_accelerator().device
    module = models.original(64).full.to(device)
    for parameter in module.parameters():  # buffers, the frequencies of positions, stay as they are
        parameter.data = parameter.data.to(torch.bfloat16)
    loaded = time.monotonic() - begun
    print(f"loaded in {loaded:.1f} s, {len(prompts('train'))} prompts", flush=True)
    left = seconds - loaded if seconds else math.inf
    _write(target, generate(module, eos(), left, batch, most, limit=limit))


def eos() -> int:
    return int(json.loads((texts.WORK / "data.json").read_text(encoding="utf-8"))["eos"])


@app.command()
def nested(
    seconds: Seconds = 0,
    steps: Annotated[int, typer.Option(help="0: as many as there is time for.")] = 0,
    lr: float = Plan.lr,
    batch: int = Plan.batch,
    length: int = Plan.length,
    positions: int = Plan.positions,
    micro_batches: int = Plan.micro_batches,
    guard: float = Plan.guard,
    edges: float = Plan.edges,
    windows: int = Plan.windows,
    may_lose: float = Plan.may_lose,
    seed: int = 0,
    chat: Annotated[float, typer.Option(help="Share of the model's own answers; others share the rest, code most.")] = 0.45,
    target: Target = RESULTS / "nested.json",
) -> None:
    """Trains all sizes together; every point of the curve is written at once."""
    if not seconds and not steps:
        raise typer.BadParameter("seconds, steps: one of them says when it ends")
    rest = 1 - chat
    shares = (("chat", chat), ("code", rest * 5 / 11), ("news", rest * 3 / 11), ("gloss", rest * 3 / 11))
    plan = Plan(
        lr=lr, batch=batch, length=length, positions=positions, micro_batches=micro_batches, guard=guard, edges=edges,
        seed=seed, windows=windows, may_lose=may_lose, shares=shares,
    )  # fmt: skip
    nestings.train(plan, seconds or math.inf, steps, target)


@app.command()
def alone(
    size: str,
    share_of: Annotated[Path, typer.Option(help="The result of the nested training.")] = RESULTS / "nested.json",
    seconds: Seconds = 0,
    steps: Annotated[int, typer.Option(help="At most; 0: as many as the size had.")] = 0,
    target: Target = RESULTS / "alone.json",
) -> None:
    """Trains SIZE, or `all` six, alone with as many updates as it had in the nested training."""
    nestings.alone(Plan(), seconds or math.inf, size.split(","), share_of, target, steps)


@app.command()
def pack(
    out: Annotated[Path, typer.Option(help="Folder of the files.")] = texts.WORK / "pack",
    bits: Annotated[int, typer.Option(min=3, max=8)] = 6,
    share_of: Annotated[Path, typer.Option(help="The result of the nested training.")] = RESULTS / "nested.json",
    target: Target = RESULTS / "packed.json",
    measure: bool = True,
) -> None:
    """Writes the trained parameters as differences from the original, and measures what they are when put back."""
    told = json.loads(share_of.read_text(encoding="utf-8"))
    said = told["plan"]
    plan = Plan(**{**said, "shares": tuple(map(tuple, said["shares"]))})
    model, begin, _ = nestings.reopened(plan)
    kept = {name: told[name] for name in ("steps", "tokens", "seconds", "device", "torch", "kept") if name in told}
    archive = packs.packed(
        dict(model.full.named_parameters()), begin, models.orders(), {"result": kept, "plan": asdict(plan)}, bits
    )
    paths = packs.write_pieces(archive, out)
    found: dict[str, Any] = {"bits": bits, "bytes": len(archive), "files": [path.name for path in paths]}
    _write(target, found)
    print(found, flush=True)
    if measure:
        again = models.original(plan.length)
        again.full.to(next(model.full.parameters()).device)
        packs.put_back(again, archive)
        held = held_out("test", plan.length, plan.windows)
        found["test"] = scores(again, again.submodels, held)
        if "untrained" in told:
            found["full_ppl_ratio"] = ratios(found["test"], told["untrained"]["test"], again.family.largest.id)
        _write(target, found)
        print(found.get("full_ppl_ratio"), flush=True)


@app.command()
def unpack(
    pieces: Annotated[Path, typer.Option(help="Folder of the files.")] = texts.WORK / "pack",
    out: Annotated[Path, typer.Option(help="The run's folder.")] = texts.WORK / "run",
    length: int = Plan.length,
) -> None:
    """Makes a run of them, that `sortednet export` takes."""
    if out.exists():
        shutil.rmtree(out)
    print(packs.write_run(packs.read_pieces(pieces), out, length))


@app.command()
def report() -> None:
    """Writes the figures and the picture from the results that there are."""
    for name, value in reports.report(RESULTS).items():
        print(f"{name:40} {value:.4g}")


def _write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
