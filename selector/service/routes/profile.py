"""`/v1/bundles/{name}/profiles` and `/models`: what the fleet's devices measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote

from flask import Blueprint, Response, request
from pydantic import Field

from device_profiles import Profile
from device_profiles.schema import Name
from device_profiles.seal import SEAL, SealError, check_seal
from exporter.bundle import Bundle, BundleError
from selector.service.fleet.rings import plain_name
from selector.service.fleet.store import Stored, VersionConflict, canonical, sha256_of
from selector.service.fleet.tokens import WRITE, Token
from selector.service.state import state
from selector.service.web.arguments import checked_name, integer_argument
from selector.service.web.bearer import bearer, count
from selector.service.web.bodies import body, compressed, conditional, model_answer, plain_etag, validated
from selector.service.web.openapi import Answer, Parameter, describe
from selector.service.web.problems import Problem, without_folder, wrong_field
from selector.service.web.profile_schemas import (
    DeviceModelDocument,
    DeviceModelList,
    DeviceModelSummary,
    ProfileList,
    ProfileSummary,
    StoredDocument,
)

blueprint = Blueprint("profiles", __name__, url_prefix="/v1/bundles/<name>")

MAX_PROFILE_BYTES = 1024 * 1024
"""A profile of 160 sub-models takes about 60 kB."""

PAGE = 100
MAX_PAGE = 1000
MAX_VERSION = 2**31 - 1

_BUNDLE = Parameter("name", "path", str, "The bundle's name")
_DEVICE = Parameter("device", "path", Name, "The device's name")
_PAGE = (
    Parameter("after", "query", Name, "Names after this one"),
    Parameter("limit", "query", Annotated[int, Field(ge=1, le=MAX_PAGE)], f"At most so many; {PAGE} where it is not given"),
)
_UNKNOWN_BUNDLE = "No such bundle"
_WRONG = "A name or number that is none"
_NO_STORE = "The store of profiles does not answer, or the service has none"
_COMMON = {422: _WRONG, 503: _NO_STORE}
_ETAG = {"ETag": "Of this answer"}
_OTHER_ETAG = "It has another ETag"
_CONDITIONS = (
    Parameter("If-None-Match", "header", str, "ETags that are known already"),
    Parameter("If-Match", "header", str, "ETags that are wanted"),
)


@blueprint.get("/profiles")
@describe(
    "The devices that there are profiles of",
    tag="profiles",
    parameters=[_BUNDLE, *_PAGE],
    answers={200: ProfileList},
    problems={404: _UNKNOWN_BUNDLE, **_COMMON},
)
def profiles(name: str) -> Response:
    """The devices that there are profiles of, by name; one that sent a profile stands before a file of the same name."""
    bundle = state().bundle(name)
    after, limit = _page()
    stored = state().fleet.store.devices(plain_name(bundle.name), bundle.fingerprint, after=after, limit=limit + 1)
    lines = {one: ProfileSummary(device=one, source="bundle") for one in bundle.devices() if one > after}
    for one in stored:
        columns = one._asdict()
        lines[one.device] = ProfileSummary(source="fleet", **{key: columns[key] for key in columns if key != "bundle"})
    page = [lines[device] for device in sorted(lines)[: limit + 1]]
    found = ProfileList(profiles=page[:limit], next=page[limit - 1].device if len(page) > limit else None)
    return compressed(model_answer(found))


@blueprint.get("/profiles/<device>")
@describe(
    "A device's profile",
    tag="profiles",
    parameters=[
        _BUNDLE,
        _DEVICE,
        Parameter("version", "query", Annotated[int, Field(ge=1, le=MAX_VERSION)], "Not the newest"),
        *_CONDITIONS,
    ],
    answers={200: Answer("The profile", Profile, headers=_ETAG), 304: Answer("It is the one with that ETag", headers=_ETAG)},
    problems={404: "No such bundle, device or version", 412: _OTHER_ETAG, **_COMMON},
)
def profile(name: str, device: str) -> Response:
    """The newest profile of a device, or a `version` of it: as the device sent it, else as it lies in the bundle."""
    bundle = state().bundle(name)
    checked_name("device", device)
    version = integer_argument("version", least=1, most=MAX_VERSION)
    asked = state().has_store or version is not None
    found = state().fleet.store.profile(plain_name(bundle.name), bundle.fingerprint, device, version) if asked else None
    if found is not None:
        stored, text = found
    else:
        if version is not None or device not in bundle.devices():
            which = f"version {version} of " if version is not None else ""
            listed = f"/v1/bundles/{bundle.name}/profiles"
            raise Problem(404, f"device {device!r}: there is no {which}its profile; {listed} lists what there is")
        try:
            stored, text = None, canonical(bundle.profile(device))
        except BundleError as error:
            raise Problem(404, without_folder(error, bundle)) from None
    response = Response(text, mimetype="application/json")
    response.set_etag(sha256_of(text))
    response.headers["Cache-Control"] = "no-cache"
    if stored is not None:
        response.headers["Content-Location"] = _location(stored)
        response.headers["Profile-Version"] = str(stored.version)
    return conditional(compressed(response))


@blueprint.put("/profiles/<device>")
@describe(
    "Store a device's profile",
    tag="profiles",
    parameters=[
        _BUNDLE,
        _DEVICE,
        Parameter("If-Match", "header", str, "The ETag of the profile that it replaces, or *"),
        Parameter("If-None-Match", "header", str, "*: only where there is none"),
    ],
    request=Profile,
    answers={
        200: Answer("A new version, or the newest was equal", StoredDocument, headers=_ETAG),
        201: Answer("The first of this device", StoredDocument, headers=_ETAG),
    },
    problems={
        404: _UNKNOWN_BUNDLE,
        409: "It was measured on another bundle",
        412: _OTHER_ETAG,
        429: "Too many profiles of this token",
        **_COMMON,
    },
    scope=WRITE,
)
def put_profile(name: str, device: str) -> Response:
    """Keeps what a device measured as its newest version. A profile equal to the newest changes nothing, so that a request
    may be repeated. With `If-Match` only over the profile with that ETag, as GET gives it."""
    bundle = state().bundle(name)
    checked_name("device", device)
    token = _writer(bundle, device)
    sent = _sent(bundle, device)
    conditions = _conditions(bundle, device)
    try:
        stored, created = state().fleet.store.put(plain_name(bundle.name), sent, token=token.id, may_replace=conditions)
    except VersionConflict:
        message = f"what there is of device {device!r} is not as If-Match or If-None-Match says; GET has its ETag"
        raise Problem(412, message) from None
    state().fleet.forget(bundle, device)
    response = model_answer(StoredDocument(**stored._asdict(), created=created))
    response.status_code = HTTPStatus.CREATED if created and stored.version == 1 else HTTPStatus.OK
    response.set_etag(stored.sha256)
    response.headers["Content-Location"] = _location(stored)
    return response


@blueprint.get("/models")
@describe(
    "The models of the fleet's devices",
    tag="profiles",
    parameters=[_BUNDLE, *_PAGE],
    answers={200: DeviceModelList},
    problems={404: _UNKNOWN_BUNDLE, **_COMMON},
)
def models(name: str) -> Response:
    """The models of the devices that sent profiles."""
    bundle = state().bundle(name)
    after, limit = _page()
    found = state().fleet.store.models(plain_name(bundle.name), bundle.fingerprint, after=after, limit=limit + 1)
    page = [DeviceModelSummary(model=one.model, devices=one.devices) for one in found[:limit]]
    return compressed(model_answer(DeviceModelList(models=page, next=page[-1].model if len(found) > limit else None)))


@blueprint.get("/models/<model>")
@describe(
    "What the devices of a model measured together",
    tag="profiles",
    parameters=[_BUNDLE, Parameter("model", "path", Name, "The device model's name"), *_CONDITIONS],
    answers={200: Answer("The median", DeviceModelDocument, headers=_ETAG), 304: Answer("It has that ETag", headers=_ETAG)},
    problems={404: "No such bundle or model", 412: _OTHER_ETAG, **_COMMON},
)
def model(name: str, model: str) -> Response:
    """The median over the devices of a model. Its name may stand for a device's in `POST /v1/select`."""
    bundle = state().bundle(name)
    checked_name("model", model)
    found = state().fleet.model(bundle, model)
    if found is None:
        listed = f"/v1/bundles/{bundle.name}/models"
        raise Problem(404, f"device model {model!r}: no device of it sent a profile; {listed} lists what there is")
    document = DeviceModelDocument(model=model, devices=found.model.devices, used=found.used, profile=found.profile)
    response = model_answer(document)
    response.add_etag()
    response.headers["Cache-Control"] = "no-cache"
    return conditional(compressed(response))


