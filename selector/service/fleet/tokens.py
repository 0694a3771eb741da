"""Bearer tokens: `snt_<id>_<secret>`. Kept is the SHA-256 of the whole, which is enough for 256 random bits."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple

import sqlalchemy as sa

from selector.service.fleet.database import StoreError, reading, writing
from selector.service.fleet.tables import tokens

WRITE, GENERATE = "profiles:write", "generate"
SCOPES = (WRITE, GENERATE)
"""What a token may be good for."""

DEFAULT_SCOPES = (WRITE,)
"""Of one that nobody names scopes for."""

_FORM = re.compile(r"snt_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NO_SHA256 = "0" * 64


class Token(NamedTuple):
    """What is known of a token. `bundle` and `device`: only these (`*` stands for any characters), None for all."""

    id: str
    name: str
    scopes: tuple[str, ...]
    bundle: str | None
    device: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def allows(self, bundle: str, device: str) -> bool:
        return _matches(bundle, self.bundle) and _matches(device, self.device)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in self._asdict().items()}


class Tokens:
    """The tokens of a store."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(
        self,
        name: str,
        scopes: Sequence[str] = DEFAULT_SCOPES,
        *,
        bundle: str | None = None,
        device: str | None = None,
        days: float | None = None,
    ) -> tuple[Token, str]:
        """A new token and its text, which is nowhere kept. `days`: until it expires. Raises StoreError naming the field."""
        if not name.isprintable() or not 0 < len(name) <= 128:
            raise StoreError(f"name = {name!r}: allowed are 1 to 128 printable characters")
        for scope in scopes:
            if scope not in SCOPES:
                raise StoreError(f"scope = {scope!r}: allowed are {', '.join(SCOPES)}")
        for field, value, most in (("bundle", bundle, 255), ("device", device, 128)):
            if value is not None and (not value.isprintable() or not 0 < len(value) <= most):
                raise StoreError(f"{field} = {value!r}: allowed are 1 to {most} printable characters")
        if days is not None and not 0 < days <= 36_500:
            raise StoreError(f"days = {days:g}: allowed are more than 0 and up to 36500")
        now = datetime.now(UTC)
        expires = None if days is None else now + timedelta(days=days)
        identifier = secrets.token_hex(6)
        text = f"snt_{identifier}_{secrets.token_urlsafe(32)}"
        token = Token(identifier, name, tuple(scopes), bundle, device, now, expires, None)
        row = {**token._asdict(), "scopes": " ".join(scopes), "sha256": _hash(text)}
        with writing(self._engine) as connection:
            connection.execute(tokens.insert().values(row))
        return token, text

    def all(self) -> list[Token]:
        """The oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(*_COLUMNS).order_by(tokens.c.created_at, tokens.c.id))
            return [_token(row) for row in rows]

    def revoke(self, identifier: str) -> Token:
        """From now on it is good for nothing; one that was revoked before stays so. Raises StoreError when there is none."""
        with writing(self._engine) as connection:
            one = tokens.c.id == identifier
            connection.execute(tokens.update().where(one, tokens.c.revoked_at.is_(None)).values(revoked_at=datetime.now(UTC)))
            row = connection.execute(sa.select(*_COLUMNS).where(one)).one_or_none()
        if row is None:
            raise StoreError(f"token {identifier!r}: there is none; `sortednet token list` shows what there is")
        return _token(row)

    def authenticate(self, text: str) -> Token | None:
        """The token with that text, when it is neither revoked nor expired. Found by its id, then the hashes are compared in
        constant time; the database is asked every time, so that a revoked token is refused at once."""
        form = _FORM.fullmatch(text)
        if form is None:
            return None
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(*_COLUMNS, tokens.c.sha256).where(tokens.c.id == form[1])).one_or_none()
        same = hmac.compare_digest(_hash(text), row.sha256 if row else _NO_SHA256)
        if row is None or not same:
            return None
        token = _token(row)
        expired = token.expires_at is not None and token.expires_at <= datetime.now(UTC)
        return None if expired or token.revoked_at is not None else token


_COLUMNS = [tokens.c[name] for name in Token._fields]


def _token(row: Any) -> Token:
    found = {name: getattr(row, name) for name in Token._fields}
    return Token(**{**found, "scopes": tuple(found["scopes"].split())})


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is None or re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
