"""What a device does with a bundle: `profile`, `select`, `run`, `cascade`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sortednet.console import fail, messages, print_json, tell
from sortednet.options import (
    AccuracyOption,
    BundlePath,
    DeviceOption,
    EnergyOption,
    JsonOption,
    LatencyOption,
    LengthOption,
    MemoryOption,
    ObjectiveOption,
    OverwriteOption,
    PercentileOption,
    QualityOption,
    SpinningOption,
)

if TYPE_CHECKING:
    from selector.choose.battery import BatteryPolicy
    from selector.choose.budget import Budget
    from selector.run.runtime import Runtime

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
    measure: Annotated[int | None, typer.Option(min=2, help="Measure so many, predict the others.")] = None,
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
    from exporter.bundle import Bundle
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
        predict_from=measure,
        repeats=repeats,
        watts=watts,
        provider=provider,
        spinning=spinning,
        cache=cache,
        before=functools.partial(opened.check_profile, overwrite=overwrite),
    )
    try:
        kept = read_profile(opened.save_profile(measured, overwrite=overwrite))
    except ProfileError as refused:  # what took minutes is not lost for that
        print_json(measured.model_dump(mode="json"))
        fail(f"{refused}; what was measured is on stdout", refused.exit_code)
    if as_json:
        print_json(profile_document(kept))
        return
    by_latency = sorted(measured.submodels.items(), key=lambda item: item[1].latency_ms.p50)
    (fast, fastest), (slow, slowest) = by_latency[0], by_latency[-1]
    count = sum(m.source["latency_ms"] == "measured" for m in measured.submodels.values())
    typer.echo(f"Measured {count} sub-models on {measured.device.name}:")
    at = "" if measured.length is None else f" for inputs of {measured.length}"
    typer.echo(f"  fastest {fast}: {fastest.latency_ms.p50:.3f} ms, slowest {slow}: {slowest.latency_ms.p50:.3f} ms (p50{at})")
    if shorter := [one for one in lengths_of(list(measured.submodels.values())) if one != measured.length]:
        each = ", ".join(f"{fastest.lengths[n].p50:.3f} to {slowest.lengths[n].p50:.3f} ms for {n}" for n in shorter)
        typer.echo(f"  {each}")
    for figure, error in measured.prediction.items():
        others = f"{figure} of the other {len(measured.submodels) - count}"
        typer.echo(f"  {others} is predicted: off by {error.median:.1%} in the median, {error.p95:.1%} at p95")
    typer.echo(f"Next: sortednet select {bundle} --latency-ms {(fastest.latency_ms.p50 + slowest.latency_ms.p50) / 2:.2g}")


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
    from selector.choose.metrics import metric_name
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
    )
    state = make_battery(battery, discharging)
    saving = read_policy(policy) if policy else None
    opened = Bundle(bundle)
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
        typer.echo(f"{selection.submodel}: {selection.reason}")
        quality = f"{metric_name(selection.metric)} {selection.quality:.4f}"
        longest = choosing.offered.lengths[-1:] if length is None else []
        at = "".join(f" for inputs of {one}, the longest measured" for one in longest)
        typer.echo(f"  {quality}, latency {selection.latency_ms:.3f} ms on {selection.device}{at}")
    if not selection.feasible:
        raise typer.Exit(3)


def run(
    bundle: BundlePath,
    input: Annotated[
        Path, typer.Option(help="FILE.npy, FILE.npz with one array per input, a picture (JPEG, PNG) or a sound (WAV, FLAC).")
    ],
    output: Annotated[Path | None, typer.Option(help="FILE.npz for the outputs.")] = None,
    device: DevicesOption = None,
    latency_ms: LatencyOption = None,
    energy_mj: EnergyOption = None,
    memory_mb: MemoryOption = None,
    min_quality: QualityOption = None,
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
    spinning: SpinningOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the sub-model that fits the budget on an input file. Exits with 3 when nothing fits."""
    from selector.choose.battery import read_policy
    from selector.choose.budget import make_budget, parse_plan
    from selector.run.files import check_output, read_inputs, write_outputs
    from selector.run.runtime import Runtime

    if watching and output is not None:
        fail(f"output = {str(output)!r}: allowed without --watch, which shows what is chosen and keeps no outputs", 2)
    for name, value in (("rate", rate), ("seconds", seconds)):
        if value is not None and not watching:
            fail(f"{name} = {value:g}: allowed with --watch", 2)
    budget = make_budget(
        latency_ms=latency_ms,
        energy_mj=energy_mj,
        memory_mb=memory_mb,
        min_quality=min_quality,
        min_accuracy=min_accuracy,
        percentile=percentile,
        objective=objective,
        plan=parse_plan(plan) if plan else None,
    )
    saving = read_policy(policy) if policy else None
    options: dict[str, Any] = {
        "feedback": feedback,
        "cascades": cascades,
        "cache": cache,
        "policy": saving,
        "spinning": spinning,
    }
    runtime = Runtime(bundle, device=device, load_ahead=watching, **options)
    if saving is not None or budget.plan is not None:
        _tell_of_the_battery(runtime, budget, saving)
    if watching:
        from sortednet.watch import watch

        history = watch(runtime, read_inputs(input, runtime.bundle), budget, rate=rate, seconds=seconds, console=messages)
        if as_json:
            print_json({"runs": [record._asdict() for record in history]})
        runtime.close()
        return
    if output is not None:
        check_output(output, input, runtime.bundle, overwrite=overwrite)
    inputs = read_inputs(input, runtime.bundle)
    result = runtime.run(inputs, budget)
    if output is not None:
        write_outputs(output, result.outputs, runtime.bundle)
    selection = result.selection
    if as_json:
        outputs = {name: _finite(name, array).tolist() for name, array in result.outputs.items()}
        names = ("feasible", "quality", "metric", "accuracy", "reason", "stages", "threshold")
        chosen = {name: value for name, value in selection.document().items() if name in names}
        if answers := result.answers():
            chosen["answers"] = [[answer._asdict() for answer in best] for best in answers]
        print_json({"submodel": selection.submodel, "latency_ms": result.latency_ms, "outputs": outputs, **chosen})
    else:
        typer.echo(f"{selection.submodel} in {result.latency_ms:.3f} ms: {selection.reason}")
        answers = result.answers()
        if len(answers) == 1:  # of a classification: more than its logits say
            for answer in answers[0]:
                typer.echo(f"  {answer.label} {answer.probability:.1%}")
        for name, array in result.outputs.items():
            if output is not None or len(answers) != 1:
                typer.echo(f"{name} {array.shape}: {array[0] if output is None else output}")
    if not selection.feasible:
        raise typer.Exit(3)


