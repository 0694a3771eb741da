"""The service and those who use it: `serve`, `token …`, `pull`. All but `pull` need the extra `serve`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from sortednet.console import messages, print_json, say, show, tell
from sortednet.options import (
    AccuracyOption,
    ContextOption,
    EnergyOption,
    FirstTokenOption,
    IdentityOption,
    IssuerOption,
    JsonOption,
    KeyOption,
    LatencyOption,
    LengthOption,
    MemoryOption,
    ObjectiveOption,
    OutOption,
    OverwriteOption,
    PercentileOption,
    PromptTokensOption,
    QualityOption,
    SpinningOption,
    TokenOption,
)

if TYPE_CHECKING:
    from exporter.bundle import Bundle

StoreOption = Annotated[
    str | None,
    typer.Option(
        envvar="SORTEDNET_STORE",
        help="sqlite:///FILE or postgresql://USER@HOST/NAME. Default: a file in the user's data folder.",
        show_default=False,
    ),
]


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
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            envvar="SORTEDNET_ALLOWED_HOST",
            help="NAME that it is asked under, beside those of loopback and --host; * for any.",
            show_default=False,
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM: speak https; with --tls-key.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM: the certificate's private key.", show_default=False)] = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(
            envvar="SORTEDNET_ONNXRUNTIME_WEB",
            help="The folder dist of npm's onnxruntime-web: browsers then measure and run too, at /browser.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    canary: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a new version, for a few devices of each model first: of the bundle whose folder has that name, or "
            "of the only one.",
            show_default=False,
        ),
    ] = None,
    canary_rule: Annotated[
        list[str] | None,
        typer.Option(
            help="When all of a model get it, or no further one: devices=5 accepted=3 taken_back=2 share=0.1 slower=1.1 "
            "missed=0.05 points=0.02 days=7, each with --canary-rule.",
            show_default=False,
        ),
    ] = None,
    keep_versions: Annotated[int, typer.Option(min=1, help="Of each device's profile: the latest ones.")] = 20,
    predict: Annotated[bool, typer.Option(help="Run inputs too: POST /v1/predict.")] = True,
    max_batch: Annotated[int, typer.Option(min=1, help="Examples that one request may hold.")] = 64,
    waiting: Annotated[
        int | None,
        typer.Option(
            min=0, help="Requests that may wait for a core. Default: four for each core, at most 64.", show_default=False
        ),
    ] = None,
    generate: Annotated[bool, typer.Option(help="Generate text too: POST /v1/generate, and what OpenAI's clients ask.")] = True,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one text that is generated.")] = 4096,
    memory_mb: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Of each bundle that generates text: open sub-models, and all keys and values. Default: as needed.",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="Generate only with a token of the scope `generate` (sortednet token create).")
    ] = False,
    rate: Annotated[str, typer.Option(help="Texts of a token, or without --keys of an address.")] = "600 per minute",
    spinning: SpinningOption = None,
    key: KeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
) -> None:
    """Answer budget queries over REST, run inputs and generate text."""
    from exporter.bundle import Bundle
    from selector import service
    from selector.choose.cascades import read_cascades
    from selector.service.fleet.store import Store
    from selector.service.web.metrics import check_folder
    from selector.ship.parts import open_signed
    from selector.ship.signed import Trust
    from selector.ship.standing import opened_or_before

    trust = Trust.of(key, identity, issuer)
    intact = Bundle if trust is None else partial(open_signed, trust=trust)

    def opening(path: Path, *, name: str | None = None) -> Bundle:
        return opened_or_before(path, lambda place: intact(place, name=name))

    opened = [opening(path) for path in bundles]
    for path in canary or ():
        of = _served_as(path, opened)
        opened.append(opening(path, name=of.name + service.CANARY))
        _check_newer(of, opened[-1])
    for one in opened:
        read_cascades(one)  # a damaged file is told now, not to every client
    check_folder()
    tls = service.checked_tls(tls_cert, tls_key)
    generating = service.GenerateOptions(
        max_tokens=max_tokens, memory_mb=memory_mb, spinning=spinning, keys=keys, rate=service.checked_rate(rate)
    )
    with service.listening(host, port) as listener:
        url = service.shown_url(listener, tls=tls is not None)
        application = service.create_app(
            opened,
            Store(store, keep=keep_versions),
            predict=service.PredictOptions(examples=max_batch, waiting=waiting, spinning=spinning) if predict else None,
            generate=generating if generate else None,
            workers=workers,
            cors_origins=cors_origin or (),
            allowed_hosts=(host, *(allowed_host or ())),
            onnxruntime_web=onnxruntime_web,
            opening=opening,
            ring_rules=service.parse_rules(canary_rule or ()),
        )
        for one in opened:
            if not one.devices():
                _warn(
                    f"{one.name} has not been measured here: `sortednet profile {one.path}` measures it. Until then only "
                    "devices that sent a profile, or send one with a query, get an answer within limits."
                )

        def ready() -> None:
            say(f"Dashboard: {url}   API: {url}docs   Ctrl-C ends it.")

        service.serve(
            application,
            listener,
            workers=workers,
            threads=threads,
            graceful_timeout=graceful_timeout,
            tls=tls,
            ready=ready,
        )


def _served_as(path: Path, bundles: Sequence[Bundle]) -> Bundle:
    """The bundle of which a new version lies there. Raises BundleError."""
    from exporter.bundle import BundleError

    named = [one for one in bundles if one.path.resolve().name == path.resolve().name]
    found = named or list(bundles)
    if len(found) != 1:
        names = ", ".join(one.name for one in bundles)
        raise BundleError(f"canary = {str(path)!r}: of which bundle? Allowed are folders that are named as one of {names}")
    return found[0]


def _check_newer(bundle: Bundle, canary: Bundle) -> None:
    """Raises BundleError for what devices that have the bundle would refuse."""
    from exporter.bundle import BundleError
    from selector.ship.versions import signed_version

    before, now = signed_version(bundle.path), signed_version(canary.path)
    if before is not None and (now is None or now <= before) and canary.manifest.sha256 != bundle.manifest.sha256:
        said = "is not signed" if now is None else f"is version {now}"
        raise BundleError(f"canary = {str(canary.path)!r}: {said}; allowed are signed ones after version {before}")


def _warn(text: str) -> None:
    messages.print(text, markup=False, highlight=False, soft_wrap=True)


def pull(
    url: Annotated[str, typer.Argument(help="A service: http://HOST:PORT, or …/v1/bundles/NAME.", show_default=False)],
    out: OutOption,
    bundle: Annotated[str | None, typer.Option(help="Its name on the service. Default: the only one.")] = None,
    device: Annotated[str | None, typer.Option(help="A profile on the service: select by it, and bring it along.")] = None,
    submodels: Annotated[str | None, typer.Option(help="ID,ID,…: these. Without them and a budget: all.")] = None,
    latency_ms: LatencyOption = None,
    energy_mj: EnergyOption = None,
    memory_mb: MemoryOption = None,
    min_quality: QualityOption = None,
    min_accuracy: AccuracyOption = None,
    percentile: PercentileOption = None,
    objective: ObjectiveOption = None,
    length: LengthOption = None,
    first_token_ms: FirstTokenOption = None,
    token_ms: TokenOption = None,
    prompt_tokens: PromptTokensOption = None,
    context: ContextOption = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without a byte after which to try again.")] = 30.0,
    key: KeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    trial: Annotated[
        bool, typer.Option(help="Of a new version, run the self-test and labelled examples beside the old one first.")
    ] = True,
    older: Annotated[bool, typer.Option("--older", help="Take a version that is older, or was taken back here.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SORTEDNET_TOKEN",
            help="With --device: tell the service how a new version does here, and get the version of this device's ring.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[int, typer.Option(min=0, help="Versions to keep beside the one that is used.")] = 2,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch from a service what this device needs of a bundle; what has arrived is never fetched twice."""
    from selector.fetch.pull import PullOptions
    from selector.ship.signed import Trust
    from sortednet.pulling import pull_command

    budget = {"latency_ms": latency_ms, "energy_mj": energy_mj, "memory_mb": memory_mb}
    budget |= {"min_quality": min_quality, "min_accuracy": min_accuracy}
    budget |= {"first_token_ms": first_token_ms, "token_ms": token_ms, "prompt_tokens": prompt_tokens, "context": context}
    budget_fields = {**budget, "percentile": percentile, "objective": objective, "length": length}
    names = submodels.split(",") if submodels is not None else None
    options = PullOptions(overwrite, Trust.of(key, identity, issuer), older, keep, trial, token)
    given: dict[str, Any] = {"options": options, "timeout": timeout, "quiet": as_json}
    done = pull_command(url, out, bundle, names, budget_fields, device, console=messages, **given)
    if done["lost"]:
        tell(f"Not in the new bundle any more: {', '.join(done['lost'])}")
    if as_json:
        print_json(done)
        return
    if not done["changed"]:
        say(f"{out} is up to date: {', '.join(done['submodels'][:4])}{' …' if len(done['submodels']) > 4 else ''}")
        return
    say(f"Fetched {done['fetched_files']} files, {done['fetched_bytes']:,} bytes; {done['reused_files']} were there already.")
    if done["trial"]:
        say("On trial: sortednet run, generate and serve try it beside the one before; sortednet versions shows it.")
    typer.echo(f"Next: {shlex.join(['sortednet', 'verify', str(out), *(['--key', str(key)] if key else [])])}")


