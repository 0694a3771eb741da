"""Measures a bundle on this device, with exactly the programs that `Runtime` will run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import onnxruntime as ort
from pydantic import ValidationError

from device_profiles import DeviceInfo, Profile, ProfileError, describe_device, measure
from device_profiles.energy import find_meter
from device_profiles.estimate import Estimator, predict
from exporter.bundle import Bundle
from exporter.bundle.session import CPU, SessionOptions, provider_named
from selector.run.cache import ModelCache
from selector.run.program import program_opener


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
    predict_from: int | None = None,
    repeats: int | None = None,
    watts: float | None = None,
    show_progress: bool = True,
    before: Callable[[DeviceInfo, Sequence[str]], None] = lambda device, measured: None,
) -> Profile:
    """Latency, load time and memory of the sub-models (default: all) at batch size 1.

    With `predict_from` so many well-chosen ones of them are measured and the others predicted; each figure says which.
    Energy comes from the processor's counters or a discharging battery where there are such, else from `watts` per busy
    core, if given. `before` is called with the device and what will be measured, before the first is: `Bundle.check_profile`
    looks there whether the profile will be kept. Raises BundleError for a sub-model that is not in the bundle, ProfileError
    for a device name that is no file name or a bundle that nothing can be predicted of, SessionError for an execution
    provider that is not here.
    """
    chosen = [bundle.submodel(name).id for name in submodels or bundle.submodels]
    layers, counts = bundle.manifest.layers, {name: dict(bundle.submodels[name].layers) for name in chosen}
    for name, value, least in (("threads", threads, 1), ("measure", predict_from, 2), ("repeats", repeats, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise ProfileError(f"{name} = {value!r}: allowed are whole numbers from {least}")
    predicting = predict_from is not None and predict_from < len(chosen)
    try:
        measuring = Estimator(layers, counts).choose(predict_from) if predict_from is not None and predicting else chosen
    except ValueError as error:
        raise ProfileError(f"measure = {predict_from}: {error}; export the model again") from None
    meter = find_meter(watts)
    inputs = {name: array[:1] for name, array in bundle.selftest_inputs.items()}
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
        raise ProfileError(f"{first['loc'][0]} = {first['input']!r}: {first['msg']}") from None
    before(info, measuring)

    open_program = program_opener(bundle, SessionOptions(info.threads, info.execution_provider, spinning), cache)

    def load(name: str) -> Callable[[], object]:
        program = open_program(name)
        return lambda: program.run(inputs)

    found = measure(load, measuring, repeats=repeats, meter=meter, show_progress=show_progress)
    found, errors = predict(layers, counts, found) if predicting else (found, {})
    now = datetime.now(UTC).replace(microsecond=0)
    return Profile(device=info, bundle=bundle.fingerprint, measured_at=now, submodels=found, prediction=errors)
