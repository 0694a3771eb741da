"""`sortednet generate`: text that goes on a prompt or answers it, by the size that fits what a token may cost."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sortednet.console import fail, messages, print_json, tell
from sortednet.options import (
    BundlePath,
    DevicesOption,
    EnergyOption,
    FirstTokenOption,
    JsonOption,
    MemoryOption,
    ObjectiveOption,
    PercentileOption,
    PolicyOption,
    QualityOption,
    SpinningOption,
    SustainedOption,
)
from sortednet.shipping import trial_document

if TYPE_CHECKING:
    from selector.run.generate import Generation


def generate(
    bundle: BundlePath,
    prompt: Annotated[str, typer.Option(help="The text that goes on, or - for one on stdin.", show_default=False)],
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a message: through the bundle's chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: what the model is told before the message.")] = None,
    max_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: the most probable token each time; 1: as probable as it is.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the so many most probable tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the most probable that add up to this.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only those at least so probable, relative to the most probable.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was there is less probable.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same one draws the same tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="The text ends before it; several, each with --stop.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end of a text.")] = False,
    speculative: Annotated[
        Literal["auto", "off", "ngram", "exit"],
        typer.Option(
            help="Guess tokens and verify several at a time; the same text: what pays, none, lookup, the model's exits."
        ),
    ] = "auto",
    early_exit: Annotated[
        float | None, typer.Option(help="Say a token unverified where an exit is so sure: another text.", show_default=False)
    ] = None,
    ms_per_token: Annotated[
        float | None, typer.Option("--ms-per-token", "--token-ms", help="At most this many milliseconds per token.")
    ] = None,
    first_token_ms: FirstTokenOption = None,
    energy_mj: EnergyOption = None,
    memory_mb: MemoryOption = None,
    min_quality: QualityOption = None,
    percentile: PercentileOption = None,
    objective: ObjectiveOption = None,
    sustained: SustainedOption = False,
    device: DevicesOption = None,
    threads: Annotated[int | None, typer.Option(help="Default: as the profile was measured.", show_default=False)] = None,
    battery: Annotated[
        float | None, typer.Option(help="Discharging, at so many per cent, in place of what this device says.")
    ] = None,
    policy: PolicyOption = None,
    feedback: Annotated[bool, typer.Option(help="Correct the profile by what tokens take.")] = True,
    spinning: SpinningOption = None,
    watching: Annotated[bool, typer.Option("--watch", help="Show what is chosen while the text is generated.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Generate text by the size that fits the budget, and by another one when that changes. Exits with 3 when nothing fits."""
    from selector.choose.battery import make_battery, read_policy
    from selector.choose.budget import make_budget
    from selector.run.generate import GenerationOptions
    from selector.run.generate.canary import opened
    from sortednet.hints import without_effect

    options = GenerationOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
        ignore_eos=ignore_eos,
        speculative=speculative,
        early_exit=early_exit,
    )
    budget = make_budget(
        token_ms=ms_per_token,
        first_token_ms=first_token_ms,
        energy_mj=energy_mj,
        min_quality=min_quality,
        percentile=percentile,
        objective=objective,
        sustained=sustained,
    )
    if system is not None and not chat:
        fail(f"system = {system!r}: allowed with --chat", 2)
    asked = _from_stdin() if prompt == "-" else prompt
    state = make_battery(battery, battery is not None)
    settings: dict[str, Any] = {"device": device, "threads": threads, "memory_mb": memory_mb, "spinning": spinning}
    saving = read_policy(policy) if policy else None
    settings |= {"feedback": feedback, "policy": saving}
    settings["speculative"] = "auto" if early_exit is not None else speculative
    if state is not None:
        settings["battery"] = lambda: state
    with opened(bundle, **settings) as generator, generator.generate(_asked(asked, system, chat), options, budget) as text:
        first = text.selection
        if saving is not None:
            missing = "no battery was found on this device; --battery PERCENT says one"
            if said := without_effect(saving, generator.runtime.battery(), given="--policy", missing=missing):
                tell(said)
        if not first.feasible:
            tell(f"warning: no size keeps these limits, {first.submodel} generates all the same: {first.reason}")
        if watching:
            from sortednet.watch_text import watch_text

            found = watch_text(generator, text, budget, messages)
            if not (as_json or sys.stdout.isatty()):  # there it has been seen
                typer.echo(found)
        elif as_json:
            found = "".join(piece.text for piece in text)
        else:
            found = _streamed(text)
        if as_json:
            print_json({**_document(text, found), **trial_document(generator)})
        else:
            tell(figures(text))
    if not first.feasible:
        raise typer.Exit(3)


def figures(text: Generation) -> str:
    """What it took, in a line."""
    switches = "".join(f"; after {s.token} tokens {s.after}: {s.reason}" for s in text.switches)
    read = f"{text.prompt_tokens} tokens of prompt" + (f", {text.reused_tokens} known" if text.reused_tokens else "")
    first = "" if text.first_token_ms is None else f", first token {text.first_token_ms:.0f} ms"
    rate = "" if text.tokens_per_second is None else f", then {text.tokens_per_second:.1f} tokens/s"
    begun = text.selections[0]
    why = f"{begun.submodel}: {begun.reason}"
    said = text.guesses.words
    told, energy = f"\n{said}" if said else "", text.energy.words
    return f"{len(text.tokens)} tokens ({text.finish or 'interrupted'}), {read}{first}{rate}, {energy}\n{why}{switches}{told}"


def _streamed(text: Generation) -> str:
    """Each piece on stdout as soon as it is there."""
    parts = []
    try:
        for piece in text:
            parts.append(piece.text)
            typer.echo(piece.text, nl=False)
            sys.stdout.flush()
    finally:
        typer.echo()
    return "".join(parts)


def _document(text: Generation, said: str) -> dict[str, Any]:
    """What `--json` prints."""
    begun = text.selections[0]
    names = ("feasible", "quality", "metric", "reason", "device")
    return {
        "text": said,
        "submodel": text.selection.submodel,
        "finish": text.finish,
        "tokens": len(text.tokens),
        "prompt_tokens": text.prompt_tokens,
        "first_token_ms": text.first_token_ms,
        "tokens_per_second": text.tokens_per_second,
        "energy_mj": text.energy.mj,
        "energy_source": text.energy.source,
        "switches": [switch._asdict() for switch in text.switches],
        "guesses": asdict(text.guesses),
        **{name: value for name, value in begun.document().items() if name in names},
    }


def _asked(said: str, system: str | None, chat: bool) -> Any:
    if not chat:
        return said
    return [*([{"role": "system", "content": system}] if system is not None else []), {"role": "user", "content": said}]


def _from_stdin() -> str:
    given = sys.stdin.buffer.read()
    try:
        return given.decode()
    except UnicodeDecodeError as error:
        fail(f"prompt: byte {error.start} of stdin is {given[error.start]:#04x}, which is no UTF-8; allowed is UTF-8", 2)
