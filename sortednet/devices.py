"""What a device does with a bundle before it runs it: `profile`, `select`, `cascade`."""

from __future__ import annotations

import functools
import shlex
from typing import Annotated, Any

import typer

from sortednet.console import fail, plain, print_json, say, tell
from sortednet.options import (
    AccuracyOption,
    BundlePath,
    CacheOption,
    CascadesOption,
    ContextOption,
    DeviceOption,
    DevicesOption,
    EnergyOption,
    FirstTokenOption,
    JsonOption,
    LatencyOption,
    LengthOption,
    MemoryOption,
    ObjectiveOption,
    OverwriteOption,
    PercentileOption,
    PolicyOption,
    PromptTokensOption,
    QualityOption,
    SustainedOption,
    TokenOption,
)


def profile(
    bundle: BundlePath,
    device: Annotated[str | None, typer.Option(help="The profile's name. Default: CPU model, cores and threads.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Per inference. Default: the physical cores.")] = None,
    submodels: Annotated[str | None, typer.Option(help="ID,ID,…: only these.")] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="16,32,…: of inputs whose length is free, such as a text's tokens. Default: the longest, and down by halves."
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="16,128,…: tokens of prompts, of bundles that generate text. Default: 16, 128, 512.")
    ] = None,
    contexts: Annotated[
        str | None, typer.Option(help="64,256,…: tokens before the one that is timed, likewise. Default: 64, 256, 1024.")
    ] = None,
    measure: Annotated[int | None, typer.Option(min=2, help="Measure so many, predict the others.")] = None,
    sustain: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", help="Then keep the device busy for so long, and note what holds after the first minute."
        ),
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed runs each. Default: until the median is stable.")] = None,
    watts: Annotated[
        float | None, typer.Option(help="Per busy core: for the energy where the machine has no counters.", show_default=False)
    ] = None,
    provider: Annotated[str, typer.Option(help="ONNX Runtime's execution provider: cpu, cuda, …")] = "cpu",
    spinning: Annotated[bool, typer.Option(help="Idle threads wait actively for half a millisecond.")] = True,
    cache: CacheOption = True,
    label: Annotated[str, typer.Option(help="What this device is and how it was measured, in words.")] = "",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure every sub-model on this device and keep the profile in the bundle.

    What a profile of that name says of other sub-models stays, where it is of the same device and conditions.
    """
    from device_profiles import ProfileError, profile_document, read_profile
    from device_profiles.lengths import lengths_of
    from device_profiles.sustained import in_words
    from exporter.bundle import Bundle, BundleError
    from selector.run.profiling import profile_bundle

    opened = Bundle(bundle)
    names = submodels.split(",") if submodels is not None else None
    measured = profile_bundle(
        opened,
        device=device,
        label=label,
        threads=threads,
        submodels=names,
        lengths=None if lengths is None else _whole_numbers(lengths),
        prompts=None if prompts is None else _whole_numbers(prompts),
        contexts=None if contexts is None else _whole_numbers(contexts),
        predict_from=measure,
        repeats=repeats,
        watts=watts,
        provider=provider,
        spinning=spinning,
        cache=cache,
        sustain_minutes=sustain,
        before=functools.partial(opened.check_profile, overwrite=overwrite),
    )
    try:
        kept = read_profile(opened.save_profile(measured, overwrite=overwrite))
    except (BundleError, ProfileError) as refused:  # what took minutes is not lost for that
        print_json(measured.model_dump(mode="json"))
        fail(f"{refused}; what was measured is on stdout", refused.exit_code)
    if as_json:
        print_json(profile_document(kept))
        return
    by_latency = sorted(measured.submodels.items(), key=lambda item: item[1].latency_ms.p50)
    (fast, fastest), (slow, slowest) = by_latency[0], by_latency[-1]
    count = sum(m.source["latency_ms"] == "measured" for m in measured.submodels.values())
    say(f"Measured {count} sub-models on {measured.device.name}:")
    at = "" if measured.length is None else f" for inputs of {measured.length}"
    if fastest.decoding:
        at = f" per token after {measured.length}"
    say(f"  fastest {fast}: {fastest.latency_ms.p50:.3f} ms, slowest {slow}: {slowest.latency_ms.p50:.3f} ms (p50{at})")
    if shorter := [one for one in lengths_of(list(measured.submodels.values())) if one != measured.length]:
        each = ", ".join(f"{fastest.lengths[n].p50:.3f} to {slowest.lengths[n].p50:.3f} ms for {n}" for n in shorter)
        say(f"  {each}")
    if fastest.decoding and slowest.decoding:
        first, last = fastest.decoding.prefill, slowest.decoding.prefill
        each = ", ".join(
            f"{first[n].p50:.1f} to {last[n].p50:.1f} ms for a prompt of {n}" for n in sorted(set(first) & set(last))
        )
        say(f"  {each}")
    for figure, error in measured.prediction.items():
        others = f"{figure} of the other {len(measured.submodels) - count}"
        say(f"  {others} is predicted: off by {error.median:.1%} in the median, {error.p95:.1%} at p95")
    if measured.sustained is not None:
        say(f"  {in_words(measured.sustained)}")
    between = plain((fastest.latency_ms.p50 + slowest.latency_ms.p50) / 2, digits=2)
    limit = "--token-ms" if fastest.decoding else "--latency-ms"
    typer.echo(f"Next: {shlex.join(['sortednet', 'select', str(bundle), limit, between])}")


def select(
    bundle: BundlePath,
    device: DevicesOption = None,
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
    sustained: SustainedOption = False,
    battery: Annotated[float | None, typer.Option(help="State of charge in per cent.")] = None,
    discharging: Annotated[bool, typer.Option("--discharging", help="The battery is not being charged.")] = False,
    policy: PolicyOption = None,
    cascades: CascadesOption = True,
    as_json: JsonOption = False,
) -> None:
    """Pick the sub-model for a budget. Exits with 3 when nothing fits (and names the nearest)."""
    from exporter.bundle import Bundle
    from selector.choose.battery import BatteryPolicy, make_battery, read_policy
    from selector.choose.budget import make_budget
    from selector.choose.cascades import read_cascades
    from selector.choose.lengths import as_cut, check_context
    from selector.choose.metrics import metric_name, shown
    from selector.choose.profiles import selector_for
    from sortednet.hints import without_effect

    budget = make_budget(
        latency_ms=latency_ms,
        energy_mj=energy_mj,
        memory_mb=memory_mb,
        min_quality=min_quality,
        min_accuracy=min_accuracy,
        percentile=percentile,
        objective=objective,
        length=length,
        first_token_ms=first_token_ms,
        token_ms=token_ms,
        prompt_tokens=prompt_tokens,
        context=context,
        sustained=sustained,
    )
    state = make_battery(battery, discharging)
    saving = read_policy(policy) if policy else None
    opened = Bundle(bundle)
    check_context(opened, budget)
    budget = budget.model_copy(update={"length": (cut := as_cut(opened, length))})
    if cut != length:
        tell(f"note: texts are cut off after {cut} tokens: a length of {length} costs what {cut} does")
    offered = read_cascades(opened) if cascades else []
    choosing = selector_for(opened, device, policy=saving, cascades=offered)
    selection = choosing.select(budget, state)
    if saving is not None or state is not None:
        given = "--policy" if state is None else "--battery"
        needed = "give --battery PERCENT, and --discharging where it is"
        if said := without_effect(saving or BatteryPolicy(), state, given=given, missing=needed):
            tell(said.replace("on the mains, not discharging", "on the mains; say --discharging where it is not"))
    if as_json:
        print_json(selection.document())
    else:
        say(f"{selection.submodel}: {selection.reason}")
        quality = f"{metric_name(selection.metric)} {shown(selection.quality)}"
        if selection.token_ms is not None:
            first, token = f"first token {selection.first_token_ms:.4g} ms", f"{selection.token_ms:.4g} ms per token"
            prompt = prompt_tokens or choosing.offered.prompts[-1]
            here = f"a prompt of {prompt} and a context of {context or choosing.offered.contexts[-1]} tokens"
            say(f"  {quality}, {first}, then {token} on {selection.device}, for {here}")
            raise typer.Exit(0 if selection.feasible else 3)
        longest = choosing.offered.lengths[-1:] if length is None else []
        at = "".join(f" for inputs of {one}, the longest measured" for one in longest)
        say(f"  {quality}, latency {selection.latency_ms:.3f} ms on {selection.device}{at}")
    if not selection.feasible:
        raise typer.Exit(3)


def cascade(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="A data set as for `train`, or FILE.npz with the inputs and `labels`.")],
    floor: Annotated[float, typer.Option(help="The accuracy that is to be kept, 0 to 1.")],
    confidence: Annotated[float, typer.Option(help="With which probability it is kept.")] = 0.95,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let a small sub-model answer when it is sure and ask a larger one when not; kept in the bundle."""
    from exporter.bundle import Bundle
    from selector.choose.budget import BudgetError
    from selector.choose.cascades import add_cascade, check_cascades
    from selector.run.calibrating import calibrate_cascade, check_floor
    from sortednet.validation import validation

    opened = Bundle(bundle)
    check_cascades(opened, overwrite=overwrite)
    check_floor(floor, confidence)  # before anything is read or computed
    inputs, labels = validation(opened, data)
    found = calibrate_cascade(opened, inputs, labels, floor=floor, confidence=confidence, device=device, keep=False)
    try:
        add_cascade(opened, found, overwrite=overwrite)
    except BudgetError as refused:  # what took minutes is not lost for that
        typer.echo(found.model_dump_json())
        fail(f"{refused}; what was found is on stdout", refused.exit_code)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    say(f"{found.id}: below a margin of {found.threshold:.3f} {found.then} is asked, {found.escalation:.0%} of the time")
    say(f"  accuracy {found.accuracy:.4f} on {found.examples} examples, above {floor:g} with {confidence:.0%}")


def _whole_numbers(text: str) -> list[Any]:
    """N,N,…: what is none stays text, and is named by whoever wants a number."""
    return [int(one) if one.strip().isdecimal() else one for one in text.split(",")]
