"""The OpenAPI 3.1 document, made from the calls and the models that serve them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from broker import __version__
from broker.apikeys import Scope, ScopeMissing, Unauthenticated
from broker.contract import LONGEST_ADDRESS, ProblemAnswer
from broker.db import DatabaseUnavailable
from broker.errors import BrokerError
from broker.idempotency import InProgress, KeyInvalid, KeyReused
from broker.settings import Settings
from broker.web.api import CALLS, PREFIX
from broker.web.api.calls import Call
from broker.web.api.problems import MediaTypeUnsupported, NotAnObject, RequestInvalid
from broker.web.api.repeats import HEADER, REPLAYED

Schema = dict[str, Any]

PLACE = "#/components/schemas/{model}"
FRAMEWORK = {411: "length_required", 413: "too_large", 429: "too_many_requests"}
"""Codes of what is refused before a call is looked at."""
ABOUT = """
The API with which a host sends its users to the broker and follows what they connect.

Every call needs an API key (`broker apikey create`), sent as `Authorization: Bearer brk_…`; each names the scope that
the key must have. Refusals are `application/problem+json` with a stable `code`. Times are ISO 8601 in UTC.

A POST may carry an `Idempotency-Key`: repeated within 24 hours with the same key and body it does nothing again and
gets the same answer. The key of a refused call is free again.
""".strip()


def document(settings: Settings | None = None) -> Schema:
    """Return the document; with settings it names this deployment's address, OAuth apps and return origins."""
    schemas = _schemas(settings)
    paths: dict[str, Schema] = {}
    for call in CALLS:
        paths.setdefault(_address(call), {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {"title": "OAuth broker", "version": __version__, "description": ABOUT},
        "servers": [{"url": settings.public_url if settings else "/"}],
        "security": [{"key": []}],
        "tags": [{"name": group} for group in dict.fromkeys(call.group for call in CALLS)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": f"Scopes: {', '.join(Scope)}."}
            },
        },
    }


def _address(call: Call) -> str:
    return PREFIX + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", call.path)


# --- one operation ------------------------------------------------------------------------------------


def _operation(call: Call) -> Schema:
    told = {
        "operationId": call.view.__name__,
        "tags": [call.group],
        "summary": call.summary,
        "description": f"{call.about}\n\nScope: `{call.scope.value}`.".strip(),
        "x-scope": call.scope.value,
        "parameters": _parameters(call),
        "responses": _responses(call),
    }
    if call.body is not None:
        told["requestBody"] = {"required": call.body_required, "content": _json(call.body)}
    return told


def _parameters(call: Call) -> list[Schema]:
    found: list[Schema] = [
        {"name": name, "in": "path", "required": True, "description": part.meaning, "schema": dict(part.schema)}
        for name, part in call.parts.items()
    ]
    if call.query is not None:
        found += _query(call.query)
    if call.repeatable:
        about = "Makes the call safe to repeat; any text that no other call has, such as a UUID."
        schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"}
        found.append({"name": HEADER, "in": "header", "required": False, "description": about, "schema": schema})
    return found


def _query(model: type[BaseModel]) -> list[Schema]:
    found = []
    for name, schema in _made(model)["properties"].items():
        schema.pop("title", None)
        schema.pop("default", None) if schema.get("default", "") is None else None
        about = schema.pop("description", "")
        # A query holds no null: what is not asked for is left out.
        kinds = [kind for kind in schema.pop("anyOf", [{}]) if kind.get("type") != "null"]
        told = {"name": name, "in": "query", "required": False, "schema": schema | kinds[0]}
        found.append(told | ({"description": about} if about else {}))
    return found


def _made(model: type[BaseModel]) -> Schema:
    return model.model_json_schema(ref_template=PLACE)


def _json(model: type[BaseModel]) -> Schema:
    return {"application/json": {"schema": {"$ref": PLACE.format(model=model.__name__)}}}


