"""The arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def named_path(value: str) -> Path:
    """The path, when there is one: an empty one would be the working directory."""
    if not value:
        raise typer.BadParameter("is empty; allowed is the path of a file or folder")
    return Path(value)


BundlePath = Annotated[
    Path, typer.Argument(help="The bundle's folder.", parser=named_path, metavar="BUNDLE", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; messages go to stderr.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what sortednet wrote there, though something of it is lost.")
]
LengthOption = Annotated[
    int | None,
    typer.Option("--length", help="For inputs so long, such as a text's tokens. Default: as long as the longest measured."),
]
TokenOption = Annotated[
    float | None, typer.Option("--token-ms", "--ms-per-token", help="Of text: at most this many milliseconds per token.")
]
FirstTokenOption = Annotated[
    float | None, typer.Option("--first-token-ms", help="Of text: at most this many milliseconds to the first token.")
]
PromptTokensOption = Annotated[
    int | None, typer.Option("--prompt-tokens", help="Of text: the prompt's length. Default: as long as the longest measured.")
]
ContextOption = Annotated[
    int | None, typer.Option("--context", help="Of text: tokens before the one to come. Default: as many as the most measured.")
]
SustainedOption = Annotated[
    bool,
    typer.Option("--sustained", help="For work that lasts longer than a minute: by what holds then (profile --sustain)."),
]
OutOption = Annotated[Path, typer.Option(help="The folder to write.", parser=named_path, metavar="PATH", show_default=False)]
DeviceOption = Annotated[str | None, typer.Option(help="A profile's name or file. Default: this machine's, or the only one.")]

LatencyOption = Annotated[float | None, typer.Option("--latency-ms", help="At most this many milliseconds.")]
EnergyOption = Annotated[float | None, typer.Option("--energy-mj", help="At most this many millijoules.")]
MemoryOption = Annotated[float | None, typer.Option("--memory-mb", help="At most this many megabytes.")]
QualityOption = Annotated[float | None, typer.Option("--min-quality", help="At least this quality, 0 to 1.")]
AccuracyOption = Annotated[
    float | None, typer.Option("--min-accuracy", help="The same, where the metric of the bundle is accuracy.")
]
PercentileOption = Annotated[float | None, typer.Option(help="Of the latency that must fit: up to 50, 90 or 99.")]
ObjectiveOption = Annotated[str | None, typer.Option(help="quality (accuracy, where that is the metric), energy or latency.")]
"""The limits and wishes of a `selector.Budget`, one option each."""
SpinningOption = Annotated[
    bool | None,
    typer.Option(
        "--spinning/--no-spinning",
        help="Idle threads wait actively for half a millisecond. Default: as the profile was measured.",
        show_default=False,
    ),
]
DevicesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="A profile's name or file. Default: this machine's, or the only one. Several of one device, measured with "
        "different execution providers or threads, make one frontier.",
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="FILE.json: what a low battery changes. Default: less energy below 20 %.", show_default=False
    ),
]
CascadesOption = Annotated[bool, typer.Option(help="Take the bundle's cascades for candidates too, or single sub-models only.")]
CacheOption = Annotated[bool, typer.Option(help="Keep optimized copies of the graphs in a cache folder.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", help="PUBLIC.pem: only what its private half has signed is taken.", show_default=False),
]
IdentityOption = Annotated[
    str | None, typer.Option("--identity", help="Of a Sigstore signature: who, such as an e-mail address.", show_default=False)
]
IssuerOption = Annotated[
    str | None, typer.Option("--issuer", help="Of --identity: the URL of who vouches for it.", show_default=False)
]
