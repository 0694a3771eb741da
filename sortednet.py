"""The command line: one Typer app. Every command imports what it needs when it runs, so that a device without torch
can use those that need none.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 nothing fits the budget.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:
    from device_profiles import Measurement, Profile
    from exporter.bundle import Bundle

app = typer.Typer(
    name="sortednet",
    help="Train one nested model, ship every smaller version of it, run the one that fits the device's budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokens = typer.Typer(help="Bearer tokens, with which devices send their profiles to the service.", no_args_is_help=True)
app.add_typer(tokens, name="token")
messages = Console(stderr=True)

_EXTRAS = {
    "torch": "train",
    "onnx": "train",
    "safetensors": "train",
    "sklearn": "train",
    "scipy": "train",
    "tokenizers": "train",
}
_EXTRAS |= {
    "apispec": "serve",
    "cachetools": "serve",
    "flask": "serve",
    "prometheus_client": "serve",
    "flask_cors": "serve",
    "flask_swagger_ui": "serve",
    "structlog": "serve",
    "gunicorn": "serve",
    "plotly": "serve",
    "jinja2": "serve",
}
_EXTRAS |= {"sqlalchemy": "serve", "alembic": "serve", "psycopg": "serve", "limits": "serve"}

BundlePath = Annotated[Path, typer.Argument(help="The bundle's folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; messages go to stderr.")]
DeviceOption = Annotated[str | None, typer.Option(help="A profile's name or file. Default: this machine's, or the only one.")]
DevicesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="A profile's name or file. Default: this machine's, or the only one. Several of one device, measured with "
        "different execution providers or threads, make one frontier.",
    ),
]
LatencyOption = Annotated[float | None, typer.Option("--latency-ms", help="At most this many milliseconds.")]
EnergyOption = Annotated[float | None, typer.Option("--energy-mj", help="At most this many millijoules.")]
MemoryOption = Annotated[float | None, typer.Option("--memory-mb", help="At most this many megabytes.")]
AccuracyOption = Annotated[float | None, typer.Option("--min-accuracy", help="At least this accuracy, 0 to 1.")]
PercentileOption = Annotated[float | None, typer.Option(help="Of the latency that must fit: up to 50, 90 or 99.")]
ObjectiveOption = Annotated[str | None, typer.Option(help="accuracy, energy or latency.")]
BatteryOption = Annotated[float | None, typer.Option(help="State of charge in per cent.")]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="FILE.json: what a low battery changes. Default: less energy below 20 %.", show_default=False
    ),
]
CascadesOption = Annotated[bool, typer.Option(help="Take the bundle's cascades for candidates too, or single sub-models only.")]
CacheOption = Annotated[bool, typer.Option(help="Keep optimized copies of the graphs in a cache folder.")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        envvar="SORTEDNET_STORE",
        help="sqlite:///FILE or postgresql://USER@HOST/NAME. Default: a file in the user's data folder.",
        show_default=False,
    ),
]
DischargingOption = Annotated[bool, typer.Option("--discharging", help="The battery is not being charged.")]


def guard(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose expected errors become one line on stderr and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except typer.Exit:
            raise
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            _fail(f"{function.__name__.replace('_', ' ')} needs {error.name}: pip install 'sortednet[{extra}]'", 2)
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                raise
            _fail(str(error), code)

    return guarded


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a command under its function's name."""
    return app.command()(guard(function))