def _responses(call: Call) -> dict[str, Schema]:
    done: Schema = {"description": "Done.", "headers": _headers(call)}
    if call.answer is not None:
        done["content"] = _json(call.answer)
    responses = {str(call.status): done}
    for status, codes in sorted(_codes(call).items()):
        listed = ", ".join(f"`{code}`" for code in codes)
        responses[str(status)] = {
            "description": f"Refused: {listed}.",
            "content": {"application/problem+json": {"schema": {"$ref": PLACE.format(model=ProblemAnswer.__name__)}}},
        }
    return responses


def _headers(call: Call) -> dict[str, Schema]:
    told = {}
    if call.located:
        told["Location"] = _header("Where the new thing is.")
    if call.limited:
        told["RateLimit"] = _header("Calls left in this window, and seconds until the next.")
        told["RateLimit-Policy"] = _header("Calls per window, and its seconds.")
    if call.repeatable:
        told[REPLAYED] = _header("`true` when this is the answer of an earlier call.")
    return told


def _header(about: str) -> Schema:
    return {"description": about, "schema": {"type": "string"}}


def _codes(call: Call) -> Mapping[int, Sequence[str]]:
    """Return every code that a call can be refused with, by status."""
    refusals: list[type[BrokerError]] = [Unauthenticated, ScopeMissing, DatabaseUnavailable, *call.refusals]
    found: dict[int, list[str]] = {}
    if call.body is not None:
        refusals += [NotAnObject, MediaTypeUnsupported, RequestInvalid]
        found |= {status: [FRAMEWORK[status]] for status in (411, 413)}
    if call.repeatable:
        refusals += [KeyInvalid, KeyReused, InProgress]
        found |= {status: [FRAMEWORK[status]] for status in (411, 413)}
    if call.limited:
        found[429] = [FRAMEWORK[429]]
    for refusal in dict.fromkeys(refusals):
        found.setdefault(refusal.status, []).append(refusal.code)
    return found


# --- schemas ------------------------------------------------------------------------------------------


class _Plain(GenerateJsonSchema):
    """Schemas without a title for each field: the name says it already."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _schemas(settings: Settings | None) -> dict[str, Schema]:
    bodies = {call.body for call in CALLS if call.body is not None}
    answers = {call.answer for call in CALLS if call.answer is not None} | {ProblemAnswer}
    # Of a query only the words that its fields refer to: the fields themselves are parameters.
    queries = {call.query for call in CALLS if call.query is not None}
    wanted = [(model, "validation") for model in sorted(bodies | queries, key=_name)]
    wanted += [(model, "serialization") for model in sorted(answers, key=_name)]
    _, made = models_json_schema(wanted, ref_template=PLACE, schema_generator=_Plain)  # type: ignore[arg-type]
    schemas: dict[str, Schema] = made["$defs"]
    for query in queries:
        del schemas[query.__name__]
    if settings is not None:
        _localise(schemas["LinkBody"]["properties"], settings)
    return schemas


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _localise(link: dict[str, Schema], settings: Settings) -> None:
    """Say what this deployment takes: its OAuth apps, and addresses of the origins it returns people to."""
    _text(link["apps"])["items"] = {"type": "string", "enum": list(settings.apps)}
    origins = "|".join(re.escape(origin).replace("/", "\\/").replace("\\-", "-") for origin in settings.return_origins)
    if origins:
        _text(link["return_url"])["pattern"] = f"^(?:{origins})(?:\\/[A-Za-z0-9._~-]*)*(?:\\?[A-Za-z0-9._~=&-]*)?$"
        _text(link["return_url"])["maxLength"] = LONGEST_ADDRESS
    else:
        link["return_url"]["anyOf"] = [{"type": "null"}]


def _text(schema: Schema) -> Schema:
    """Return the part of a nullable field that is not null."""
    found: Schema = next(part for part in schema["anyOf"] if part.get("type") != "null")
    return found
