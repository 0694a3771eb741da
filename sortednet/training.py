"""Where models are made: `train`, which needs the extra `train`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Column, Table

from sortednet.console import print_json, right, say, show, tell
from sortednet.options import JsonOption, OutOption

if TYPE_CHECKING:
    from trainer.start import Start

SELDOM = 2.0
"""Computations of a size, in the mean, below which most are hardly better than chance."""


def train(
    family: Annotated[
        str,
        typer.Option(
            help="transformers (any Hugging Face checkpoint of --from), or bert, roberta, "
            "distilbert, vit, and llama for language models, by name; resnet, mobilenetv2; or module:Class for your own."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist, mnist-5k, fashion-mnist, cifar10; image-folder:PATH, audio-folder:PATH, text-folder:PATH, "
            "csv:FILE, jsonl:FILE, arrays:FILE.npz, hf:NAME_OR_PATH, module:function for your own; or a path in one of these "
            "formats."
        ),
    ],
    out: OutOption,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification, multi-label, regression, segmentation, token-classification, question-answering, embedding, "
            "language-modelling, or module:Class for your own. Default: the family's.",
            show_default=False,
        ),
    ] = None,
    task_settings: Annotated[
        list[str] | None, typer.Option("--task-set", help="NAME=JSON of the task, such as label_smoothing=0.1.")
    ] = None,
    data_options: Annotated[
        list[str] | None, typer.Option("--data-option", help="NAME=JSON of the data source, such as size=64 or crop=center.")
    ] = None,
    update: Annotated[str, typer.Option(help="sorted, sum, depths, sandwich or full.")] = "sorted",
    samples_per_step: Annotated[int, typer.Option(help="Sub-models drawn per step.")] = 1,
    guard: Annotated[
        float | None,
        typer.Option(
            help="Weight of the full model's loss in every step, beside 1 of each drawn one. Default: the family's, or 0.",
            show_default=False,
        ),
    ] = None,
    may_lose: Annotated[
        float | None,
        typer.Option(
            help="Share of its validation quality that training may cost the full model; what costs more is taken back at the "
            "end. Default: the family's, or 1.",
            show_default=False,
        ),
    ] = None,
    micro_batches: Annotated[int, typer.Option(help="Parts of a batch that are computed one after the other.")] = 1,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute blocks again in the backward pass: less memory, a third more time.")
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(help="In all. Default: 10, or with --resume as many as the run was to have.", show_default=False),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: the family's, or 128.", show_default=False)] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate; 0: the optimizer's usual one. Default: the family's, or 0.", show_default=False),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="Rate of a layer as a share of the next one's; embeddings have the lowest. Default: the family's, or 1.",
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd or adamw. Default: the family's, or sgd.", show_default=False)
    ] = None,
    seed: int = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, or with more --epochs with a finished one.")
    ] = False,
    grid: Annotated[list[str] | None, typer.Option(help="AXIS=V,V,… for example width=0.25,0.5 or depth=1x1x2,3.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=JSON of the family, such as blocks=[4,4,4].")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Start from these weights as they are: of the same parameters.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Start from a trained model: a run, a .safetensors, .pth or .gguf, or a folder of Hugging Face or timm. "
            "It is measured, its units are sorted by importance, and it teaches the sub-models.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Weights that teach instead, a run of any family among them, or none. Default: those of --from; "
            "with --update full none.",
            show_default=False,
        ),
    ] = None,
    teacher_share: Annotated[float, typer.Option(help="Of the loss, 0 to 1; the rest is against the targets.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="By which the teacher's logits are divided.")] = 1.0,
    teacher_views: Annotated[
        int,
        typer.Option(
            help="Augmented views of each example, which come again in turn, so that the teacher answers each once; 0: a new "
            "one in every epoch."
        ),
    ] = 0,
    teacher_hidden: Annotated[
        float,
        typer.Option(help="Weight of what a teacher of the same family has between its layers, added to the loss."),
    ] = 0.0,
    sort: Annotated[
        str | None,
        typer.Option(
            help="Importance of units: auto (l2 where there is BatchNorm, else saliency), taylor, saliency, magnitude, l2 "
            "or none. Default: auto; with --update full none.",
            show_default=False,
        ),
    ] = None,
    expect_quality: Annotated[
        float | None,
        typer.Option(help="Stop where the loaded model has less of it on the validation split.", show_default=False),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16, by automatic mixed precision.")] = "fp32",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="On a GPU the same bits from run to run, by slower kernels.")
    ] = False,
    workers: Annotated[
        int, typer.Option(help="Processes that read data ahead. Default: as many as pay where data are read from files.")
    ] = -1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: torch's default.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a nested model: all sub-models of the grid at once."""
    # How often torch's threads look for each other before they sleep (GNU OpenMP). By default so often that a training of small
    # networks beside busy processes takes twenty to two hundred times as long; with this ten, and on a quiet machine the same.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    from selector.choose.metrics import metric_name, shown
    from trainer.making import train_run
    from trainer.parsing import parse_grid, parse_settings

    options: dict[str, Any] = {"update": update, "samples_per_step": samples_per_step, "seed": seed}
    options |= {"micro_batches": micro_batches, "recompute": recompute}
    usual = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "layer_decay": layer_decay, "optimizer": optimizer}
    usual |= {"guard": guard, "may_lose": may_lose}
    options |= {name: value for name, value in usual.items() if value is not None}  # the others are the run's or the family's
    options |= {"teacher_share": teacher_share, "temperature": temperature, "teacher_hidden": teacher_hidden}
    options["teacher_views"] = teacher_views
    options |= {"accelerator": accelerator, "precision": precision, "deterministic": deterministic, "workers": workers}
    summary = train_run(
        family,
        data,
        out,
        grid=parse_grid(grid or []),
        settings=parse_settings(settings or []),
        task=task,
        task_settings=parse_settings(task_settings or [], "task-set", "label_smoothing=0.1"),
        data_options=parse_settings(data_options or [], "data-option", "size=64"),
        init=init,
        start=_start(weights, teacher, sort, expect_quality, alone=update == "full"),
        threads=threads,
        resume=resume,
        options=options,
        say=tell,
    )
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks for all
        return
    if as_json:
        print_json(summary)
        return
    qualities: Mapping[str, float] = summary["validation_quality"]
    metric = metric_name(summary["metric"])
    what = "the full model alone" if update == "full" else f"{len(qualities)} sub-models"
    say(f"Trained {what} in {summary['seconds']:.0f} s. Validation {metric}:")
    table = Table(Column("sub-model", no_wrap=True), *right(metric, "of the full model"), box=box.SIMPLE_HEAD)
    full = qualities[summary["largest"]]
    for name, quality in qualities.items():
        table.add_row(name, shown(quality), f"{quality / full:.1%}" if full else "")
    show(table)
    if update == "full":
        again = [] if task is None else ["--task", task]
        again += [
            part
            for name, values in (
                ("--task-set", task_settings),
                ("--data-option", data_options),
                ("--set", settings),
                ("--grid", grid),
            )
            for value in values or ()
            for part in (name, value)
        ]
        command = shlex.join(["train", "--family", family, "--data", data, *again, "--from", str(out)])
        typer.echo(f"Next, all its sizes: sortednet {command} --out RUN")
    else:
        if update == "sorted" and (each := summary["gradient_computations"] / len(qualities)) < SELDOM:
            more = "more --epochs, a smaller --batch-size or fewer sizes (--grid) give each more"
            tell(f"note: in {summary['steps']} steps each of the {len(qualities)} sizes was computed {each:.1f} times: {more}")
        typer.echo(f"Next: sortednet export {shlex.quote(str(out))} --out BUNDLE")


def _start(weights: Path | None, teacher: str | None, sort: str | None, expect_quality: float | None, *, alone: bool) -> Start:
    """`alone`: the full model, which needs no order of its units and would learn from itself that it is right already."""
    from trainer.start import NONE, Start

    if alone and weights is not None:
        teacher, sort = NONE if teacher is None else teacher, NONE if sort is None else sort
    return Start(weights, teacher, Start.sort if sort is None else sort, expect_quality)
