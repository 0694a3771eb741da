"""Names, numbers and switches out of a path or a query string."""

from __future__ import annotations

import re

from flask import request
from pydantic import TypeAdapter, ValidationError

from device_profiles.schema import NAME_ALLOWED, Name
from selector.service.web.problems import wrong_field

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def checked_name(field: str, value: str) -> str:
    """The value, when it may be the name of a device or a device model. Raises Problem 422."""
    try:
        return _NAME.validate_python(value)
    except ValidationError:
        message = NAME_ALLOWED
        raise wrong_field(field, value, message) from None


def integer_argument(field: str, *, least: int, most: int) -> int | None:
    """From the query string, None where it is not given. Raises Problem 422."""
    text = request.args.get(field)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise wrong_field(field, text, f"allowed are {least} to {most}")
    return int(text)


def boolean_argument(field: str) -> bool:
    """From the query string, false where it is not given. Raises Problem 422."""
    text = request.args.get(field, "false")
    if text not in ("true", "false"):
        raise wrong_field(field, text, "allowed are true and false")
    return text == "true"
