"""Where bundles are made: `export`, which needs the extra `train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sortednet.console import print_json, say, tell
from sortednet.options import JsonOption, OutOption, OverwriteOption

if TYPE_CHECKING:
    from exporter.bundle import Bundle


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run's folder, from `sortednet train`; with --format also a bundle's.", metavar="RUN", show_default=False
        ),
    ],
    out: OutOption,
    kind: Annotated[
        Literal["bundle", "hf", "ortpackage", "oci"],
        typer.Option(
            "--format",
            help="hf: a repository for Hugging Face's hub; ortpackage: a model package of ONNX Runtime; oci: an artefact for "
            "registries of containers. A bundle brings what was measured along.",
        ),
    ] = "bundle",
    submodels: Annotated[str | None, typer.Option(help="ID,ID,…: only these.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Each also with 8-bit integers, as ID-int8.")] = False,
    int8_range: Annotated[
        Literal["reduced", "full"],
        typer.Option(help="Range of int8 weights: reduced is 7 bits; full, 8, is refused where this processor saturates."),
    ] = "reduced",
    precisions: Annotated[
        str | None,
        typer.Option(
            help="fp32, int8; of a language model fp32, int8-rows, int8, int4: with commas, each over a file of its own.",
            show_default=False,
        ),
    ] = None,
    segments: Annotated[
        str | None,
        typer.Option(help="LAYER,…: a language model's graphs also in two parts, below and from it on.", show_default=False),
    ] = None,
    speculation: Annotated[
        bool, typer.Option("--speculation", help="Of a language model also graphs that verify guessed tokens, but in int4.")
    ] = False,
    exits: Annotated[
        str | None,
        typer.Option(help="With --speculation: LAYER,…: after these the model guesses itself.", show_default=False),
    ] = None,
    exit_tokens: Annotated[
        int | None,
        typer.Option(help="With --exits: the first so many of the vocabulary are guessed.", show_default="8192"),
    ] = None,
    head_bits: Annotated[
        int | None, typer.Option(help="4 or 8: of the head and the embedding in int4. Default: 4.", show_default=False)
    ] = None,
    quality_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of a language model's test split that quality is measured on. 0: all.", show_default="8192"),
    ] = None,
    genai: Annotated[
        Path | None,
        typer.Option(
            help="A folder: each size of a language model there too, as onnxruntime-genai opens it.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Measure quality on the test split of this source. Default: the run's own.", show_default=False),
    ] = None,
    canary: Annotated[
        int, typer.Option(min=0, help="Labelled test examples that come along: a device tries a new version on them.")
    ] = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle: one ONNX graph per sub-model over one weights file, each compared with torch."""
    from exporter.bundle import Bundle, BundleError
    from sortednet.formats import check_out, is_bundle

    names = submodels.split(",") if submodels is not None else None
    given: dict[str, Any] = {"head_bits": head_bits, "quality_tokens": quality_tokens, "segments": segments}
    given |= {"speculation": speculation or None, "exits": exits, "exit_tokens": exit_tokens}
    if kind != "bundle" and is_bundle(run):  # which needs no torch
        changing: dict[str, Any] = {**given, "submodels": names, "int8": int8, "precisions": precisions}
        changing |= {"genai": genai, "data": data, "canary": canary}
        if ignored := [name for name, value in changing.items() if value]:
            raise BundleError(f"{ignored[0]}: stands beside --format and a bundle, which is written as it is")
        _write_as(kind, Bundle(run), out, overwrite=overwrite, as_json=as_json)
        return
    from exporter.decoder.export import DecodingOptions, layers_of
    from exporter.run import export_run
    from selector.choose.inspection import inspect as inspect_bundle

    given |= {"segments": segments and layers_of(segments), "exits": exits and layers_of(exits, "exits")}
    if kind != "bundle":
        check_out(out, kind, overwrite=overwrite)
    with TemporaryDirectory(prefix="sortednet-") as temporary:
        bundle = export_run(
            run,
            out if kind == "bundle" else Path(temporary) / out.name,
            names,
            int8=int8,
            int8_range=int8_range,
            precisions=precisions.split(",") if precisions is not None else (),
            decoding=DecodingOptions(**{name: value for name, value in given.items() if value is not None}),
            data=data,
            canary=canary,
            genai=genai,
            overwrite=overwrite,
            say=tell,
        )
        if kind != "bundle":
            _write_as(kind, bundle, out, overwrite=overwrite, as_json=as_json)
            return
    if as_json:
        print_json(inspect_bundle(bundle))
        return
    say(f"Wrote {len(bundle.submodels)} sub-models, {bundle.bytes_total / 1e6:.2f} MB, to {out}; {_compared(bundle)}.")
    if genai is not None:
        say(f"For onnxruntime-genai: {genai}/ID, each with its own weights.")
    typer.echo(f"Next: {shlex.join(['sortednet', 'profile', str(out)])}")


def _compared(bundle: Bundle) -> str:
    """How far the graphs' answers are off torch's, in words."""
    errors = [entry.int8_error for entry in bundle.manifest.submodels]
    off = [error for error in errors if error is not None]
    if not off:
        return "all equal to torch"
    told = f"at most {max(off):.1%} off"
    if len(off) == len(errors):
        return f"{told} torch (RMS)"
    return f"fp32 equal to torch; {'others' if bundle.decoder else 'int8'} {told} fp32 (RMS)"


def _write_as(kind: Literal["hf", "ortpackage", "oci"], bundle: Bundle, out: Path, *, overwrite: bool, as_json: bool) -> None:
    from selector.ship.signed import is_signed
    from sortednet.formats import left_out, write_format

    write_format(bundle, out, kind, overwrite=overwrite)
    absent = left_out(bundle, kind)
    if as_json:
        print_json({"format": kind, "out": str(out), "submodels": list(bundle.submodels), "left_out": absent})
        return
    say(f"Wrote {len(bundle.submodels)} sub-models as {kind} to {out}.")
    if absent:
        again = (
            f"; sortednet sign {shlex.quote(str(out))} --key PRIVATE.pem signs it"
            if kind == "hf" and is_signed(bundle.path)
            else ""
        )
        tell(f"Not in it: {', '.join(absent)}{again}")
    if not bundle.devices():
        tell(f"Nothing was measured: `sortednet profile` a bundle, then export that with --format {kind}.")