def _tell_of_the_battery(runtime: Runtime, budget: Budget, policy: BatteryPolicy | None) -> None:
    """On stderr, where a plan or a policy does nothing on this device as it is."""
    from sortednet.hints import plan_without_effect, without_effect

    battery = runtime.battery()
    said = [] if budget.plan is None else [plan_without_effect(battery)]
    if policy is not None:
        missing = "no battery was found on this device"
        said.append(without_effect(policy, battery, given="--policy", missing=missing))
    for one in filter(None, said):
        tell(one)


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
    from selector.run.calibrating import calibrate_cascade
    from sortednet.validation import validation

    opened = Bundle(bundle)
    check_cascades(opened, overwrite=overwrite)
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
    typer.echo(f"{found.id}: below {found.threshold:.3f} the larger one is asked, {found.escalation:.0%} of the time")
    typer.echo(f"  accuracy {found.accuracy:.4f} on {found.examples} examples, above {floor:g} with {confidence:.0%}")


def _whole_numbers(text: str) -> list[Any]:
    """N,N,…: what is none stays text, and is named by whoever wants a number."""
    return [int(one) if one.strip().isdecimal() else one for one in text.split(",")]


def _finite(name: str, output: Any) -> Any:
    """The output, which goes into JSON; NaN and infinity, for which JSON has no numbers, end the command."""
    if output.dtype.kind == "f":
        import numpy as np

        wrong = output.size - np.count_nonzero(np.isfinite(output))
        if wrong:
            fail(f"output {name!r}: {wrong} of {output.size} values are NaN or infinite; --output FILE.npy keeps them", 1)
    return output
