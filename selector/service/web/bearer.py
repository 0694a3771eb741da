"""Bearer tokens of requests: who may do what, and how often."""

from __future__ import annotations

from math import ceil
from typing import NoReturn

from flask import request

from selector.service.fleet.rates import RateLimit
from selector.service.fleet.tokens import Token, Tokens
from selector.service.web.problems import Problem


def bearer(tokens: Tokens, scope: str, bundle: str, device: str) -> Token:
    """The request's token, of these, which has the scope for that bundle and device. Raises Problem 401 and 403."""
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        _unauthorized("a bearer token is needed: Authorization: Bearer TOKEN", "")
    token = tokens.authenticate(given.token)
    if token is None:
        _unauthorized("the token is unknown, expired or revoked", ', error="invalid_token"')
    if scope not in token.scopes:
        challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
        raise Problem(403, f"token {token.id}: needs scope {scope}, has {', '.join(token.scopes) or 'none'}", headers=challenge)
    if not token.allows(bundle, device):
        raise Problem(403, f"token {token.id}: is for bundle {token.bundle or '*'!r} and device {token.device or '*'!r} only")
    return token


def count(limit: RateLimit, key: str, who: str) -> None:
    """Counts a request. Raises Problem 429 where there were too many. `who`: for people."""
    wait = limit.wait_s(key)
    if wait is not None:
        raise Problem(429, f"{who}: allowed are {limit.limit}", headers={"Retry-After": str(ceil(wait) or 1)})


def _unauthorized(detail: str, why: str) -> NoReturn:
    raise Problem(401, detail, headers={"WWW-Authenticate": f'Bearer realm="sortednet"{why}'})
