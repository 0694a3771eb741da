"""What a bundle holds and whether it is whole: `inspect`, `verify`, `report`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.table import Column, Table

from sortednet.console import fail, messages, print_json, right, say, short, show, tell
from sortednet.options import (
    BundlePath,
    DeviceOption,
    IdentityOption,
    IssuerOption,
    JsonOption,
    KeyOption,
    LengthOption,
    OutOption,
    OverwriteOption,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from device_profiles import Measurement, Profile
    from exporter.bundle import Bundle
    from exporter.bundle.verify import SelfTestResult
    from exporter.bundle.written import Written
    from selector.choose.cascades import Cascade


def inspect(bundle: BundlePath, device: DeviceOption = None, length: LengthOption = None, as_json: JsonOption = False) -> None:
    """Show what a bundle holds, and what it costs on a measured device; with --json where --device or --length is given."""
    from exporter.bundle import Bundle
    from exporter.bundle.written import check_written
    from selector.choose.budget import make_budget
    from selector.choose.cascades import read_cascades
    from selector.choose.inspection import inspect as inspect_bundle
    from selector.choose.lengths import as_cut, check_context

    opened = Bundle(bundle)
    check_context(opened, make_budget(length=length))  # raises where it is none
    at = as_cut(opened, length)
    damaged = [one for one in check_written(opened.path) if one.fault not in (None, "altered")]
    profile = opened.profile(device) if device else _own_profile(opened)
    if at is not None and (why := _of_one_length(profile)):
        tell(f"length = {at}: changes nothing, {why}")
        at = None
    if as_json:
        problems = {"problems": [one.problem for one in damaged]} if damaged else {}
        asked = _asked(profile, at) if profile is not None and (device or length is not None) else {}
        print_json({**inspect_bundle(opened), **_by_device(opened), **asked, **problems})
        return
    for document in damaged:
        tell(f"warning: {document.problem}")
    cascades = read_cascades(opened)
    show(_table(opened, profile, cascades, at))
    total, weights = opened.bytes_total, opened.weights_bytes
    say(f"{opened.manifest.family}: {len(opened.submodels)} sub-models, {total:,} bytes in all, weights {weights:,}")
    if profile:
        _tell_of_profile(profile, at, predicted=bool(cascades))
    elif opened.devices():
        say(f"For costs choose a --device: {', '.join(opened.devices())}")
    for one in cascades:
        say(f"Cascade {one.id} is {one.words}; its accuracy is {one.split}: {_certified(one)}")


def _table(bundle: Bundle, profile: Profile | None, cascades: Sequence[Cascade], at: int | None) -> Table:
    """A row per sub-model and cascade; costs of the profile, at a length where one is given."""
    from selector.choose.candidates import Candidates
    from selector.choose.metrics import metric_name, shown

    offered = Candidates.of(bundle, [profile] if profile else [], cascades)
    expected = {offer.submodel: offer.costs for offer in (offered if at is None else offered.at_length(at))}
    best = max((s.quality or 0.0) for s in bundle.submodels.values())
    metric = metric_name(bundle.metric).replace(" ", "\n")  # which may be wider than its figures
    figures = right("params", "MACs", metric, "of best", "bytes", *(("p50 ms", "RAM MB") if profile else ()))
    table = Table(Column("sub-model", no_wrap=True), *figures, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, entry in bundle.submodels.items():
        cost = _there(profile.submodels.get(name), at) if profile else None
        table.add_row(
            name,
            short(entry.params),
            short(entry.macs),
            shown(entry.quality),
            f"{entry.quality / best:.1%}" if entry.quality is not None and best else "",
            short(bundle.manifest.files[entry.graph].bytes),
            *(_costs(cost) if profile else ()),
        )
    for one in cascades:
        quality = one.quality(bundle.qualities)
        share = f"{quality / best:.1%}" if best else ""
        table.add_row(one.id, "", "", shown(quality), share, "", *(_costs(expected.get(one.id)) if profile else ()))
    return table


def _asked(profile: Profile, at: int | None) -> dict[str, Any]:
    """What `--json` says of the costs that were asked for."""
    left = {"lengths", "decoding"}
    measured = {name: _there(cost, at) for name, cost in profile.submodels.items()}
    costs = {name: cost.model_dump(mode="json", exclude_none=True, exclude=left) for name, cost in measured.items() if cost}
    return {"costs": {"device": profile.device.name, "length": at, "submodels": costs}}


def _of_one_length(profile: Profile | None) -> str:
    """Why the costs are the same at every length; empty where they are not."""
    from device_profiles.decoding import contexts_of
    from device_profiles.lengths import lengths_of

    if profile is None:
        return "no costs of this device or of --device are known"
    costs = list(profile.submodels.values())
    return (
        "" if lengths_of(costs) or contexts_of(costs) else f"inputs of one length only were measured on {profile.device.name}"
    )


def _there(cost: Measurement | None, at: int | None) -> Measurement | None:
    """What was measured, at a length where one is given."""
    from device_profiles.decoding import at_tokens
    from device_profiles.lengths import at_length

    if cost is None or at is None:
        return cost
    return at_tokens(cost, at, at) if cost.decoding else at_length(cost, at)


def _tell_of_profile(profile: Profile, at: int | None, *, predicted: bool) -> None:
    """Where the table's costs are from, and of which inputs. `predicted`: some of them are, whatever the profile has."""
    from device_profiles.decoding import contexts_of, prompts_of
    from device_profiles.lengths import lengths_of
    from device_profiles.sustained import in_words

    marked = ", ~: predicted" if profile.prediction or predicted or at is not None else ""
    info = profile.device
    say(f"Costs as measured on {info.name} ({info.cpu}, {info.threads} threads{marked})")
    if profile.sustained is not None:
        say(f"In steady work (select --sustained): {in_words(profile.sustained)}")
    if there := lengths_of(list(profile.submodels.values())):
        known, of = ", ".join(map(str, there)), at or profile.length or there[-1]
        say(f"They are of inputs of {of}; measured were {known}: --length shows another, RAM is that of the longest")
    elif contexts := contexts_of(profile.submodels.values()):
        known, prompts = ", ".join(map(str, contexts)), prompts_of(profile.submodels.values())
        say(f"They are of one token after {at or contexts[-1]}; measured were {known}: --length shows another")
        say(f"Prompts of {', '.join(map(str, prompts))} tokens were measured: select --prompt-tokens goes by them")


