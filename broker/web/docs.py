"""The API's documentation: the document for machines and, made from it, a page for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response, current_app, render_template
from markupsafe import Markup, escape

from broker.web import services
from broker.web.api.openapi import document

blueprint = Blueprint("docs", __name__)

_CODE = re.compile(r"`([^`]+)`")
_DEEPEST = 3

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class FieldRow:
    """One field, parameter or header as the page lists it; `name` is the path of a nested one."""

    name: str
    kind: str
    required: bool
    about: str


@dataclass(frozen=True)
class Refusal:
    """A status with the codes it may carry."""

    status: str
    codes: tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """A call as the page tells of it."""

    id: str
    method: str
    path: str
    summary: str
    about: str
    scope: str
    parameters: tuple[FieldRow, ...]
    body: tuple[FieldRow, ...]
    answer: tuple[FieldRow, ...]
    status: str
    headers: tuple[FieldRow, ...]
    refusals: tuple[Refusal, ...]
    curl: str


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """Answer the document of this deployment."""
    return Response(json.dumps(_made(), ensure_ascii=False, indent=2), content_type="application/json")


@blueprint.get("/docs")
def page() -> str:
    """Show the same for people."""
    made = _made()
    groups = [(tag["name"], [each for each in _operations(made) if each[0] == tag["name"]]) for tag in made["tags"]]
    return render_template(
        "docs/index.html", groups=[(name, [each for _, each in found]) for name, found in groups],
        about=prose(made["info"]["description"]), version=made["info"]["version"], server=made["servers"][0]["url"],
    )  # fmt: skip


def prose(text: str) -> Markup:
    """Return a description as HTML: paragraphs, and what stands in backticks as code."""
    paragraphs = [str(escape(part)).replace("\n", " ") for part in text.strip().split("\n\n") if part]
    marked = [_CODE.sub(r"<code>\1</code>", part) for part in paragraphs]
    return Markup("".join(f"<p>{part}</p>" for part in marked))  # noqa: S704 - escaped above


def _made() -> Schema:
    """Return this deployment's document, which stays as it is while the process runs."""
    kept = current_app.extensions
    if "broker.openapi" not in kept:
        kept["broker.openapi"] = document(services().settings)
    made: Schema = kept["broker.openapi"]
    return made


def _operations(made: Schema) -> Iterator[tuple[str, Operation]]:
    schemas = made["components"]["schemas"]
    for path, methods in made["paths"].items():
        for method, told in methods.items():
            yield told["tags"][0], _operation(made["servers"][0]["url"], path, method.upper(), told, schemas)


def _operation(server: str, path: str, method: str, told: Schema, schemas: Schema) -> Operation:
    success = next(status for status in told["responses"] if status.startswith("2"))
    body = told["requestBody"]["content"]["application/json"]["schema"] if "requestBody" in told else None
    answer = told["responses"][success]
    return Operation(
        id=told["operationId"],
        method=method,
        path=path,
        summary=told["summary"],
        about=prose(told["description"].rpartition("Scope:")[0]),
        scope=told["x-scope"],
        parameters=tuple(_parameter(each, schemas) for each in told["parameters"]),
        body=tuple(_fields(body, schemas)) if body else (),
        answer=tuple(_fields(answer["content"]["application/json"]["schema"], schemas)) if "content" in answer else (),
        status=success,
        headers=tuple(
            FieldRow(name, "string", required=False, about=prose(each["description"]))
            for name, each in answer["headers"].items()
        ),
        refusals=tuple(
            Refusal(status, tuple(_CODE.findall(each["description"])))
            for status, each in told["responses"].items()
            if status != success
        ),
        curl=_curl(server, path, method, body, schemas),
    )


def _parameter(told: Schema, schemas: Schema) -> FieldRow:
    place = "" if told["in"] == "query" else f" ({told['in']})"
    kind = _kind(told["schema"], schemas) + place
    return FieldRow(told["name"], kind, required=told["required"], about=prose(told.get("description", "")))


def _fields(schema: Schema, schemas: Schema, prefix: str = "", depth: int = 0) -> Iterator[FieldRow]:
    """Yield the fields of an object, those of objects inside it after it, named by their path."""
    told = _resolved(schema, schemas)
    required = told.get("required", ())
    for name, inner in told.get("properties", {}).items():
        about = prose(inner.get("description", ""))
        yield FieldRow(prefix + name, _kind(inner, schemas), required=name in required, about=about)
        below, mark = _below(inner, schemas)
        if below is not None and depth < _DEEPEST:
            yield from _fields(below, schemas, f"{prefix}{name}{mark}.", depth + 1)


def _below(schema: Schema, schemas: Schema) -> tuple[Schema | None, str]:
    """Return the object that a field holds, alone or in a list; None where it holds none."""
    for option in schema.get("anyOf", [schema]):
        told = _resolved(option, schemas)
        if told.get("type") == "array":
            return _below(told["items"], schemas)[0], "[]"
        if "properties" in told:
            return told, ""
    return None, ""


def _kind(schema: Schema, schemas: Schema) -> str:
    """Return what a field holds in words."""
    kinds = [_one_kind(_resolved(option, schemas), schemas) for option in schema.get("anyOf", [schema])]
    return " or ".join(dict.fromkeys(kinds))


def _one_kind(told: Schema, schemas: Schema) -> str:
    if "enum" in told:
        return "one of " + ", ".join(map(str, told["enum"]))
    if "const" in told:
        return str(told["const"])
    if told.get("type") == "array":
        return f"list of {_kind(told['items'], schemas)}"
    named = {"date-time": "time"}.get(told.get("format", ""), str(told.get("type", "anything")))
    limits = [f"{word} {told[name]}" for name, word in _LIMITS if name in told]
    return f"{named}, {', '.join(limits)}" if limits else named


_LIMITS: Sequence[tuple[str, str]] = (("minimum", "at least"), ("maximum", "at most"), ("maxLength", "up to"))


def _resolved(schema: Schema, schemas: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    found: Schema = schemas[schema["$ref"].rpartition("/")[2]]
    return found


def _curl(server: str, path: str, method: str, body: Schema | None, schemas: Schema) -> str:
    lines = [f"curl {server.rstrip('/')}{path}", '-H "Authorization: Bearer $BROKER_API_KEY"']
    if method != "GET":
        lines[0] = f"curl -X {method} {server.rstrip('/')}{path}"
    if body is not None:
        lines += ['-H "Content-Type: application/json"', f"-d '{json.dumps(_example(body, schemas))}'"]
    return " \\\n  ".join(lines)


def _example(schema: Schema, schemas: Schema) -> object:
    """Return a body with what has to be in it, and what has an example."""
    told = _resolved(schema, schemas)
    if "examples" in told:
        return told["examples"][0]
    required = told.get("required", ())
    return {
        name: _example(inner, schemas)
        for name, inner in told.get("properties", {}).items()
        if name in required or "examples" in inner
    }