def token_create(
    name: Annotated[str, typer.Argument(help="For whom it is.", show_default=False)],
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do: profiles:write, generate. Default: profiles:write.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Only this bundle; * stands for any characters.")] = None,
    device: Annotated[str | None, typer.Option(help="Only this device; * stands for any characters.")] = None,
    days: Annotated[float | None, typer.Option(help="Until it expires. Default: never.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it: this once, the store keeps only its hash."""
    from selector.service.fleet.store import Store
    from selector.service.fleet.tokens import DEFAULT_SCOPES

    with Store(store) as opened:
        token, text = opened.tokens.create(name, scope or DEFAULT_SCOPES, bundle=bundle, device=device, days=days)
    if as_json:
        print_json({"token": text, **token.document()})
    else:
        typer.echo(text)
        messages.print(f"Token {token.id} of {name}: keep it now, it is not shown again.", markup=False, highlight=False)


def token_list(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show the tokens that there are, not their texts."""
    from selector.service.fleet.store import Store

    with Store(store) as opened:
        found = [token.document() for token in opened.tokens.all()]
    if as_json:
        print_json({"tokens": found})
        return
    if not found:
        say("There are no tokens: sortednet token create NAME")
        return
    columns = ("name", "scopes", "bundle", "device", "created", "expires", "revoked")
    table = Table(Column("id", no_wrap=True), *columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for token in found:
        moments = [(token[name] or "")[:10] for name in ("created_at", "expires_at", "revoked_at")]
        only = [token[name] or "*" for name in ("bundle", "device")]
        table.add_row(token["id"], escape(token["name"]), " ".join(token["scopes"]), *map(escape, only), *moments)
    show(table)


def token_revoke(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.", show_default=False)],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a token from now on."""
    from selector.service.fleet.store import Store

    with Store(store) as opened:
        token = opened.tokens.revoke(identifier)
    if as_json:
        print_json(token.document())
    else:
        say(f"Token {token.id} of {token.name} is refused from now on.")
