"""How a runtime opens its programs: as they were measured for their profile, where nothing else was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from typing import TypeVar

from device_profiles import Profile
from exporter.bundle import Bundle, BundleError
from exporter.bundle.session import CPU, SessionError, SessionOptions
from selector.choose.candidates import Key
from selector.choose.cascades import Cascade
from selector.run.decode.opening import DecoderOpener
from selector.run.options import RuntimeOptions
from selector.run.program import Program, program_opener
from selector.ship.standing import place_of

log = logging.getLogger("sortednet.runtime")

T = TypeVar("T")

_BYTES = {"int8-rows": 1.0, "int4": 0.7}
"""Of a weight, with the factors of its block."""
NOT_MEASURED = ""
"""In place of a profile's name, where there is none."""


def opener(
    bundle: Bundle, profiles: Sequence[Profile], cascades: Iterable[Cascade], options: RuntimeOptions
) -> Callable[[Key], Program]:
    """Opens a sub-model or a cascade for a profile, of this very version of the bundle: another one may have been put in its
    place meanwhile. What it returns raises BundleError when that cannot be opened."""
    version = copy(bundle)
    openers, decoders = {}, {}
    for profile in profiles or (None,):
        device, its = profile.device.name if profile else NOT_MEASURED, _session_options(profile, options)
        openers[device] = program_opener(version, its, options.cache, cascades)
        decoders[device] = DecoderOpener(version, its, options.speculative)

    def from_its_folder(name: str, device: str) -> Program:
        if bundle.decoder is not None and options.speculative != "off":
            return decoders[device](name, partial(openers[device], name))
        return openers[device](name)

    def opened(key: Key) -> Program:
        name, device = key
        return of_this_version(bundle, version, name, lambda: from_its_folder(name, device))

    return opened


def of_this_version(bundle: Bundle, version: Bundle, name: str, opening: Callable[[], T]) -> T:
    """What `opening` opens of `version`, a copy of the bundle whose path is made to lead to where this very version is. Raises
    BundleError when that cannot be opened."""
    while True:
        place = version.path = place_of(bundle)
        try:
            opened = opening()
        except SessionError:
            raise
        except Exception as error:  # ONNX Runtime has one exception type per status code
            if place_of(bundle) == place:
                raise BundleError(f"sub-model {name!r}: cannot be opened: {error}") from error
        else:
            if place_of(bundle) == place:
                return opened
        # Another version came in the middle: what was read may be of both. This one is kept elsewhere now.


def memory_of(bundle: Bundle, profiles: Sequence[Profile], cascades: Iterable[Cascade]) -> dict[Key, float]:
    """What a session takes (MB): measured where it was, else its parameters twice, as ONNX Runtime holds them at worst; a
    cascade's are both sub-models'."""
    found: dict[Key, float] = {}
    for profile in profiles or (None,):
        device = profile.device.name if profile else NOT_MEASURED
        measured = {name: m.memory_mb for name, m in profile.submodels.items()} if profile else {}
        for entry in bundle.manifest.submodels:
            known = measured.get(entry.id)
            found[entry.id, device] = known if known is not None else 2 * _BYTES.get(entry.precision, 4) * entry.params / 2**20
        for cascade in cascades:
            found[cascade.id, device] = found[cascade.first, device] + found[cascade.then, device]
    return found


def _session_options(profile: Profile | None, options: RuntimeOptions) -> SessionOptions:
    threads, provider, spinning = options.threads, options.provider, options.spinning
    if profile is not None:
        if threads not in (None, 0, profile.device.threads):
            log.warning(
                "the profile %s was measured with %d threads, these sessions use %d: measure again with `sortednet profile`",
                profile.device.name, profile.device.threads, threads,
            )  # fmt: skip
        threads = profile.device.threads if threads is None else threads
        provider = provider or profile.device.execution_provider
        spinning = profile.device.spinning if spinning is None else spinning
    return SessionOptions(threads or 0, provider or CPU, spinning is not False)
