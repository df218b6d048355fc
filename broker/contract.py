"""The host API in types: what each call takes and gives, written down once.

The API reads and answers with these models, OpenAPI and the docs page are made from them, and so is `broker.client`.
A field that is not written down here is refused in a request, never ignored.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator
from pydantic.config import JsonDict

from broker.text import ONE_LINE, ONE_LINE_WITH_AT, VISIBLE_LINE

LONGEST_ID, LONGEST_EMAIL, LONGEST_NAME, LONGEST_ADDRESS = 255, 320, 200, 2_000
LONGEST_LINK_LIFE = 7 * 86_400
MOST_METADATA, LONGEST_KEY, LONGEST_VALUE, LARGEST_NUMBER = 20, 64, 500, 2**53
RESERVED_METADATA = frozenset({"broker_connection_id", "end_user_id"})
MOST_ON_A_PAGE = 100
MOST_APPS = 100

REF = "^[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}$"
"""The form of a reference, such as `7F3K-92QD-M4TX`."""
LINK_ID = "^lnk_[0-9a-hjkmnp-tv-z]{16}$"


class Status(StrEnum):
    """The one word for how a connection is doing, in the order in which it is worked out."""

    DISCONNECTED = "disconnected"
    REVOKED = "revoked"
    INTERRUPTED = "interrupted"
    ERROR = "error"
    IMPORT_FAILED = "import_failed"
    AWAITING_APPROVAL = "awaiting_approval"
    PENDING = "pending"
    UNKNOWN = "unknown"
    OK = "ok"


class LinkState(StrEnum):
    """How far a link has come, as hosts see it."""

    UNOPENED = "unopened"
    OPENED = "opened"
    STARTED = "started"
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


def iso(value: datetime) -> str:
    """Return a time as the API writes it: `2026-11-20T10:00:00Z`."""
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


Time = Annotated[datetime, PlainSerializer(iso), WithJsonSchema({"type": "string", "format": "date-time"})]
"""A point in time as ISO 8601 UTC with Z."""


def whole(value: object) -> object:
    """Return `60.0` as the whole number it is in JSON, anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Ref = Annotated[str, Field(pattern=REF, examples=["7F3K-92QD-M4TX"])]
ExternalId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID, pattern=VISIBLE_LINE, examples=["user-42"])]

_METADATA_SCHEMA: JsonDict = {
    "type": "object",
    "maxProperties": MOST_METADATA,
    "propertyNames": {"minLength": 1, "maxLength": LONGEST_KEY, "pattern": ONE_LINE, "not": {"enum": [
        *sorted(RESERVED_METADATA)
    ]}},
    "additionalProperties": {
        "anyOf": [
            {"type": "string", "maxLength": LONGEST_VALUE, "pattern": "^[^\\x00]*$"},
            {"type": "number", "minimum": -LARGEST_NUMBER, "maximum": LARGEST_NUMBER},
            {"type": "boolean"},
            {"type": "null"},
        ]
    },
    "examples": [{"plan": "pro"}],
}  # fmt: skip