def _writer(bundle: Bundle, device: str) -> Token:
    """The request's token. Raises Problem 401, 403 and 429."""
    token = bearer(state().fleet.store.tokens, WRITE, plain_name(bundle.name), device)
    count(state().put_limit, token.id, f"token {token.id}")
    return token


def _sent(bundle: Bundle, device: str) -> Profile:
    """The request's profile, checked against the bundle. Raises Problem 409 and 422, and what `body` raises."""
    sent = body(MAX_PROFILE_BYTES)
    profile = validated(Profile, sent)
    try:
        check_seal(json.loads(sent))
    except SealError as error:
        raise wrong_field(SEAL, None, str(error)) from None
    if profile.device.name != device:
        raise wrong_field("device.name", profile.device.name, f"the path names {device!r}")
    if profile.bundle != bundle.fingerprint:
        raise Problem(
            409,
            "the profile was measured on another bundle: measure this one and send it again",
            errors=[{"field": "bundle", "value": profile.bundle, "message": f"allowed is {bundle.fingerprint}"}],
        )
    for submodel in profile.submodels:
        if submodel not in bundle.submodels:
            raise wrong_field(f"submodels.{submodel}", None, f"is not in the bundle; it holds {len(bundle.submodels)} others")
    return profile


def _conditions(bundle: Bundle, device: str) -> Callable[[str | None], bool]:
    """Whether `If-Match` and `If-None-Match` allow that a profile with a hash is replaced. None: the device has sent none of
    these networks; the bundle's own stands then, as it does for GET, or nothing."""
    match, none_match = ("If-Match" in request.headers), ("If-None-Match" in request.headers)
    named = {plain_etag(etag) for etag in request.if_match.as_set()}  # strong ones
    excluded = {plain_etag(etag) for etag in request.if_none_match.as_set(include_weak=True)}
    own = None
    if (match or none_match) and device in bundle.devices():
        with suppress(BundleError):
            own = sha256_of(canonical(bundle.profile(device)))

    def allow(newest: str | None) -> bool:
        standing = newest or own
        if match and (standing is None or not (request.if_match.star_tag or standing in named)):
            return False
        return not (none_match and standing is not None and (request.if_none_match.star_tag or standing in excluded))

    return allow


def _page() -> tuple[str, int]:
    after = request.args.get("after")
    limit = integer_argument("limit", least=1, most=MAX_PAGE)
    return "" if after is None else checked_name("after", after), limit or PAGE


def _location(stored: Stored) -> str:
    return f"{quote(request.path)}?version={stored.version}"