@command
def train(
    family: Annotated[str, typer.Option(help="resnet, mobilenetv2, or module:Class for your own.")],
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, cifar10, mnist, text-folder:PATH, or a folder.")],
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    update: Annotated[str, typer.Option(help="sorted, sum, sandwich or full.")] = "sorted",
    samples_per_step: Annotated[int, typer.Option(help="Sub-models drawn per step.")] = 1,
    epochs: int = 10,
    batch_size: int = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate; 0: the optimizer's usual one.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    grid: Annotated[list[str] | None, typer.Option(help="AXIS=V,V,… for example width=0.25,0.5 or depth=1x1x2,3.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=JSON of the family, such as blocks=[4,4,4].")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Start from these weights: a run, or a safetensors file.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: torch's default.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a nested model: all sub-models of the grid at once."""
    from trainer.run import parse_grid, parse_settings, train_run

    options = {"update": update, "samples_per_step": samples_per_step, "epochs": epochs, "batch_size": batch_size}
    options |= {"lr": lr, "optimizer": optimizer, "seed": seed}
    summary = train_run(
        family,
        data,
        out,
        grid=parse_grid(grid or []),
        settings=parse_settings(settings or []),
        init=init,
        threads=threads,
        resume=resume,
        options=options,
    )
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks for all
        return
    if as_json:
        _print_json(summary)
        return
    accuracies: Mapping[str, float] = summary["validation_accuracy"]
    typer.echo(f"Trained {len(accuracies)} sub-models in {summary['seconds']:.0f} s. Validation accuracy:")
    table = Table(Column("sub-model", no_wrap=True), *_right("accuracy", "of the full model"), box=box.SIMPLE_HEAD)
    full = accuracies[summary["largest"]]
    for name, accuracy in accuracies.items():
        table.add_row(name, f"{accuracy:.4f}", f"{accuracy / full:.1%}" if full else "")
    Console().print(table)
    typer.echo(f"Next: sortednet export {out} --out BUNDLE")


@command
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, from `sortednet train`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The bundle's folder.")],
    submodels: Annotated[str | None, typer.Option(help="ID,ID,…: only these.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Each also with 8-bit integers, as ID-int8.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle: one ONNX graph per sub-model over one weights file, each compared with torch."""
    from exporter.inspection import inspect as inspect_bundle
    from exporter.run import export_run

    bundle = export_run(run, out, submodels.split(",") if submodels else None, int8=int8)
    if as_json:
        _print_json(inspect_bundle(bundle))
        return
    typer.echo(f"Wrote {len(bundle.submodels)} sub-models, {bundle.bytes_total / 1e6:.2f} MB, to {out}; all equal to torch.")
    typer.echo(f"Next: sortednet profile {out}")


@command
def inspect(bundle: BundlePath, device: DeviceOption = None, as_json: JsonOption = False) -> None:
    """Show what a bundle holds, and what it costs on a measured device."""
    from exporter.bundle import Bundle
    from selector.cascade_file import read_cascades, with_cascades
    from selector.inspection import inspect as inspect_bundle

    opened = Bundle(bundle)
    if as_json:
        _print_json(inspect_bundle(opened))
        return
    cascades = read_cascades(opened)
    profile = opened.profile(device) if device else _own_profile(opened)
    profile = with_cascades(profile, cascades) if profile else None
    best = max((s.accuracy or 0.0) for s in opened.submodels.values())
    figures = _right("params", "MACs", "accuracy", "of best", "bytes", "p50 ms", "RAM MB")
    table = Table(Column("sub-model", no_wrap=True), *figures, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, entry in opened.submodels.items():
        cost = profile.submodels.get(name) if profile else None
        table.add_row(
            name,
            _short(entry.params),
            _short(entry.macs),
            "" if entry.accuracy is None else f"{entry.accuracy:.4f}",
            f"{entry.accuracy / best:.1%}" if entry.accuracy is not None and best else "",
            _short(opened.manifest.files[entry.graph].bytes),
            _figure(cost, "latency_ms", 3),
            _figure(cost, "memory_mb", 2),
        )
    for one in cascades:
        cost = profile.submodels.get(one.id) if profile else None
        share = f"{one.accuracy / best:.1%}" if best else ""
        costs = [_figure(cost, "latency_ms", 3), _figure(cost, "memory_mb", 2)]
        table.add_row(one.id, "", "", f"{one.accuracy:.4f}", share, "", *costs)
    Console().print(table)
    total, weights = opened.bytes_total, opened.weights_bytes
    typer.echo(f"{opened.manifest.family}: {len(opened.submodels)} sub-models, {total:,} bytes in all, weights {weights:,}")
    if profile:
        marked = ", ~: predicted" if profile.prediction or cascades else ""
        info = profile.device
        typer.echo(f"Costs as measured on {info.name} ({info.cpu}, {info.threads} threads{marked})")
    elif opened.devices():
        typer.echo(f"For costs choose a --device: {', '.join(opened.devices())}")
    for one in cascades:
        typer.echo(f"{one.id} is {one.words}; its accuracy is of {one.examples} validation examples")


@command
def verify(bundle: BundlePath, as_json: JsonOption = False) -> None:
    """Check every file's hash, then run the self-test on this device. Exits with 1 when something differs."""
    from rich.progress import Progress

    from exporter.bundle import Bundle, BundleError
    from exporter.verify import self_test

    try:
        opened = Bundle(bundle)
        with Progress(console=messages, disable=as_json) as bar:
            task = bar.add_task("self-test", total=len(opened.submodels))
            result = self_test(opened, advance=lambda: bar.advance(task))
    except BundleError as error:
        if as_json:
            _print_json({"ok": False, "error": str(error)})
        _fail(str(error), 1)
        return
    if as_json:
        _print_json(
            {
                "ok": True,
                "submodels": result.submodels,
                "largest_error": result.largest_error,
                "largest_int8_error": result.largest_int8_error,
            }
        )
    else:
        typer.echo(f"All {result.submodels} sub-models are whole; largest difference {result.largest_error:.1e}.")


@command
def profile(
    bundle: BundlePath,
    device: Annotated[str | None, typer.Option(help="The profile's name. Default: CPU model, cores and threads.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Per inference. Default: the physical cores.")] = None,
    submodels: Annotated[str | None, typer.Option(help="ID,ID,…: only these.")] = None,
    measure: Annotated[int | None, typer.Option(min=2, help="Measure so many, predict the others.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed runs each. Default: until the median is stable.")] = None,
    watts: Annotated[
        float | None, typer.Option(help="Per busy core: for the energy where the machine has no counters.", show_default=False)
    ] = None,
    provider: Annotated[str, typer.Option(help="ONNX Runtime's execution provider: cpu, cuda, …")] = "cpu",
    spinning: Annotated[bool, typer.Option(help="Idle threads wait actively: faster, but keeps the cores busy.")] = True,
    cache: CacheOption = True,
    label: Annotated[str, typer.Option(help="What this device is and how it was measured, in words.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure every sub-model on this device and keep the profile in the bundle."""
    from device_profiles import write_profile
    from exporter.bundle import PROFILES_FOLDER, Bundle
    from selector.profiling import profile_bundle

    opened = Bundle(bundle)
    names = submodels.split(",") if submodels else None
    measured = profile_bundle(
        opened,
        device=device,
        label=label,
        threads=threads,
        submodels=names,
        predict_from=measure,
        repeats=repeats,
        watts=watts,
        provider=provider,
        spinning=spinning,
        cache=cache,
    )
    write_profile(measured, opened.path / PROFILES_FOLDER / f"{measured.device.name}.json")
    if as_json:
        typer.echo(measured.model_dump_json())
        return
    by_latency = sorted(measured.submodels.items(), key=lambda item: item[1].latency_ms.p50)
    (fast, fastest), (slow, slowest) = by_latency[0], by_latency[-1]
    count = sum(m.source["latency_ms"] == "measured" for m in measured.submodels.values())
    typer.echo(f"Measured {count} sub-models on {measured.device.name}:")
    typer.echo(f"  fastest {fast}: {fastest.latency_ms.p50:.3f} ms, slowest {slow}: {slowest.latency_ms.p50:.3f} ms (p50)")
    for figure, error in measured.prediction.items():
        others = f"{figure} of the other {len(measured.submodels) - count}"
        typer.echo(f"  {others} is predicted: off by {error.median:.1%} in the median, {error.p95:.1%} at p95")
    typer.echo(f"Next: sortednet select {bundle} --latency-ms {(fastest.latency_ms.p50 + slowest.latency_ms.p50) / 2:.2g}")


@command
def select(
    bundle: BundlePath,
    device: DevicesOption = None,
    latency_ms: LatencyOption = None,
    energy_mj: EnergyOption = None,
    memory_mb: MemoryOption = None,
    min_accuracy: AccuracyOption = None,
    percentile: PercentileOption = None,
    objective: ObjectiveOption = None,
    battery: BatteryOption = None,
    discharging: DischargingOption = False,
    policy: PolicyOption = None,
    cascades: CascadesOption = True,
    as_json: JsonOption = False,
) -> None:
    """Pick the sub-model for a budget. Exits with 3 when nothing fits (and names the nearest)."""
    from exporter.bundle import Bundle
    from selector.battery import make_battery, read_policy
    from selector.budget import make_budget
    from selector.cascade_file import read_cascades
    from selector.selector import selector_for

    budget = make_budget(
        latency_ms=latency_ms,
        energy_mj=energy_mj,
        memory_mb=memory_mb,
        min_accuracy=min_accuracy,
        percentile=percentile,
        objective=objective,
    )
    state = make_battery(battery, discharging)
    saving = read_policy(policy) if policy else None
    opened = Bundle(bundle)
    offered = read_cascades(opened) if cascades else []
    selection = selector_for(opened, device, policy=saving, cascades=offered).select(budget, state)
    if as_json:
        _print_json(selection._asdict())
    else:
        typer.echo(f"{selection.submodel}: {selection.reason}")
        typer.echo(f"  accuracy {selection.accuracy:.4f}, latency {selection.latency_ms:.3f} ms on {selection.device}")
    if not selection.feasible:
        raise typer.Exit(3)


@command
def run(
    bundle: BundlePath,
    input: Annotated[Path, typer.Option(help="FILE.npy, or FILE.npz with one array per input.")],
    output: Annotated[Path | None, typer.Option(help="FILE.npz for the outputs.")] = None,
    device: DevicesOption = None,
    latency_ms: LatencyOption = None,
    energy_mj: EnergyOption = None,
    memory_mb: MemoryOption = None,
    min_accuracy: AccuracyOption = None,
    percentile: PercentileOption = None,
    objective: ObjectiveOption = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(help="How long the battery is to last: per_hour=600 until=18:00 reserve_percent=10, each with --plan."),
    ] = None,
    policy: PolicyOption = None,
    watching: Annotated[bool, typer.Option("--watch", help="Run again and again and show what is chosen.")] = False,
    rate: Annotated[float | None, typer.Option(help="With --watch: runs per second. Default: one after the other.")] = None,
    seconds: Annotated[float | None, typer.Option(help="With --watch: for so long. Default: until Ctrl-C.")] = None,
    feedback: Annotated[bool, typer.Option(help="Correct the profile by what runs take.")] = True,
    cascades: CascadesOption = True,
    cache: CacheOption = True,
    as_json: JsonOption = False,
) -> None:
    """Run the sub-model that fits the budget on an input file. Exits with 3 when nothing fits."""
    from selector.battery import read_policy
    from selector.budget import make_budget, parse_plan
    from selector.files import read_inputs, write_outputs
    from selector.runtime import Runtime

    budget = make_budget(
        latency_ms=latency_ms,
        energy_mj=energy_mj,
        memory_mb=memory_mb,
        min_accuracy=min_accuracy,
        percentile=percentile,
        objective=objective,
        plan=parse_plan(plan) if plan else None,
    )
    saving = read_policy(policy) if policy else None
    options: dict[str, Any] = {"feedback": feedback, "cascades": cascades, "cache": cache, "policy": saving}
    runtime = Runtime(bundle, device=device, load_ahead=watching, **options)
    if watching:
        from selector.watch import watch

        history = watch(runtime, read_inputs(input), budget, rate=rate, seconds=seconds, console=messages)
        if as_json:
            _print_json({"runs": [record._asdict() for record in history]})
        runtime.close()
        return
    result = runtime.run(read_inputs(input), budget)
    if output:
        write_outputs(output, result.outputs)
    selection = result.selection
    if as_json:
        outputs = {name: array.tolist() for name, array in result.outputs.items()}
        chosen = {"feasible": selection.feasible, "accuracy": selection.accuracy, "reason": selection.reason}
        _print_json({"submodel": selection.submodel, "latency_ms": result.latency_ms, "outputs": outputs, **chosen})
    else:
        typer.echo(f"{selection.submodel} in {result.latency_ms:.3f} ms: {selection.reason}")
        for name, array in result.outputs.items():
            typer.echo(f"{name} {array.shape}: {array[0] if output is None else output}")
    if not selection.feasible:
        raise typer.Exit(3)


@command
def cascade(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="A data set as for `train`, or FILE.npz with the inputs and `labels`.")],
    floor: Annotated[float, typer.Option(help="The accuracy that is to be kept, 0 to 1.")],
    confidence: Annotated[float, typer.Option(help="With which probability it is kept.")] = 0.95,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a small sub-model answer when it is sure and ask a larger one when not; kept in the bundle."""
    from exporter.bundle import Bundle
    from selector.calibrating import calibrate_cascade

    found = calibrate_cascade(Bundle(bundle), data, floor=floor, confidence=confidence, device=device)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    typer.echo(f"{found.id}: below {found.threshold:.3f} the larger one is asked, {found.escalation:.0%} of the time")
    typer.echo(f"  accuracy {found.accuracy:.4f} on {found.examples} examples, above {floor:g} with {confidence:.0%}")


@command
def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles.", show_default=False)],
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes; they share the cores that predictions may use.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of each worker. Default: as predictions need.", show_default=False),
    ] = None,
    graceful_timeout: Annotated[int, typer.Option(min=0, help="Seconds that requests in flight are given at the end.")] = 30,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="https://HOST[:PORT]: pages from there may read the answers. Default: none.", show_default=False),
    ] = None,
    store: StoreOption = None,
    predict: Annotated[bool, typer.Option(help="Run inputs too: POST /v1/predict.")] = True,
    max_batch: Annotated[int, typer.Option(min=1, help="Examples that one request may hold.")] = 64,
) -> None:
    """Answer budget queries over REST, and run inputs."""
    from exporter.bundle import Bundle
    from selector import service
    from selector.service.store import Store

    opened = [Bundle(path) for path in bundles]
    options = service.PredictOptions(examples=max_batch) if predict else None
    app = service.create_app(opened, Store(store), predict=options, workers=workers, cors_origins=cors_origin or ())
    service.serve(app, host=host, port=port, workers=workers, threads=threads, graceful_timeout=graceful_timeout)


@tokens.command("create")
@guard
def token_create(
    name: Annotated[str, typer.Argument(help="For whom it is.", show_default=False)],
    scope: Annotated[list[str] | None, typer.Option(help="What it may do. Default: profiles:write.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Only this bundle; * stands for any characters.")] = None,
    device: Annotated[str | None, typer.Option(help="Only this device; * stands for any characters.")] = None,
    days: Annotated[float | None, typer.Option(help="Until it expires. Default: never.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it: this once, the store keeps only its hash."""
    from selector.service.store import Store
    from selector.service.tokens import SCOPES

    with Store(store) as opened:
        token, text = opened.tokens.create(name, scope or SCOPES, bundle=bundle, device=device, days=days)
    if as_json:
        _print_json({"token": text, **token.document()})
    else:
        typer.echo(text)
        messages.print(f"Token {token.id} of {name}: keep it now, it is not shown again.", markup=False, highlight=False)


@tokens.command("list")
@guard
def token_list(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show the tokens that there are, not their texts."""
    from selector.service.store import Store

    with Store(store) as opened:
        found = [token.document() for token in opened.tokens.all()]
    if as_json:
        _print_json({"tokens": found})
        return
    columns = ("name", "scopes", "bundle", "device", "created", "expires", "revoked")
    table = Table(Column("id", no_wrap=True), *columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for token in found:
        moments = [(token[name] or "")[:10] for name in ("created_at", "expires_at", "revoked_at")]
        only = [token[name] or "*" for name in ("bundle", "device")]
        table.add_row(token["id"], escape(token["name"]), " ".join(token["scopes"]), *map(escape, only), *moments)
    Console().print(table)


@tokens.command("revoke")
@guard
def token_revoke(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.", show_default=False)],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a token from now on."""
    from selector.service.store import Store

    with Store(store) as opened:
        token = opened.tokens.revoke(identifier)
    if as_json:
        _print_json(token.document())
    else:
        typer.echo(f"Token {token.id} of {token.name} is refused from now on.")


@command
def pull(
    url: Annotated[str, typer.Argument(help="A service: http://HOST:PORT, or …/v1/bundles/NAME.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The bundle's folder; a bundle there is updated.")],
    bundle: Annotated[str | None, typer.Option(help="Its name on the service. Default: the only one.")] = None,
    device: Annotated[str | None, typer.Option(help="A profile on the service: select by it, and bring it along.")] = None,
    submodels: Annotated[str | None, typer.Option(help="ID,ID,…: these. Without them and a budget: all.")] = None,
    latency_ms: LatencyOption = None,
    energy_mj: EnergyOption = None,
    memory_mb: MemoryOption = None,
    min_accuracy: AccuracyOption = None,
    percentile: PercentileOption = None,
    objective: ObjectiveOption = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without a byte after which to try again.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Fetch from a service what this device needs of a bundle; what has arrived is never fetched twice."""
    from selector.pulling import pull_command

    budget = {"latency_ms": latency_ms, "energy_mj": energy_mj, "memory_mb": memory_mb, "min_accuracy": min_accuracy}
    budget_fields = {**budget, "percentile": percentile, "objective": objective}
    names = submodels.split(",") if submodels else None
    done = pull_command(url, out, bundle, names, budget_fields, device, timeout=timeout, console=messages, quiet=as_json)
    if as_json:
        _print_json(done)
        return
    if not done["changed"]:
        typer.echo(f"{out} is up to date: {', '.join(done['submodels'][:4])}{' …' if len(done['submodels']) > 4 else ''}")
        return
    typer.echo(
        f"Fetched {done['fetched_files']} files, {done['fetched_bytes']:,} bytes; {done['reused_files']} were there already."
    )
    typer.echo(f"Next: sortednet verify {out}")


@command
def report(bundle: BundlePath, out: Annotated[Path, typer.Option(help="FILE.html")], device: DeviceOption = None) -> None:
    """Write one self-contained HTML page: the frontier of every measured device, with hover, and all figures."""
    from exporter.bundle import Bundle
    from selector.report import write_report

    write_report(Bundle(bundle), out, device)
    typer.echo(f"Wrote {out}")


def _own_profile(bundle: Bundle) -> Profile | None:
    """This machine's profile, or the only one; None when there is none, it is not clear which, or it is of another bundle."""
    from exporter.bundle import BundleError
    from selector.budget import BudgetError
    from selector.selector import find_profile

    try:
        return find_profile(bundle)
    except (BudgetError, BundleError):
        return None


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in names]


def _figure(cost: Measurement | None, name: Literal["latency_ms", "memory_mb"], digits: int) -> str:
    """For a table; `~` marks what is predicted."""
    value = getattr(cost, name) if cost else None
    if cost is None or value is None:
        return ""
    mark = "~" if cost.source[name] == "predicted" else ""
    return f"{mark}{value.p50 if name == 'latency_ms' else value:.{digits}f}"


def _short(number: int) -> str:
    """Three digits, such as 693 k or 2.24 M."""
    rounded = float(f"{number:.3g}")
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if rounded >= size:
            return f"{rounded / size:g} {unit}"
    return str(number)


def _print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document))


def _fail(message: str, code: int) -> None:
    messages.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    app(prog_name="sortednet")  # under `python -m` too


if __name__ == "__main__":
    main()
