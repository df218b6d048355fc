"""What the API takes and gives. A field that is not written down here is refused, never ignored."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from flask import request
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, field_validator

from broker.connections import MOST_ON_A_PAGE, ConnectionView
from broker.links import CreatedLink, LinkRequest, LinkView
from broker.status import Status
from broker.web.api.problems import NotAnObject, RequestInvalid
from broker.web.pages import iso

Time = Annotated[datetime, PlainSerializer(iso)]
"""A point in time as ISO 8601 UTC with Z."""

_Taken = TypeVar("_Taken", bound="Taken")
_METADATA = "metadata."


class Taken(BaseModel):
    """Base of what callers send: exact types, no unknown fields, and no value repeated in an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class EndUserBody(Taken):
    """The person a link is for."""

    id: str
    email: str | None = None
    name: str | None = None


class LinkBody(Taken):
    """The body of POST /connect-links."""

    end_user: EndUserBody
    apps: list[str] | None = None
    return_url: str | None = None
    metadata: dict[str, Any] | None = None
    expires_in: int | None = None
    connection: str | None = None
    confirm: bool = False
    manage: bool = False

    @field_validator("connection")
    @classmethod
    def _no_reconnect_yet(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("reconnect links are not available yet: make a plain link for the same end user")
        return value

    @field_validator("confirm")
    @classmethod
    def _no_confirmation_yet(cls, value: bool) -> bool:
        if value:
            raise ValueError("confirmation by the host is not available yet: leave the field out")
        return value

    def request(self) -> LinkRequest:
        """Return what the use case takes."""
        return LinkRequest(
            end_user_id=self.end_user.id,
            email=self.end_user.email,
            name=self.end_user.name,
            apps=None if self.apps is None else tuple(self.apps),
            return_url=self.return_url,
            metadata=self.metadata or {},
            expires_in=self.expires_in,
            manage=self.manage,
        )


class ConnectionQuery(Taken):
    """The query of GET /connections, besides `metadata.<key>`."""

    model_config = ConfigDict(strict=False)

    end_user: str | None = None
    provider: str | None = None
    app: str | None = None
    kind: str | None = None
    status: Status | None = None
    account: str | None = None
    mode: Literal["test", "live"] | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_ON_A_PAGE)] = 50
    cursor: str | None = None


def read_body(model: type[_Taken]) -> _Taken:
    """Return the request's body. Raises NotAnObject or RequestInvalid."""
    try:
        content = json.loads(request.get_data(cache=False), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        # Neither the text nor the position goes on: the body may hold anything.
        raise NotAnObject from None
    if not isinstance(content, dict):
        raise NotAnObject
    return _validated(model, content)


def read_optional_body(model: type[_Taken]) -> _Taken:
    """Return the request's body, or the model as it is without one. Raises NotAnObject or RequestInvalid."""
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


# --- answers ----------------------------------------------------------------------------------------


class CreatedLinkAnswer(BaseModel):
    """A new link; the address is never shown again."""

    id: str
    url: str
    expires_at: Time

    @classmethod
    def of(cls, link: CreatedLink) -> CreatedLinkAnswer:
        """Return the answer for a link just made."""
        return cls(id=link.id, url=link.url, expires_at=link.expires_at)


class SavedConnectionAnswer(BaseModel):
    """What a link has connected."""

    app: str
    ref: str


class EndUserIdAnswer(BaseModel):
    """The person a link is for."""

    id: str


class LinkAnswer(BaseModel):
    """A link and how far it has come."""

    id: str
    state: str
    end_user: EndUserIdAnswer
    apps: list[str] | None
    return_url: str | None
    manage: bool
    connections: list[SavedConnectionAnswer]
    created_at: Time
    expires_at: Time

    @classmethod
    def of(cls, link: LinkView) -> LinkAnswer:
        """Return the answer for a link."""
        return cls(
            id=link.id,
            state=link.state.value,
            end_user=EndUserIdAnswer(id=link.end_user_id),
            apps=None if link.apps is None else list(link.apps),
            return_url=link.return_url,
            manage=link.manage,
            connections=[SavedConnectionAnswer(app=saved.app, ref=saved.ref) for saved in link.connections],
            created_at=link.created_at,
            expires_at=link.expires_at,
        )


class AppAnswer(BaseModel):
    """An OAuth app that is offered, without its secrets."""

    key: str
    provider: str
    title: str
    kind: str
    scopes: list[str]
    why: str
    # Since when nobody is sent to the provider, and when the next one is; null while it answers.
    unavailable_since: Time | None
    next_try_at: Time | None


class EndUserAnswer(BaseModel):
    """The person a connection belongs to."""

    id: str
    email: str | None
    name: str | None


class AccountAnswer(BaseModel):
    """The connected account."""

    id: str
    name: str
    type: str | None
    mode: str


class HealthAnswer(BaseModel):
    """The outcome of the last check: ok, error or unknown."""

    status: str
    notes: list[str]
    checked_at: Time | None


class SequinAnswer(BaseModel):
    """Where the connection is in Sequin; null until known."""

    credential_id: str | None
    oauth_app_id: str | None
    imported_at: Time | None
    verified_at: Time | None


class StepAnswer(BaseModel):
    """One step on the way into Sequin; `at` is when it was taken, or since when it fails, and null until then."""

    name: str
    state: str
    at: Time | None


class ConnectionAnswer(BaseModel):
    """A connection."""

    ref: str
    end_user: EndUserAnswer
    provider: str
    app: str
    kind: str
    account: AccountAnswer | None
    scopes: list[str]
    status: str
    note: str
    health: HealthAnswer
    sequin: SequinAnswer
    # In their order; empty once the connection has ended.
    steps: list[StepAnswer]
    metadata: dict[str, Any]
    created_at: Time
    updated_at: Time

    @classmethod
    def of(cls, view: ConnectionView) -> ConnectionAnswer:
        """Return the answer for a connection."""
        person, account, hand_off = view.end_user, view.account, view.hand_off
        return cls(
            ref=view.ref,
            end_user=EndUserAnswer(id=person.id, email=person.email, name=person.name),
            provider=view.provider,
            app=view.app,
            kind=view.kind,
            account=AccountAnswer(id=account.id, name=account.name, type=account.type, mode=account.mode)
            if account
            else None,
            scopes=list(view.scopes),
            status=view.status.value,
            note=view.note,
            health=HealthAnswer(
                status=view.health.status, notes=list(view.health.notes), checked_at=view.health.checked_at
            ),
            sequin=SequinAnswer(
                credential_id=hand_off.credential_id,
                oauth_app_id=hand_off.oauth_app_id,
                imported_at=hand_off.imported_at,
                verified_at=hand_off.verified_at,
            ),
            steps=[StepAnswer(name=step.name.value, state=step.state.value, at=step.at) for step in view.steps],
            metadata=dict(view.metadata),
            created_at=view.created_at,
            updated_at=view.updated_at,
        )


class ConnectionsAnswer(BaseModel):
    """A page of connections, newest first."""

    data: list[ConnectionAnswer]
    next_cursor: str | None