class Taken(BaseModel):
    """Base of what callers send: exact types, no unknown fields, and no value repeated in an error."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, regex_engine="python-re"
    )


class Given(BaseModel):
    """Base of what the API answers. Readers ignore what a newer version adds."""

    model_config = ConfigDict(frozen=True)


# --- connect links ------------------------------------------------------------------------------------


class EndUserBody(Taken):
    """The person a link is for. What is left out stays as it was told before."""

    id: Annotated[ExternalId, Field(description="Your own id of the person.")]
    email: Annotated[
        str | None,
        Field(
            max_length=LONGEST_EMAIL,
            pattern=ONE_LINE_WITH_AT,
            description="Shown to the person, so that they see whose account it is.",
            examples=["ada@example.com"],
        ),
    ] = None
    name: Annotated[str | None, Field(min_length=1, max_length=LONGEST_NAME, pattern=VISIBLE_LINE)] = None


def _exclusive(schema: JsonDict) -> None:
    """Say in the schema what the validator below says: a manage link starts no flow."""
    manage: JsonDict = {"const": True}
    schema["not"] = {
        "required": ["manage"],
        "properties": {"manage": manage},
        "anyOf": [
            {"required": ["confirm"], "properties": {"confirm": {"const": True}}},
            {"required": ["connection"], "properties": {"connection": {"type": "string"}}},
        ],
    }


class LinkBody(Taken):
    """What a connect link is asked for."""

    model_config = ConfigDict(json_schema_extra=_exclusive)

    end_user: EndUserBody
    apps: Annotated[
        list[str] | None,
        Field(min_length=1, max_length=MOST_APPS, description="Keys of the OAuth apps to offer; all when left out."),
    ] = None
    return_url: Annotated[
        str | None,
        Field(
            max_length=LONGEST_ADDRESS,
            description="Where “Back” leads, with `status` and `ref` added; its origin is in BROKER_RETURN_ORIGINS.",
        ),
    ] = None
    auto_return: Annotated[
        bool,
        Field(description="Go there at once when an account is connected; without a `return_url` it changes nothing."),
    ] = False
    metadata: Annotated[
        dict[str, Any] | None,
        Field(description="Your own facts; kept with the connection and sent on to Sequin with the credential."),
        WithJsonSchema({"anyOf": [_METADATA_SCHEMA, {"type": "null"}]}),
    ] = None
    expires_in: Annotated[
        Annotated[int, Field(ge=1, le=LONGEST_LINK_LIFE)] | None,
        BeforeValidator(whole),
        Field(description="Seconds; 30 minutes when left out."),
    ] = None
    connection: Annotated[
        Ref | None,
        Field(description="Makes it a reconnect link: for this connection of this end user and no other account."),
    ] = None
    confirm: Annotated[
        bool,
        Field(description="Hold what the provider answers until `POST /flows/<ref>/confirm` says who came back."),
    ] = False
    manage: Annotated[
        bool, Field(description="Open the person’s page of everything they have connected; starts nothing.")
    ] = False

    @model_validator(mode="after")
    def _manage_starts_nothing(self) -> LinkBody:
        if self.manage and (self.confirm or self.connection is not None):
            raise ValueError("manage cannot be combined with confirm or connection: a manage link starts no flow")
        return self


class CreatedLinkAnswer(Given):
    """A new link; the address is never shown again."""

    id: Annotated[str, Field(pattern=LINK_ID)]
    url: str
    expires_at: Time


class SavedConnectionAnswer(Given):
    """What a link has connected."""

    app: str
    ref: Ref


class EndUserIdAnswer(Given):
    """The person a link or a flow is for."""

    id: str


class LinkAnswer(Given):
    """A link and how far it has come."""

    id: Annotated[str, Field(pattern=LINK_ID)]
    state: LinkState
    end_user: EndUserIdAnswer
    apps: Annotated[list[str] | None, Field(description="Null when it offers every OAuth app.")]
    return_url: str | None
    auto_return: bool
    connection: Annotated[Ref | None, Field(description="The connection a reconnect link is for.")]
    confirm: bool
    manage: bool
    connections: list[SavedConnectionAnswer]
    created_at: Time
    expires_at: Time


# --- flows --------------------------------------------------------------------------------------------


class ConfirmBody(Taken):
    """Who, by your own sign-in, has come back from the provider."""

    end_user_id: ExternalId


class FlowAnswer(Given):
    """One attempt to connect and how far it has come."""

    ref: Ref
    state: Literal["opened", "left", "redeeming", "held", "done", "failed", "expired", "interrupted"]
    hold: Annotated[
        str | None, Field(description="What a held flow waits for: installation, choice, approval, confirmation.")
    ]
    failure: Annotated[str | None, Field(description="Stable code of why it ended without a connection.")]
    app: str
    end_user: EndUserIdAnswer
    connection: Annotated[Ref | None, Field(description="What it has connected, once done.")]
    updated_at: Time


# --- OAuth apps ---------------------------------------------------------------------------------------


class AppAnswer(Given):
    """An OAuth app that is offered, without its secrets."""

    key: str
    provider: str
    title: str
    kind: Annotated[str, Field(description="Sequin’s credential kind.")]
    scopes: list[str]
    why: str
    unavailable_since: Annotated[
        Time | None, Field(description="Since when nobody is sent to the provider; null while it answers.")
    ]
    next_try_at: Time | None


class AppsAnswer(Given):
    """The OAuth apps that links can offer."""

    data: list[AppAnswer]


# --- connections --------------------------------------------------------------------------------------


class ConnectionQuery(Taken):
    """The query of GET /connections, besides `metadata.<key>`."""

    model_config = ConfigDict(strict=False)

    end_user: Annotated[str | None, Field(description="Your own id of the person.")] = None
    provider: str | None = None
    app: str | None = None
    kind: str | None = None
    status: Status | None = None
    account: Annotated[str | None, Field(description="The provider’s id of the account.")] = None
    mode: Literal["test", "live"] | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_ON_A_PAGE)] = 50
    cursor: Annotated[str | None, Field(description="`next_cursor` of the page before.")] = None


class EndUserAnswer(Given):
    """The person a connection belongs to."""

    id: str
    email: str | None
    name: str | None


class AccountAnswer(Given):
    """The connected account."""

    id: str
    name: str
    type: str | None
    mode: Literal["test", "live"]


class HealthAnswer(Given):
    """The outcome of the last check."""

    status: Literal["ok", "error", "unknown"]
    notes: list[str]
    checked_at: Time | None


class SequinAnswer(Given):
    """Where the connection is in Sequin; null until known."""

    credential_id: str | None
    oauth_app_id: str | None
    imported_at: Time | None
    verified_at: Time | None


class StepAnswer(Given):
    """One step on the way into Sequin; `at` is when it was taken, or since when it fails, and null until then."""

    name: str
    state: str
    at: Time | None


class ConnectionAnswer(Given):
    """A connection."""

    ref: Ref
    end_user: EndUserAnswer
    provider: str
    app: str
    kind: str
    account: Annotated[AccountAnswer | None, Field(description="Null while an owner’s approval is awaited.")]
    scopes: Annotated[list[str], Field(description="As granted, not as asked.")]
    status: Status
    note: Annotated[str, Field(description="One sentence for the person whose account it is.")]
    health: HealthAnswer
    sequin: SequinAnswer
    steps: Annotated[list[StepAnswer], Field(description="In their order; empty once the connection has ended.")]
    metadata: dict[str, Any]
    created_at: Time
    updated_at: Time


class ConnectionsAnswer(Given):
    """A page of connections, newest first."""

    data: list[ConnectionAnswer]
    next_cursor: Annotated[str | None, Field(description="Ask with it as `cursor` for what follows; null at the end.")]


class AcceptedAnswer(Given):
    """What was asked for will be done; the connection shows when it was."""

    ref: Ref


# --- end users ----------------------------------------------------------------------------------------


class ErasureAnswer(Given):
    """A person who is being forgotten."""

    id: str
    state: Literal["erasing"]
    connections_left: Annotated[int, Field(description="Connections whose clean-up is not over yet.")]
    remains: Annotated[list[str], Field(description="What is still there afterwards, in sentences.")]


# --- refusals -----------------------------------------------------------------------------------------


class ProblemAnswer(Given):
    """Why a call was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(description="Stable; what programs go by.")]
    error_ref: Annotated[str, Field(description="The reference of this answer, in the log too.")]
    errors: Annotated[
        dict[str, list[str]] | None, Field(description="Reasons by field, where fields are at fault.")
    ] = None
