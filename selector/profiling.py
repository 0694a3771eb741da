"""Measures a bundle on this device, with exactly the sessions that `Runtime` will use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import onnxruntime as ort
from pydantic import ValidationError

from device_profiles import Profile, ProfileError, describe_device, measure
from exporter.bundle import Bundle
from exporter.session import CPU, SessionOptions, provider_named
from selector.cache import ModelCache, session_opener


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
    repeats: int | None = None,
    show_progress: bool = True,
) -> Profile:
    """Latency, load time and memory of the sub-models (default: all) at batch size 1.

    Raises BundleError for a sub-model that is not in the bundle, ProfileError for a device name that is no file name.
    """
    chosen = [bundle.submodel(name).id for name in submodels or bundle.submodels]
    inputs = {name: array[:1] for name, array in bundle.selftest_inputs.items()}
    names = [output.name for output in bundle.manifest.outputs]
    try:
        info = describe_device(
            name=device, threads=threads, label=label, onnxruntime=ort.__version__, execution_provider=provider_named(provider)
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ProfileError(f"{first['loc'][0]} = {first['input']!r}: {first['msg']}") from None

    open_session = session_opener(bundle, SessionOptions(info.threads, info.execution_provider, spinning), cache)

    def load(name: str) -> Callable[[], object]:
        session = open_session(name)
        return lambda: session.run(names, inputs)

    measured = measure(load, chosen, repeats=repeats, show_progress=show_progress)
    now = datetime.now(UTC).replace(microsecond=0)
    return Profile(device=info, bundle=bundle.fingerprint, measured_at=now, submodels=measured)
