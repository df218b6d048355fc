"""Reading what callers send, by the models of the contract."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from flask import request
from pydantic import ValidationError

from broker.contract import ConnectionQuery, Taken
from broker.web.api.problems import MediaTypeUnsupported, NotAnObject, RequestInvalid

_Taken = TypeVar("_Taken", bound=Taken)
_METADATA = "metadata."


def read_body(model: type[_Taken]) -> _Taken:
    """Return the request's body. Raises MediaTypeUnsupported, NotAnObject or RequestInvalid."""
    if request.content_type and not request.is_json:
        raise MediaTypeUnsupported
    try:
        content = json.loads(request.get_data(cache=True), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        # Neither the text nor the position goes on: the body may hold anything.
        raise NotAnObject from None
    if not isinstance(content, dict):
        raise NotAnObject
    return _validated(model, content)


def read_optional_body(model: type[_Taken]) -> _Taken:
    """Return the request's body, or the model as it is without one. Raises as `read_body`."""
    return read_body(model) if request.get_data() else _validated(model, {})


def read_query(model: type[_Taken]) -> _Taken:
    """Return the request's query. Raises RequestInvalid."""
    return _validated(model, _given())


def read_connection_query() -> tuple[ConnectionQuery, dict[str, str]]:
    """Return the query of GET /connections and its `metadata.<key>` members. Raises RequestInvalid."""
    given = _given()
    metadata = {name.removeprefix(_METADATA): given.pop(name) for name in list(given) if name.startswith(_METADATA)}
    return _validated(ConnectionQuery, given), metadata


def _given() -> dict[str, Any]:
    repeated = {name: ["is given more than once"] for name, values in request.args.lists() if len(values) > 1}
    if repeated:
        raise RequestInvalid(repeated)
    return request.args.to_dict()


def _validated(model: type[_Taken], content: dict[str, Any]) -> _Taken:
    try:
        return model.model_validate(content)
    except ValidationError as failure:
        raise RequestInvalid.from_validation(failure) from None


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