def verify(
    bundle: BundlePath,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Profiles and cascades put or removed by hand: take what is here for what was written."),
    ] = False,
    key: KeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file's hash, profiles and cascades, with a key first the signature, then run the self-test on this device.
    Exits with 1 when something differs, with 2 where there is no bundle or no such key."""
    from rich.progress import Progress

    from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, MODELS_FOLDER, Bundle, BundleError
    from exporter.bundle.verify import check_documents, self_test
    from selector.choose.budget import BudgetError
    from selector.choose.cascades import read_cascades
    from selector.ship.parts import open_signed
    from selector.ship.signed import SignatureError, Trust, is_signed

    trust = Trust.of(key, identity, issuer)
    if not (bundle / MANIFEST_FILE).exists() and not (bundle / MODELS_FOLDER).is_dir():
        Bundle(bundle)  # raises: there is none, which is wrong input and no fault that was found
    problems: list[str] = []
    try:
        opened = Bundle(bundle) if trust is None else open_signed(bundle, trust)
        documents = check_documents(opened, accept=accept)
        problems = [document.problem for document in documents if document.fault is not None]
        try:
            read_cascades(opened)
        except BudgetError as error:  # which says more of that file
            problems = [*(one for one in problems if not one.startswith(CASCADES_FILE)), str(error)]
        if problems:
            raise BundleError("; ".join(problems))
        with Progress(console=messages, disable=as_json) as bar:
            task = bar.add_task("self-test", total=len(opened.submodels))
            result = self_test(opened, advance=lambda: bar.advance(task))
    except BundleError as error:
        if isinstance(error, SignatureError) and error.exit_code == 2:  # the key is wrong, not the bundle
            raise
        if as_json:
            print_json({"ok": False, "error": str(error), "problems": problems or [str(error)]})
        fail(str(error), 1)
    signature = "holds" if trust is not None else "not checked" if is_signed(opened.path) else "none"
    if as_json:
        print_json(
            {
                "ok": True,
                "submodels": result.submodels,
                "largest_error": result.largest_error,
                "largest_int8_error": result.largest_int8_error,
                "largest_int8_to_fp32": result.largest_int8_to_fp32,
                "int8_saturates": result.int8_saturates,
                "speculation": {name: problem or "exact" for name, problem in result.speculation.items()},
                "signature": signature,
                "documents": {one.name: "sealed" if one.sealed else "unsealed" for one in documents},
            }
        )
    else:
        _tell_of_test(opened, result, documents, signature)


def _tell_of_test(bundle: Bundle, result: SelfTestResult, documents: Sequence[Written], signature: str) -> None:
    """What `verify` has found where all is well."""
    say(f"All {result.submodels} sub-models are whole; largest difference {result.largest_error:.1e}.")
    if signature != "none":
        say(f"The signature {'holds' if signature == 'holds' else 'was not checked: that needs --key PUBLIC.pem'}.")
    for one in documents:
        unsealed = "" if one.sealed else ": unsealed, from before there were checksums; an altered figure would not show"
        say(f"{one.name} is whole{unsealed}.")
    if any(entry.precision == "int8" for entry in bundle.manifest.submodels):
        say(f"int8: largest difference {result.largest_int8_error:.1e}{_from_fp32(result)}.")
    if result.speculation:
        exact = [name for name, problem in result.speculation.items() if not problem]
        say(f"{len(exact)} of {len(result.speculation)} verify guessed tokens exactly on this device.")
        for name, problem in result.speculation.items():
            if problem:
                say(f"{name} guesses nothing here: {problem}.")
    if result.int8_saturates:
        tell("The int8 weights use all 8 bits, with which this processor's kernels saturate: export them again.")


def report(bundle: BundlePath, out: OutOption, device: DeviceOption = None, overwrite: OverwriteOption = False) -> None:
    """Write one self-contained HTML page: the frontier of every measured device, with hover, and all figures."""
    from exporter.bundle import Bundle
    from sortednet.reporting import write_report

    write_report(Bundle(bundle), out, device, overwrite=overwrite)
    say(f"Wrote {out}")


def _own_profile(bundle: Bundle) -> Profile | None:
    """This machine's profile, or the only one; None when there is none, it is not clear which, or it is of another bundle."""
    from exporter.bundle import BundleError
    from selector.choose.budget import BudgetError
    from selector.choose.profiles import find_profile

    try:
        return find_profile(bundle)
    except (BudgetError, BundleError):
        return None


