"""`sortednet run`: an input file or texts, run by the sub-model that fits a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sortednet.console import fail, messages, print_json, say, tell
from sortednet.options import (
    AccuracyOption,
    BundlePath,
    CacheOption,
    CascadesOption,
    DevicesOption,
    EnergyOption,
    JsonOption,
    LatencyOption,
    MemoryOption,
    ObjectiveOption,
    OverwriteOption,
    PercentileOption,
    PolicyOption,
    QualityOption,
    SpinningOption,
    SustainedOption,
)
from sortednet.shipping import trial_document

if TYPE_CHECKING:
    from selector.choose.battery import BatteryPolicy
    from selector.choose.budget import Budget
    from selector.run.results import RunResult
    from selector.run.runtime import Runtime
    from selector.run.text import Encoded


def run(
    bundle: BundlePath,
    input: Annotated[
        Path | None,
        typer.Option(
            help="FILE.npy, FILE.npz with one array per input, a picture (JPEG, PNG) or a sound (WAV, FLAC).",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text instead of a file; several, each with --text, are run as a batch.")
    ] = None,
    text_pair: Annotated[
        list[str] | None, typer.Option(help="The second text of a pair, for bundles that take pairs; one for each --text.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="FILE.npz for the outputs.")] = None,
    device: DevicesOption = None,
    latency_ms: LatencyOption = None,
    energy_mj: EnergyOption = None,
    memory_mb: MemoryOption = None,
    min_quality: QualityOption = None,
    min_accuracy: AccuracyOption = None,
    percentile: PercentileOption = None,
    objective: ObjectiveOption = None,
    sustained: SustainedOption = False,
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
    """Run the sub-model that fits the budget on an input file or on texts. Exits with 3 when nothing fits, with --watch when
    nothing did in any run."""
    from selector.choose.battery import read_policy
    from selector.choose.budget import make_budget, parse_plan
    from selector.run.canary import opened
    from selector.run.files import check_output, read_inputs, write_outputs

    texts = _texts(input, text or [], text_pair or [])
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
        sustained=sustained,
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
    runtime = opened(bundle, device=device, load_ahead=watching, **options)
    if saving is not None or budget.plan is not None:
        _tell_of_the_battery(runtime, budget, saving)
    if watching:
        from sortednet.watch import watch

        inputs = read_inputs(input, runtime.bundle) if input is not None else _encoded(runtime, texts).feed
        history = watch(runtime, inputs, budget, rate=rate, seconds=seconds, console=messages)
        if as_json:
            print_json({"runs": [record._asdict() for record in history], **trial_document(runtime)})
        runtime.close()
        if history and not any(record.feasible for record in history):
            fail(f"nothing fitted in any of the last {len(history)} runs: {history[-1].reason}", 3)
        return
    if output is not None:
        check_output(output, input, runtime.bundle, overwrite=overwrite)
    if input is not None:
        result = runtime.run(read_inputs(input, runtime.bundle), budget)
    else:
        result = runtime.run_text(_encoded(runtime, texts), budget)
    if output is not None:
        write_outputs(output, result.outputs, runtime.bundle)
    if as_json:
        print_json({**_document(result), **trial_document(runtime)})
    else:
        _show(result, output)
    if result.selection.feasible and latency_ms is not None and result.each_ms > latency_ms:
        tell(
            f"note: it took longer than the {latency_ms:g} ms asked for: the first run of a process reads weights and takes "
            "memory; --watch shows what later ones take"
        )
    if not result.selection.feasible:
        raise typer.Exit(3)


def _texts(input: Path | None, texts: list[str], seconds: list[str]) -> list[Any]:
    """What is to be run instead of a file: texts, or pairs of them. Ends the command where it is not clear what is."""
    if input is None and not texts:
        fail("input: none given; allowed is --input FILE or --text TEXT", 2)
    if input is not None and (texts or seconds):
        fail(f"input = {str(input)!r}: allowed without --text and --text-pair, which are inputs themselves", 2)
    if seconds and len(seconds) != len(texts):
        fail(f"text-pair: given {len(seconds)} times; allowed is once for each of {len(texts)} --text", 2)
    return list(zip(texts, seconds, strict=True)) if seconds else list(texts)


def _encoded(runtime: Runtime, texts: list[Any]) -> Encoded:
    """Says on stderr which of them are empty, and what was cut off."""
    found = runtime.texts.encode(texts)
    if empty := sum(not "".join(text).strip() for text in texts):
        what = "the text is" if len(found) == 1 else f"{empty} of {len(found)} texts are"
        tell(f"note: {what} empty: the network sees what the tokenizer adds")
    if found.truncated:
        what = "the text was" if len(found) == 1 else f"{found.truncated} of {len(found)} texts were"
        tell(f"note: {what} cut off after {found.spec.max_tokens} tokens")
    return found


def _document(result: RunResult) -> dict[str, Any]:
    """What `--json` prints."""
    outputs = {name: _finite(name, array).tolist() for name, array in result.outputs.items()}
    names = ("feasible", "quality", "metric", "accuracy", "reason", "stages", "threshold")
    more = {name: value for name, value in result.selection.document().items() if name in names}
    if answers := result.answers():
        more["answers"] = [[answer._asdict() for answer in best] for best in answers]
    if result.texts is not None:
        more |= {"tokens": list(result.texts.lengths), "truncated": result.texts.truncated}
    if words := result.words():
        more["words"] = [[word._asdict() for word in text] for text in words]
    if spans := result.spans():
        more["spans"] = [[span._asdict() for span in text] for text in spans]
    costs = {"latency_ms": result.latency_ms, "energy_mj": result.energy_mj, "energy_source": result.energy_source}
    return {"submodel": result.selection.submodel, **costs, "outputs": outputs, **more}


def _show(result: RunResult, output: Path | None) -> None:
    """For people. `output`: the file that has the outputs."""
    say(f"{result.selection.submodel} in {result.latency_ms:.3f} ms, {result.energy.words}: {result.selection.reason}")
    answers = result.answers()
    if len(answers) == 1:  # of a classification: more than its logits say
        said = [[(answer.label, answer.probability) for answer in answers[0]]]
    elif result.texts is not None:
        said = [[(best[0].label, best[0].probability)] for best in answers]
        said = said or [[(f"{word.word} {word.label}", word.probability) for word in text] for text in result.words()]
        said = said or [[(span.text, span.probability) for span in text] for text in result.spans()]
    else:
        said = []
    for number, one in enumerate(said, start=1):
        place = f"text {number}: " if len(said) > 1 else ""
        for name, probability in one:
            say(f"  {place}{name} {probability:.1%}")
    for name, array in result.outputs.items():
        if output is not None or not said:
            typer.echo(f"{name} {array.shape}: {array[0] if output is None else output}")


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


def _finite(name: str, output: Any) -> Any:
    """The output, which goes into JSON; NaN and infinity, for which JSON has no numbers, end the command."""
    if output.dtype.kind == "f":
        import numpy as np

        wrong = output.size - np.count_nonzero(np.isfinite(output))
        if wrong:
            fail(f"output {name!r}: {wrong} of {output.size} values are NaN or infinite; --output FILE.npz keeps them", 1)
    return output
