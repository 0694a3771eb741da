"""What becomes of a profile where one of the same name stands: measurements of the same conditions are put together."""

from __future__ import annotations

from collections.abc import Collection

from device_profiles.schema import DeviceInfo, Profile, ProfileError, Sustained

_SAYS_NOTHING = {"name", "label", "ram_mb"}
"""Fields of a device on which no figure depends."""
_CHANGES = {"os", "onnxruntime", "energy"}
"""Fields that an update changes: figures from before it and after it are not put together, but it is the same device."""


def check_merge(
    old: Profile, device: DeviceInfo, measured: Collection[str], length: int | None = None, prompt: int | None = None
) -> None:
    """Raises ProfileError naming the condition that differs where measurements of `old` would be lost to those of `measured`
    on `device`: always where it is another device, or used otherwise; after an update, or with another reference `length` of
    the input or longest `prompt`, where not all are measured again."""
    lost = [name for name in _measured(old) if name not in measured]
    generates = prompt is not None or _prompt(old) is not None
    for name, before, now, option in (
        ("length", old.length, length, "contexts" if generates else "lengths"),
        ("prompt", _prompt(old), prompt, "prompts"),
    ):
        if lost and before != now:
            there, here = (f"{one} tokens" if one else "inputs of one size" for one in (before, now))
            raise ProfileError(
                f"profile {old.device.name!r}: its {len(lost)} measurements are of {name} = {there}, these of {here}; "
                f"measure all sub-models, with --{option} up to the same, or replace that with --overwrite"
            )
    for field, here in device.model_dump(exclude=_SAYS_NOTHING).items():
        there = getattr(old.device, field)
        if there == here or (field in _CHANGES and not lost):
            continue
        count = len(lost) if field in _CHANGES else len(_measured(old))
        raise ProfileError(
            f"profile {old.device.name!r}: its {count} measurements are of {field} = {there!r}, these of {here!r}; "
            "give this one another name with --device, or replace that with --overwrite"
        )


def merged(old: Profile, new: Profile) -> Profile:
    """Both measurements: the new one of each sub-model, but none that is predicted in place of a measured one. What the old
    one predicts goes where it is of other conditions. Raises ProfileError as `check_merge` does."""
    check_merge(old, new.device, _measured(new), new.length, _prompt(new))
    here, there = set(_measured(new)), set(_measured(old))
    alike = _conditions(old) == _conditions(new)
    kept = {
        name: found
        for name, found in old.submodels.items()
        if (name in there and name not in here) or (name not in new.submodels and alike)
    }
    order = [*old.submodels, *(name for name in new.submodels if name not in old.submodels)]
    submodels = {name: kept.get(name) or new.submodels[name] for name in order if name in kept or name in new.submodels}
    still = {figure for found in submodels.values() for figure, source in found.source.items() if source == "predicted"}
    errors = {figure: error for figure, error in {**old.prediction, **new.prediction}.items() if figure in still}
    device = new.device.model_copy(update={"label": new.device.label or old.device.label})
    update = {
        "device": device,
        "submodels": submodels,
        "prediction": errors,
        "sustained": new.sustained or _still_holds(old, new),
    }
    return new.model_copy(update=update)


def _still_holds(old: Profile, new: Profile) -> Sustained | None:
    """What the old one says of steady work, where nothing has changed on which it depends."""
    before, now = (one.device.model_dump(exclude=_SAYS_NOTHING) for one in (old, new))
    return old.sustained if before == now and old.length == new.length else None


def _conditions(profile: Profile) -> tuple[object, ...]:
    """What may differ where all is measured again, and then changes what is predicted."""
    return profile.length, _prompt(profile), profile.device.model_dump(include=_CHANGES)


def _prompt(profile: Profile) -> int | None:
    """The longest prompt that was read; None where no text is generated."""
    decoding = [found.decoding for found in profile.submodels.values() if found.decoding is not None]
    return max((tokens for one in decoding for tokens in one.prefill), default=None)


def _measured(profile: Profile) -> list[str]:
    return [name for name, found in profile.submodels.items() if found.source["latency_ms"] != "predicted"]
