"""What pydantic refuses, as one sentence for people: the field, the value, what is allowed."""

from __future__ import annotations

from pydantic import ValidationError


def first_wrong(error: ValidationError, whole: str = "", names: tuple[str, ...] = ()) -> str:
    """`field = value: what is allowed` of the first thing that is wrong; `whole` is what stands for the field where it is the
    document itself, `names` the fields that there are."""
    first = error.errors()[0]
    place, given = ".".join(str(part) for part in first["loc"]), first["input"]
    said = first["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]  # no more of it: what follows may be a value
    if first["type"] == "extra_forbidden" and names and "." not in place:
        said = f"there is no such field; allowed are {', '.join(names)}"
    above, _, leaf = place.rpartition(".")
    if place and said.startswith(f"{leaf} = "):  # the message has the value already
        return f"{above}.{said}" if above else said
    if not place:
        return f"{whole}: {said}" if whole else said
    return f"{place}: {said}" if isinstance(given, dict) else f"{place} = {given!r}: {said}"
