"""What a call of the API is: its route, who may make it, and everything that its documentation is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from flask.typing import RouteCallable
from pydantic import BaseModel

from broker.apikeys import Scope
from broker.contract import LINK_ID, REF
from broker.errors import BrokerError

Method = Literal["GET", "POST", "PATCH", "DELETE"]


@dataclass(frozen=True)
class PathPart:
    """A variable part of an address."""

    # What the value is, as JSON Schema.
    schema: Mapping[str, object]
    meaning: str


LINK = PathPart({"type": "string", "pattern": LINK_ID}, "The link’s id.")
CONNECTION = PathPart({"type": "string", "pattern": REF}, "The connection’s reference.")
FLOW = PathPart({"type": "string", "pattern": REF}, "The flow’s reference, as the return address carries it.")
ENDPOINT = PathPart({"type": "string"}, "The endpoint’s id.")
EVENT = PathPart({"type": "string"}, "The event’s id.")
END_USER = PathPart({"type": "string", "minLength": 1, "maxLength": 255}, "Your own id of the person.")


@dataclass(frozen=True)
class Call:
    """One call. The blueprint routes it and checks its scope; OpenAPI and the docs page tell of it."""

    method: Method
    # Below /api/v1, in Flask's notation.
    path: str
    view: RouteCallable
    scope: Scope
    # A sentence without a full stop, then whatever else there is to know.
    summary: str
    status: int
    # None for an answer without a body.
    answer: type[BaseModel] | None
    about: str = ""
    # Under which heading it stands.
    group: str = ""
    parts: Mapping[str, PathPart] = field(default_factory=lambda: MappingProxyType({}))
    body: type[BaseModel] | None = None
    body_required: bool = True
    query: type[BaseModel] | None = None
    # What it may be refused with, besides what every call may be refused with.
    refusals: tuple[type[BrokerError], ...] = ()
    # Whether it is counted, so that it may be answered with 429.
    limited: bool = False
    # Whether the answer says where the new thing is.
    located: bool = False

    @property
    def endpoint(self) -> str:
        """What the framework calls it."""
        return f"api.{self.view.__name__}"

    @property
    def repeatable(self) -> bool:
        """Whether it takes an Idempotency-Key: every call that could do something twice."""
        return self.method == "POST"