def _by_device(bundle: Bundle) -> dict[str, Any]:
    """What profiles have measured beyond one input, by device: lengths, tokens of prompts and contexts, steady work; where any
    has."""
    from device_profiles.decoding import contexts_of, prompts_of
    from device_profiles.lengths import lengths_of

    profiles = dict(_readable(bundle))
    costs = {device: list(profile.submodels.values()) for device, profile in profiles.items()}
    found: dict[str, dict[str, Any]] = {
        "lengths": {device: lengths for device, of in costs.items() if (lengths := lengths_of(of))},
        "decoding": {
            device: {"prompts": prompts_of(of), "contexts": contexts}
            for device, of in costs.items()
            if (contexts := contexts_of(of))
        },
        "sustained": {
            device: profile.sustained.model_dump(mode="json")
            for device, profile in profiles.items()
            if profile.sustained is not None
        },
    }
    return {name: by_device for name, by_device in found.items() if by_device}


def _readable(bundle: Bundle) -> Iterator[tuple[str, Profile]]:
    """The bundle's profiles, by their devices."""
    from device_profiles import ProfileError
    from exporter.bundle import BundleError

    for device in bundle.devices():
        with suppress(BundleError, ProfileError):
            yield device, bundle.profile(device)


def _certified(cascade: Cascade) -> str:
    return f"{cascade.accuracy:.4f} on {cascade.examples} validation examples, above {cascade.floor:g}"


def _from_fp32(result: SelfTestResult) -> str:
    return "" if result.largest_int8_to_fp32 is None else f"; from fp32 {result.largest_int8_to_fp32:.1%} (RMS)"


def _costs(cost: Measurement | None) -> tuple[str, str]:
    return _figure(cost, "latency_ms", 3), _figure(cost, "memory_mb", 2)


def _figure(cost: Measurement | None, name: Literal["latency_ms", "memory_mb"], digits: int) -> str:
    """For a table; `~` marks what is predicted."""
    value = getattr(cost, name) if cost else None
    if cost is None or value is None:
        return ""
    mark = "~" if cost.source[name] == "predicted" else ""
    return f"{mark}{value.p50 if name == 'latency_ms' else value:.{digits}f}"
