"""Measures a bundle on this device, with exactly the programs that `Runtime` will run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import ValidationError

from device_profiles import (
    DeviceInfo,
    Measurement,
    Profile,
    ProfileError,
    describe_device,
    measure,
    measure_decoding,
    measure_lengths,
)
from device_profiles.decoding import CONTEXTS, PROMPTS
from device_profiles.decoding import series as tokens_up_to
from device_profiles.energy import EnergyMeter, find_meter
from device_profiles.estimate import Estimator, predict
from device_profiles.harness import progress_bar
from device_profiles.lengths import series
from device_profiles.schema import MAX_LENGTH, MAX_LENGTHS, NAME_ALLOWED, Sustained
from device_profiles.sustain import check_minutes, sustain
from exporter.bundle import Bundle
from exporter.bundle.session import CPU, SessionOptions, provider_named
from selector.choose.lengths import LengthAxis
from selector.run.cache import ModelCache
from selector.run.decode import Decoder
from selector.run.decode.timed import TimedDecoder
from selector.run.generate.described import Described
from selector.run.opening import of_this_version
from selector.run.program import GraphProgram, Program, program_opener


def profile_bundle(
    bundle: Bundle,
    *,
    device: str | None = None,
    label: str = "",
    threads: int | None = None,
    provider: str = CPU,
    spinning: bool = True,
    cache: ModelCache | bool = True,
    submodels: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    prompts: Sequence[int] | None = None,
    contexts: Sequence[int] | None = None,
    predict_from: int | None = None,
    repeats: int | None = None,
    watts: float | None = None,
    sustain_minutes: float | None = None,
    show_progress: bool = True,
    before: Callable[[DeviceInfo, Sequence[str], int | None, int | None], None] = lambda device, measured, length, prompt: None,
) -> Profile:
    """Latency, load time and memory of the sub-models (default: all) at batch size 1.

    Where inputs have a free axis beside the batch, such as the tokens of a text, latency is measured at these `lengths` of it
    (default: the longest that the bundle says, or that of the self-test, and down by halves), memory and energy at the longest.
    Where text is generated, it is that of reading `prompts` of so many tokens and of one token in `contexts` of so many
    (default: `device_profiles.decoding`), energy that of a token in the longest context.

    With `predict_from` so many well-chosen ones of them are measured and the others predicted; each figure says which.
    Energy comes from the processor's counters or a discharging battery where there are such, else from `watts` per busy
    core, if given. With `sustain_minutes` the slowest of those that are measured is then run without a pause for so long,
    and the profile says how what it takes drifts (`device_profiles.sustain`). `before` is called with the device, what will
    be measured, the longest length and the longest prompt, before the first is: `Bundle.check_profile` looks there whether
    the profile will be kept.

    Raises BundleError for a sub-model that is not in the bundle or cannot be opened, also where another bundle was put in this
    one's place, ProfileError for a device name that is no file name, minutes that are not allowed, lengths that the bundle does
    not take or a bundle that nothing can be predicted of, SessionError for an execution provider that is not here.
    """
    chosen = [bundle.submodel(name).id for name in submodels or bundle.submodels]
    layers, counts = bundle.manifest.layers, {name: dict(bundle.submodels[name].layers) for name in chosen}
    for name, value, least in (("threads", threads, 1), ("measure", predict_from, 2), ("repeats", repeats, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise ProfileError(f"{name} = {value!r}: allowed are whole numbers from {least}")
    if sustain_minutes is not None:
        check_minutes(sustain_minutes)
    predicting = predict_from is not None and predict_from < len(chosen)
    try:
        measuring = Estimator(layers, counts).choose(predict_from) if predict_from is not None and predicting else chosen
    except ValueError as error:
        raise ProfileError(f"measure = {predict_from}: {error}; export the model again") from None
    meter = find_meter(watts)
    inputs = {name: array[:1] for name, array in bundle.selftest_inputs.items()}
    decoding = _checked_tokens(bundle, prompts, contexts)
    axis = LengthAxis.of(bundle) if decoding is None else None
    measured_lengths = _checked_lengths(axis, lengths, inputs, generates=decoding is not None)
    longest = max(measured_lengths if decoding is None else decoding[1], default=None)
    try:
        info = describe_device(
            name=device,
            threads=threads,
            label=label,
            onnxruntime=ort.__version__,
            execution_provider=provider_named(provider),
            spinning=spinning,
            energy=meter.name if meter else "",
        )
    except ValidationError as error:
        first = error.errors()[0]
        allowed = NAME_ALLOWED if first["type"] == "string_pattern_mismatch" else first["msg"]
        raise ProfileError(f"{first['loc'][0]} = {first['input']!r}: {allowed}") from None
    before(info, measuring, longest, None if decoding is None else max(decoding[0]))

    settings = SessionOptions(info.threads, info.execution_provider, spinning)
    # Of a language model there are no optimized copies: they would hold the weights once more.
    version = copy(bundle)
    opened = program_opener(version, settings, cache if decoding is None else False)

    def open_program(name: str) -> Program:
        return of_this_version(bundle, version, name, lambda: opened(name))

    more: dict[str, Any] = {"repeats": repeats, "meter": meter, "show_progress": show_progress}
    found: dict[str, Measurement]
    if decoding is not None:
        specs = Described.of(bundle).specs

        def load_decoder(name: str) -> TimedDecoder:
            program = open_program(name)
            assert isinstance(program, GraphProgram)
            return TimedDecoder(Decoder(program.session, specs[name]))

        found = measure_decoding(load_decoder, measuring, *decoding, **more)

        def load_longest(name: str) -> Callable[[], object]:
            opened = load_decoder(name)
            return lambda: opened.step(max(decoding[1]))
    elif axis is None or not measured_lengths:

        def load(name: str) -> Callable[[], object]:
            program = open_program(name)
            return lambda: program.run(inputs)

        found, load_longest = measure(load, measuring, **more), load
    else:
        feeds = {length: resized(axis, inputs, length) for length in measured_lengths}

        def load_at(name: str) -> Callable[[int], object]:
            program = open_program(name)
            return lambda length: _ran(program, name, feeds[length], length)

        found = measure_lengths(load_at, measuring, measured_lengths, **more)

        def load_longest(name: str) -> Callable[[], object]:
            run = load_at(name)
            return lambda: run(measured_lengths[-1])

    lasting = None if sustain_minutes is None else _sustained(load_longest, found, sustain_minutes, meter, show_progress)
    found, errors = predict(layers, counts, found) if predicting else (found, {})
    now = datetime.now(UTC).replace(microsecond=0)
    return Profile(
        device=info,
        bundle=bundle.fingerprint,
        measured_at=now,
        length=longest,
        submodels=found,
        prediction=errors,
        sustained=lasting,
    )


def _sustained(
    load: Callable[[str], Callable[[], object]],
    found: Mapping[str, Measurement],
    minutes: float,
    meter: EnergyMeter | None,
    show_progress: bool,
) -> Sustained:
    """Of the slowest: what makes a device warm."""
    slowest = max(found, key=lambda name: found[name].latency_ms.p50)
    run = load(slowest)
    if not show_progress:
        return sustain(run, minutes, submodel=slowest, meter=meter)
    with progress_bar() as bar:
        task = bar.add_task(f"keeping {slowest} busy", total=round(60 * minutes))
        return sustain(run, minutes, submodel=slowest, meter=meter, told=lambda at, ms: bar.update(task, completed=round(at)))


def _checked_tokens(
    bundle: Bundle, prompts: Sequence[int] | None, contexts: Sequence[int] | None
) -> tuple[list[int], list[int]] | None:
    """Of prompts and of contexts, ascending; None where no text is generated. Raises ProfileError."""
    decoder = bundle.manifest.decoder
    found = []
    for name, asked, usual in (("prompts", prompts, PROMPTS), ("contexts", contexts, CONTEXTS)):
        if decoder is None:
            if asked is not None:
                raise ProfileError(f"{name} = {', '.join(map(str, asked))}: allowed is none, this bundle generates no text")
            continue
        most = decoder.context - 1  # the next token needs a place too
        wrong = [one for one in asked or () if type(one) is not int or not 1 <= one <= most]
        if wrong or (asked is not None and not asked) or len(set(asked or ())) > MAX_LENGTHS:
            shown = repr(wrong[0]) if wrong else f"{len(asked or ())} of them"
            raise ProfileError(f"{name} = {shown}: allowed are up to {MAX_LENGTHS} whole numbers from 1 to {most}")
        found.append(sorted(set(asked)) if asked else tokens_up_to(usual, most))
    return (found[0], found[1]) if found else None


def _checked_lengths(
    axis: LengthAxis | None, asked: Sequence[int] | None, inputs: Mapping[str, NDArray[Any]], *, generates: bool
) -> list[int]:
    """Ascending; none where inputs have one size or text is generated. Raises ProfileError."""
    if axis is None:
        if asked is not None:
            why = (
                "this bundle generates text: give prompts and contexts"
                if generates
                else "the inputs of this bundle have one size"
            )
            raise ProfileError(f"lengths = {', '.join(map(str, asked))}: allowed is none, {why}")
        return []
    if asked is None:
        return series(axis.longest or axis.of_feed(inputs))
    most = axis.longest or MAX_LENGTH
    wrong = [one for one in asked if type(one) is not int or not 1 <= one <= most]
    if wrong or not asked:
        shown = repr(wrong[0]) if wrong else "none"
        raise ProfileError(f"lengths = {shown}: allowed are whole numbers from 1 to {most}, the longest {axis.name}")
    if len(set(asked)) > MAX_LENGTHS:
        raise ProfileError(f"lengths: {len(set(asked))} given; allowed are {MAX_LENGTHS}")
    return sorted(set(asked))


def resized(axis: LengthAxis, inputs: Mapping[str, NDArray[Any]], length: int) -> dict[str, NDArray[Any]]:
    """The inputs cut to that length, or repeated along the axis until they have it."""

    def one(name: str, array: NDArray[Any]) -> NDArray[Any]:
        place = axis.places.get(name)
        return array if place is None else np.take(array, np.arange(length) % array.shape[place], axis=place)

    return {name: one(name, array) for name, array in inputs.items()}


def _ran(program: Program, name: str, feed: Mapping[str, NDArray[Any]], length: int) -> object:
    try:
        return program.run(feed)
    except Exception as error:  # ONNX Runtime has one exception type per status code
        raise ProfileError(f"lengths = {length}: {name} cannot compute an input that long: {error}") from error
