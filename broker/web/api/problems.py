"""Refusals in the form programs read: RFC 9457 answers that say what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flask import Blueprint
from pydantic import ValidationError
from werkzeug.wrappers import Response

from broker.apikeys import ScopeMissing, Unauthenticated
from broker.errors import Refused
from broker.web.errors import problem

_WORDS = {"extra_forbidden": "is not a known field", "missing": "is required"}


class NotAnObject(Refused):
    """The body is not a JSON object."""

    code = "body_not_an_object"
    heading = "The body cannot be read"
    advice = "Send a JSON object."


class MediaTypeUnsupported(Refused):
    """The body is sent as something else than JSON."""

    code = "media_type_unsupported"
    status = 415
    heading = "The body cannot be read"
    advice = "Send JSON, with `Content-Type: application/json`."


class RequestInvalid(Refused):
    """The body or the query does not say what this endpoint takes; `fields` gives the reasons by field."""

    code = "request_invalid"
    status = 422
    heading = "Some fields cannot be accepted"

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self.fields = {name: list(reasons) for name, reasons in fields.items()}
        super().__init__("; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in self.fields.items()))

    @classmethod
    def from_validation(cls, failure: ValidationError) -> RequestInvalid:
        """Return what pydantic found, without any of the values sent."""
        fields: dict[str, list[str]] = {}
        for found in failure.errors(include_url=False, include_context=False, include_input=False):
            name = ".".join(str(part) for part in found["loc"])[:100]
            reason = _WORDS.get(found["type"]) or found["msg"].removeprefix("Value error, ")
            fields.setdefault(name, []).append(reason)
        return cls(fields)


def register(blueprint: Blueprint) -> None:
    """Answer this blueprint's refusals; everything else is answered as everywhere."""
    blueprint.register_error_handler(Refused, refused)


def refused(error: Refused) -> Response:
    """Answer a request that was refused."""
    response = problem(
        error.status,
        error.code,
        error.heading,
        error.detail or error.advice,
        fields=getattr(error, "fields", None),
    )
    challenge = _challenge(error)
    if challenge:
        response.headers["WWW-Authenticate"] = challenge
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        response.headers["Retry-After"] = str(max(1, round(wait)))
    return response


def _challenge(error: Refused) -> str:
    """Return the challenge of RFC 6750 section 3."""
    if isinstance(error, Unauthenticated):
        return 'Bearer realm="broker"'
    if isinstance(error, ScopeMissing):
        return f'Bearer realm="broker", error="insufficient_scope", scope="{error.scope.value}"'
    return ""
