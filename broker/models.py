"""The tables. Every column says what it means; a column without "null when" is never null."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, BigId, Json, UtcDateTime

Ref = sa.String(32)
Digest = sa.String(64)


class FlowState(StrEnum):
    """How far one attempt to connect has come."""

    OPENED = "opened"
    LEFT = "left"
    REDEEMING = "redeeming"
    HELD = "held"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"


ENDED = (FlowState.DONE, FlowState.FAILED, FlowState.EXPIRED, FlowState.INTERRUPTED)
"""The states that a flow never leaves."""


class Hold(StrEnum):
    """What a held flow waits for."""

    INSTALLATION = "installation"
    CHOICE = "choice"
    # A reconnect brought another account: whether that is meant.
    OTHER_ACCOUNT = "other_account"
    CONFIRMATION = "confirmation"


class HopKind(StrEnum):
    """Where a hop sends the person."""

    AUTHORIZE = "authorize"
    INSTALL = "install"


class ImportState(StrEnum):
    """How far a connection's current token has come on its way into Sequin."""

    PENDING = "pending"
    HELD = "held"
    PARKED = "parked"
    IMPORTED = "imported"


class CleanUp(StrEnum):
    """How far a part of a disconnect has come."""

    PENDING = "pending"
    DONE = "done"
    # There is nothing to do: the provider has no way, or others still use the grant.
    NOT_NEEDED = "not_needed"
    # The other side refused for good; the person is told to finish it there.
    REFUSED = "refused"


class JobState(StrEnum):
    """Where a job stands; only `waiting` and `running` jobs have a `due_at`."""

    WAITING = "waiting"
    RUNNING = "running"
    PARKED = "parked"
    DONE = "done"


class SendState(StrEnum):
    """How far one event has come on its way to one webhook endpoint."""

    PENDING = "pending"
    DELIVERED = "delivered"
    # Tried for three days in vain; waits to be sent again by hand.
    PARKED = "parked"


class BulkAction(StrEnum):
    """What can be done to many connections at once."""

    CHECK = "check"
    IMPORT = "import"
    DISCONNECT = "disconnect"


class BulkOutcome(StrEnum):
    """What came of one connection of a bulk run."""

    DONE = "done"
    # There was nothing to do, or it could not be asked for.
    SKIPPED = "skipped"
    FAILED = "failed"


class Role(StrEnum):
    """What an operator may do; each includes the one before."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


class EndUser(Base):
    """A person or account of the host."""

    __tablename__ = "end_users"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    # The host's own id; never shown to anyone but this person, operators and the host.
    external_id: Mapped[str] = mapped_column(sa.String(255), unique=True)
    # As the host last told us; null when it did not. Never used to identify anyone.
    email: Mapped[str | None] = mapped_column(sa.String(320))
    name: Mapped[str | None] = mapped_column(sa.String(200))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null unless the host has asked for this person to be forgotten; the row goes once everything is cleared up.
    erasure_asked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ApiKey(Base):
    """A key with which the host's backend calls the API."""

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    public_id: Mapped[str] = mapped_column(Ref, unique=True)
    name: Mapped[str] = mapped_column(sa.String(100))
    # SHA-256 of the key, which is shown once and kept nowhere.
    key_hash: Mapped[str] = mapped_column(Digest, unique=True)
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null until first used; written at most once a minute.
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Null while the key works.
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Link(Base):
    """A connect link: an address made by the host for one end user."""

    __tablename__ = "links"
    __table_args__ = (
        sa.Index(
            "ix_links_revoked",
            "id",
            sqlite_where=sa.text("revoked_at IS NOT NULL"),
            postgresql_where=sa.text("revoked_at IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    public_id: Mapped[str] = mapped_column(Ref, unique=True)
    # SHA-256 of the token in the address, which is shown once and kept nowhere.
    token_hash: Mapped[str] = mapped_column(Digest, unique=True)
    end_user_id: Mapped[int] = mapped_column(sa.ForeignKey("end_users.id"), index=True)
    # Keys of the OAuth apps offered, in order; null means every configured one.
    apps: Mapped[list[str] | None] = mapped_column(Json)
    # Where "Back" leads, checked against BROKER_RETURN_ORIGINS when the link was made; null for none.
    return_url: Mapped[str | None] = mapped_column(sa.String(2000))
    # Whether the person goes there by itself once an account is connected.
    auto_return: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    # The host's own, sent on to Sequin with the credential.
    host_metadata: Mapped[dict[str, Any]] = mapped_column(Json)
    # The key of the connection that is to be connected again; null for a plain link.
    reconnects_id: Mapped[int | None] = mapped_column(BigId)
    # Whether the host has to confirm who came back before a code is exchanged.
    confirm: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    # Whether an operator tries an OAuth app out with it, so that nothing is connected.
    trial: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    # Whether the link opens the person's whole page rather than what it connected.
    manage: Mapped[bool] = mapped_column(default=False)
    # Who made it: an API key's public id, or "cli".
    created_by: Mapped[str] = mapped_column(sa.String(100))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null until the page was first shown.
    opened_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Null until a flow was first started.
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # SHA-256 of the browser secret the link is bound to; null until a flow was started.
    browser_hash: Mapped[str | None] = mapped_column(Digest)
    # Null while the host has not taken the link back.
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class LinkUse(Base):
    """That a link was spent for one OAuth app. The key makes a second spending impossible."""

    __tablename__ = "link_uses"

    link_id: Mapped[int] = mapped_column(sa.ForeignKey("links.id"), primary_key=True)
    app_key: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    connection_id: Mapped[int] = mapped_column(sa.ForeignKey("connections.id"))
    spent_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Flow(Base):
    """One attempt to connect through one OAuth app."""

    __tablename__ = "flows"
    __table_args__ = (
        sa.Index(
            "ix_flows_open",
            "expires_at",
            sqlite_where=sa.text("ended_at IS NULL"),
            postgresql_where=sa.text("ended_at IS NULL"),
        ),
        sa.Index(
            "ix_flows_account_id",
            "account_id",
            sqlite_where=sa.text("account_id IS NOT NULL"),
            postgresql_where=sa.text("account_id IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    ref: Mapped[str] = mapped_column(Ref, unique=True)
    link_id: Mapped[int] = mapped_column(sa.ForeignKey("links.id"), index=True)
    end_user_id: Mapped[int] = mapped_column(sa.ForeignKey("end_users.id"))
    app_key: Mapped[str] = mapped_column(sa.String(40))
    # SHA-256 of the secret in the cookie of the browser that started it.
    browser_hash: Mapped[str] = mapped_column(Digest)
    # One of FlowState.
    state: Mapped[str] = mapped_column(sa.String(16))
    # One of Hold; null unless the state is held.
    hold: Mapped[str | None] = mapped_column(sa.String(16))
    # A stable error code and a fact for operators; null unless failed or interrupted.
    failure: Mapped[str | None] = mapped_column(sa.String(64))
    failure_detail: Mapped[str | None] = mapped_column(sa.String(500))
    # Whether the host has to confirm who came back, as the link said when the flow started.
    confirm: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    # Whether it ends once it is known which account was reached, as the link said.
    trial: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    # The provider's code, sealed for this row, and until when it is good; null unless held for confirmation.
    code_sealed: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    code_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # What the provider gave, sealed for this row; null before the exchange and once nothing needs it any more: that is
    # when the flow is done, and otherwise when access was ended at the provider or no longer needs to be.
    grant_sealed: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    grant_received_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # What the person picked on the provider's own pages; unverified, only ever used to select among proven accounts.
    # Or one of the words in broker.flows: that they asked an owner there, or want to go there first.
    selector: Mapped[str | None] = mapped_column(sa.String(64))
    # The account the person picked on our page, as it was offered; proven again before use.
    chosen_account_id: Mapped[str | None] = mapped_column(sa.String(255))
    # The accounts the person may choose from; null unless held for a choice.
    choices: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    # Null unless done.
    connection_id: Mapped[int | None] = mapped_column(sa.ForeignKey("connections.id"), index=True)
    # The connection this flow was started to renew; null for one that connects anything.
    reconnects_id: Mapped[int | None] = mapped_column(sa.ForeignKey("connections.id"))
    # The account to which access was being ended at the provider after the flow had ended without a connection;
    # null where that never began, or is done token by token.
    account_id: Mapped[str | None] = mapped_column(sa.String(255))
    account_mode: Mapped[str | None] = mapped_column(sa.String(8))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null until the flow reached one of ENDED.
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Hop(Base):
    """One trip to the provider's pages; comes back at most once."""

    __tablename__ = "hops"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    flow_id: Mapped[int] = mapped_column(sa.ForeignKey("flows.id"), index=True)
    # One of HopKind.
    kind: Mapped[str] = mapped_column(sa.String(16))
    # SHA-256 of the one-use state in the address.
    state_hash: Mapped[str] = mapped_column(Digest, unique=True)
    # The PKCE verifier, sealed for this row's state; null where the provider takes none, and once used.
    verifier_sealed: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null until the person came back with it.
    consumed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class FlowEvent(Base):
    """One thing that happened in a flow; the timeline operators read after a crash."""

    __tablename__ = "flow_events"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    flow_id: Mapped[int] = mapped_column(sa.ForeignKey("flows.id"), index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Such as left, returned, redeemed, held, attached, failed.
    name: Mapped[str] = mapped_column(sa.String(32))
    # How long the other side took; null where nobody was asked.
    duration_ms: Mapped[int | None] = mapped_column()
    # A fact for operators, never a secret; null when the name says it all.
    detail: Mapped[str | None] = mapped_column(sa.String(500))


class Claim(Base):
    """That one provider account belongs to one end user; taken in the transaction that connects it."""

    __tablename__ = "claims"

    app_key: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    account_id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    mode: Mapped[str] = mapped_column(sa.String(8), primary_key=True)
    end_user_id: Mapped[int] = mapped_column(sa.ForeignKey("end_users.id"))


class ConnectedAccount(Base):
    """A connection: an end user's connected provider account."""

    __tablename__ = "connections"
    # How names and e-mails begin, and the status, are found by indexes over expressions, which stand in the migrations
    # alone: each database has its own kind.
    __table_args__ = (
        sa.UniqueConstraint("end_user_id", "app_key", "account_id", "mode"),
        # SQLite keeps no statistics, and would look for an account among all that share its app or its mode otherwise.
        sa.Index("ix_connections_account_id_app_key_mode", "account_id", "app_key", "mode"),
        sa.Index("ix_connections_updated_at_id", "updated_at", "id"),
        sa.Index("ix_connections_connected_at_id", "connected_at", "id"),
        # What lists are narrowed to, each in the order of the list.
        sa.Index("ix_connections_app_key_id", "app_key", "id"),
        sa.Index("ix_connections_provider_id", "provider", "id"),
        sa.Index("ix_connections_kind_id", "kind", "id"),
        sa.Index("ix_connections_mode_id", "mode", "id"),
        sa.Index(
            "ix_connections_passed",
            "checked_at",
            sqlite_where=sa.text("health = 'ok'"),
            postgresql_where=sa.text("health = 'ok'"),
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    # The short reference people quote; the only identity that leaves this program.
    ref: Mapped[str] = mapped_column(Ref, unique=True)
    end_user_id: Mapped[int] = mapped_column(sa.ForeignKey("end_users.id"))
    app_key: Mapped[str] = mapped_column(sa.String(40))
    provider: Mapped[str] = mapped_column(sa.String(40))
    # Sequin's credential kind, such as stripe_oauth2.
    kind: Mapped[str] = mapped_column(sa.String(40))
    # The provider's own stable id, never a name that can be changed; null while an owner has yet to approve.
    account_id: Mapped[str | None] = mapped_column(sa.String(255))
    # The provider's id of the person who asked an owner for approval; null unless approval was asked for.
    requester_id: Mapped[str | None] = mapped_column(sa.String(64))
    # As the provider last gave it; cleaned, at most 200 characters.
    account_name: Mapped[str] = mapped_column(sa.String(200))
    # The provider's word, such as standard or Organization; null when it has none.
    account_type: Mapped[str | None] = mapped_column(sa.String(40))
    # test or live.
    mode: Mapped[str] = mapped_column(sa.String(8))
    # What else the provider's import needs, such as an installation id. Never a secret.
    account_facts: Mapped[dict[str, Any]] = mapped_column(Json)
    # As granted, not as asked.
    scopes: Mapped[list[str]] = mapped_column(Json)
    # The host's own, plus nothing of ours.
    host_metadata: Mapped[dict[str, Any]] = mapped_column(Json)
    # The grant, sealed for this row and token version; null once it was erased.
    grant_sealed: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    # Goes up by one with every new grant, so that an old ciphertext cannot come back.
    token_version: Mapped[int] = mapped_column(default=1)
    # When the access token and the refresh token end by themselves; null when they do not, or nobody said.
    grant_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    refresh_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Since when the outcome of a refresh of the current token version is unknown; null when none is.
    refreshing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # When a refresh was found to have been cut off after the old token was spent; null otherwise.
    interrupted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # One of ImportState, for the current token version.
    import_state: Mapped[str] = mapped_column(sa.String(16))
    # Why the last attempt to import failed: a stable code and a fact for operators; null after a success.
    import_error: Mapped[str | None] = mapped_column(sa.String(64))
    import_error_detail: Mapped[str | None] = mapped_column(sa.String(500))
    # Sequin's id of the credential and of the OAuth app it stands under; null until imported.
    credential_id: Mapped[str | None] = mapped_column(sa.String(64), index=True)
    sequin_oauth_app_id: Mapped[str | None] = mapped_column(sa.String(64))
    # The credential an import has replaced by another; deleted once the new one is verified, null otherwise.
    superseded_credential_id: Mapped[str | None] = mapped_column(sa.String(64))
    # Sequin's 2xx for the current token version was recorded then; null until it was.
    imported_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Digest of the metadata Sequin holds, so that an unchanged one is not sent again; null until imported.
    metadata_digest: Mapped[str | None] = mapped_column(Digest)
    # The token version that `verified_at` speaks of was seen in Sequin then; null until it was.
    verified_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Outcome of the last check, ok or error, its sentence and its time; null until checked.
    health: Mapped[str | None] = mapped_column(sa.String(8))
    health_note: Mapped[str | None] = mapped_column(sa.String(500))
    checked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Since when checks do not pass; null while the last one passed.
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Stable code of what the provider last said is wrong with this account; null when it said nothing is.
    trouble: Mapped[str | None] = mapped_column(sa.String(64))
    # When the provider was last asked about it, or else since when its turn comes round; null until then.
    probed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Null unless the provider says that the grant is gone.
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Null unless ended here.
    disconnected_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # How far ending the grant at the provider and deleting the credential in Sequin have come, each one of
    # CleanUp; null while the connection lives.
    revocation: Mapped[str | None] = mapped_column(sa.String(16))
    removal: Mapped[str | None] = mapped_column(sa.String(16))
    # Stable code of what the last check found different in Sequin; null when it found nothing.
    drift: Mapped[str | None] = mapped_column(sa.String(64))
    # The first of the checks in a row that found something different; null when `drift` is.
    drifted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # The status that the host was told needs attention, until it is told that all is well again; null otherwise.
    attention: Mapped[str | None] = mapped_column(sa.String(20))
    # When the current grant was committed.
    connected_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class MetadataMember(Base):
    """One member of a connection's metadata, by which lists are narrowed; written with `host_metadata`."""

    __tablename__ = "connection_metadata"
    __table_args__ = (sa.Index("ix_connection_metadata_key_value", "key", "value", "connection_id"),)

    connection_id: Mapped[int] = mapped_column(sa.ForeignKey("connections.id"), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    # As text: `true`, `7` and `seven` as JSON shows them, unquoted.
    value: Mapped[str] = mapped_column(sa.String(500))


class BulkRun(Base):
    """One thing that an operator asked to be done to many connections."""

    __tablename__ = "bulk_runs"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    ref: Mapped[str] = mapped_column(Ref, unique=True)
    # One of BulkAction.
    action: Mapped[str] = mapped_column(sa.String(16))
    # The operator's e-mail.
    actor: Mapped[str] = mapped_column(sa.String(320))
    # What the list was narrowed to, without what names a person; empty where connections were picked.
    narrowed: Mapped[dict[str, str]] = mapped_column(Json)
    # How many connections it began with; some may have been forgotten since.
    total: Mapped[int] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # When somebody asked for it to be stopped, and who; null unless they did.
    stopped_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    stopped_by: Mapped[str | None] = mapped_column(sa.String(320))
    # Null while something is still to be done.
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class BulkItem(Base):
    """One connection of a bulk run, and what came of it."""

    __tablename__ = "bulk_items"

    run_id: Mapped[int] = mapped_column(sa.ForeignKey("bulk_runs.id"), primary_key=True)
    connection_id: Mapped[int] = mapped_column(sa.ForeignKey("connections.id"), primary_key=True, index=True)
    # One of BulkOutcome; null until its turn has come.
    outcome: Mapped[str | None] = mapped_column(sa.String(8))
    # Stable code of why it was skipped or failed; null otherwise.
    reason: Mapped[str | None] = mapped_column(sa.String(64))


class Job(Base):
    """Work that commits with the data requiring it; one row for each (kind, subject)."""

    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("kind", "subject_id"),
        sa.Index(
            "ix_jobs_due",
            "due_at",
            sqlite_where=sa.text("due_at IS NOT NULL"),
            postgresql_where=sa.text("due_at IS NOT NULL"),
        ),
        sa.Index(
            "ix_jobs_kind_due",
            "kind",
            "due_at",
            sqlite_where=sa.text("due_at IS NOT NULL"),
            postgresql_where=sa.text("due_at IS NOT NULL"),
        ),
        sa.Index(
            "ix_jobs_failed",
            "state",
            "id",
            sqlite_where=sa.text("error IS NOT NULL"),
            postgresql_where=sa.text("error IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(32))
    # The connection's or flow's key, as the kind says.
    subject_id: Mapped[int] = mapped_column(BigId)
    # One of JobState.
    state: Mapped[str] = mapped_column(sa.String(16))
    # Waiting: not before then. Running: the lease ends then. Null when nobody is to touch it.
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Goes up with every lease; an outcome that names an older one is discarded.
    fence: Mapped[int] = mapped_column(default=0)
    # Goes up whenever the work is asked for again; work asked for while running runs once more.
    generation: Mapped[int] = mapped_column(default=0)
    # Failures in a row, and since when; zero and null after a success.
    failures: Mapped[int] = mapped_column(default=0)
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # The last failure's stable code and a fact for operators; null after a success.
    error: Mapped[str | None] = mapped_column(sa.String(64))
    error_detail: Mapped[str | None] = mapped_column(sa.String(500))
    # When the work was last asked for, or comes again: the place that what has failed takes up again in the line.
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Circuit(Base):
    """Whether calls to one other side are let through: Sequin, or one OAuth app's provider."""

    __tablename__ = "circuits"

    # "sequin" or "app:<key>".
    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    # Failures in a row; zero after a success.
    failures: Mapped[int] = mapped_column(default=0)
    # Since when nothing is sent; null while calls go through.
    opened_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # When the next single call is let through to see; null while closed.
    probe_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # The last failure's stable code and a fact for operators; null after a success.
    error: Mapped[str | None] = mapped_column(sa.String(64))
    error_detail: Mapped[str | None] = mapped_column(sa.String(500))
    # Digest of the secrets that were refused, so that others are tried at once; null unless they were.
    refused_secrets: Mapped[str | None] = mapped_column(Digest)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ProviderEvent(Base):
    """A webhook of a provider, verified and stored, until the worker has acted on it."""

    __tablename__ = "provider_events"
    __table_args__ = (sa.UniqueConstraint("app_key", "delivery_id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    app_key: Mapped[str] = mapped_column(sa.String(40))
    # The provider's own id of this delivery or event; a second one with the same id is a replay.
    delivery_id: Mapped[str] = mapped_column(sa.String(128))
    # As the provider calls it, such as account.application.deauthorized.
    name: Mapped[str] = mapped_column(sa.String(80))
    # What it means here, one of the providers' Notice kinds, and the facts to act on. Never a secret.
    notice: Mapped[str] = mapped_column(sa.String(32))
    facts: Mapped[dict[str, Any]] = mapped_column(Json)
    # When it happened, as the provider says; null where it does not.
    occurred_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    received_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    # Null until the worker has acted on it; then what came of it, in a few words for operators.
    processed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str | None] = mapped_column(sa.String(200))


class Orphan(Base):
    """A credential in Sequin that carries our metadata and that no connection here owns."""

    __tablename__ = "orphans"

    credential_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    kind: Mapped[str | None] = mapped_column(sa.String(40))
    sequin_oauth_app_id: Mapped[str | None] = mapped_column(sa.String(64))
    # The connection reference its metadata names.
    claimed_ref: Mapped[str] = mapped_column(sa.String(64))
    found_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # The last sweep that saw it.
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Event(Base):
    """One thing that happened, as the host is told; written in the transaction of the change, never changed after.

    It names what it speaks of by reference, so that nothing has to be kept for its sake.
    """

    __tablename__ = "events"
    __table_args__ = (
        sa.Index("ix_events_at_id", "at", "id"),
        sa.Index("ix_events_type_at_id", "type", "at", "id"),
        sa.Index("ix_events_connection_ref_at_id", "connection_ref", "at", "id"),
        sa.Index("ix_events_end_user_at_id", "end_user", "at", "id"),
        sa.Index(
            "ix_events_undispatched",
            "id",
            sqlite_where=sa.text("dispatched_at IS NULL"),
            postgresql_where=sa.text("dispatched_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    public_id: Mapped[str] = mapped_column(Ref, unique=True)
    # Such as connection.imported.
    type: Mapped[str] = mapped_column(sa.String(40))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    # The connection or the flow it is about; the other one is null.
    connection_ref: Mapped[str | None] = mapped_column(Ref)
    flow_ref: Mapped[str | None] = mapped_column(Ref)
    # The host's own id of the person.
    end_user: Mapped[str] = mapped_column(sa.String(255))
    # How things stood then, as the host sees them. Never a secret.
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    # Null until it was queued for every webhook endpoint that wants it.
    dispatched_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebhookEndpoint(Base):
    """An address of the host that is told what happens."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    public_id: Mapped[str] = mapped_column(Ref, unique=True)
    url: Mapped[str] = mapped_column(sa.String(2000))
    # The host's own words; may be empty.
    description: Mapped[str] = mapped_column(sa.String(200))
    # The event types it is told of; null means every one.
    types: Mapped[list[str] | None] = mapped_column(Json)
    # Who made it: an API key's public id.
    created_by: Mapped[str] = mapped_column(sa.String(100))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null while it is sent to; what happens meanwhile waits. `disabled_reason` is a stable word.
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    disabled_reason: Mapped[str | None] = mapped_column(sa.String(16))
    # When it last took something, and since when it has not; null before the first time, and while it does.
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebhookSecret(Base):
    """A secret that signs what one endpoint is sent; several while they are exchanged."""

    __tablename__ = "webhook_secrets"
    __table_args__ = (sa.UniqueConstraint("endpoint_id", "number"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    endpoint_id: Mapped[int] = mapped_column(sa.ForeignKey("webhook_endpoints.id"))
    # Counts the endpoint's secrets, so that each ciphertext opens in its own row alone.
    number: Mapped[int] = mapped_column()
    sealed: Mapped[bytes] = mapped_column(sa.LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null for the newest; the others sign until then.
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebhookDelivery(Base):
    """One event on its way to one endpoint. Their keys are the order in which an endpoint is told."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        sa.UniqueConstraint("endpoint_id", "event_id"),
        sa.Index("ix_webhook_deliveries_endpoint_id_state_id", "endpoint_id", "state", "id"),
        sa.Index("ix_webhook_deliveries_event_id", "event_id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    endpoint_id: Mapped[int] = mapped_column(sa.ForeignKey("webhook_endpoints.id"))
    event_id: Mapped[int] = mapped_column(sa.ForeignKey("events.id"))
    # One of SendState.
    state: Mapped[str] = mapped_column(sa.String(16))
    # Since when it waits: when it happened, or when somebody asked for it to be sent again.
    queued_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null until an endpoint took it.
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(default=0)


class WebhookAttempt(Base):
    """One try to send one event to one endpoint."""

    __tablename__ = "webhook_attempts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    delivery_id: Mapped[int] = mapped_column(sa.ForeignKey("webhook_deliveries.id"), index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    duration_ms: Mapped[int] = mapped_column()
    # The HTTP status; null when there was no answer, and `error` then says why.
    status: Mapped[int | None] = mapped_column()
    # Stable code of what went wrong; null after a success.
    error: Mapped[str | None] = mapped_column(sa.String(64))


class IdempotentCall(Base):
    """One call of a host that may be repeated: what was asked, and what was answered."""

    __tablename__ = "idempotent_calls"

    # SHA-256 of the API key's id and the Idempotency-Key.
    key_hash: Mapped[str] = mapped_column(Digest, primary_key=True)
    # SHA-256 of method, path and body.
    request_hash: Mapped[str] = mapped_column(Digest)
    # Names the process at work, so that one which was overtaken does not answer for another.
    claim: Mapped[str] = mapped_column(sa.String(64))
    claimed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # The answer, sealed for this row: it may hold a link's address. Null while it is being worked out.
    answer_sealed: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class AuditRecord(Base):
    """Who did what to what; written in the transaction of the change, never changed afterwards."""

    __tablename__ = "audit"
    __table_args__ = (
        sa.Index("ix_audit_at_id", "at", "id"),
        sa.Index("ix_audit_action_at_id", "action", "at", "id"),
        sa.Index("ix_audit_actor_at_id", "actor", "at", "id"),
        sa.Index("ix_audit_target_at_id", "target", "at", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    # end_user, operator, api_key, provider, worker or cli, and which.
    actor_kind: Mapped[str] = mapped_column(sa.String(16))
    actor: Mapped[str] = mapped_column(sa.String(320))
    action: Mapped[str] = mapped_column(sa.String(64))
    target: Mapped[str] = mapped_column(sa.String(320))
    detail: Mapped[dict[str, Any]] = mapped_column(Json)


class CountedOverview(Base):
    """What was last counted for one period of the console's overview, where counting takes too long for a page."""

    __tablename__ = "counted_overviews"

    # One of overview.Period.
    period: Mapped[str] = mapped_column(sa.String(8), primary_key=True)
    counted_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # An overview.Overview: numbers alone, nothing about anybody.
    found: Mapped[dict[str, Any]] = mapped_column(Json)


class AuditSeal(Base):
    """One link of the chain over the audit trail: what a record said when it was sealed, and all before it."""

    __tablename__ = "audit_seals"

    # The place in the chain, counted from 1 without gaps.
    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    # No foreign key: that a record is gone is for the chain to find, not for the database to prevent or repeat.
    record_id: Mapped[int] = mapped_column(BigId, unique=True)
    # SHA-256 of what the record says.
    content: Mapped[str] = mapped_column(Digest)
    # SHA-256 of the digest before, number, record and content: anybody can compute it.
    digest: Mapped[str] = mapped_column(Digest)
    # HMAC-SHA256 of the digest: only who has the key can.
    mac: Mapped[str] = mapped_column(Digest)
    # Names the key without telling it.
    key_id: Mapped[str] = mapped_column(sa.String(16))
    sealed_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ChainEnds(Base):
    """Where the chain ends, and where it begins since the last purge; one row."""

    __tablename__ = "audit_chain"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    head_number: Mapped[int] = mapped_column(BigId)
    head_record_id: Mapped[int] = mapped_column(BigId)
    head_digest: Mapped[str] = mapped_column(Digest)
    # The last link that was purged; number 0 before the first purge.
    anchor_number: Mapped[int] = mapped_column(BigId)
    anchor_record_id: Mapped[int] = mapped_column(BigId)
    anchor_digest: Mapped[str] = mapped_column(Digest)
    # HMAC-SHA256 of all the above.
    mac: Mapped[str] = mapped_column(Digest)
    key_id: Mapped[str] = mapped_column(sa.String(16))


class BrowserSession(Base):
    """A signed-in browser: an end user's (30 minutes) or an operator's."""

    __tablename__ = "sessions"

    # SHA-256 of the cookie.
    id_hash: Mapped[str] = mapped_column(Digest, primary_key=True)
    # Exactly one of the two is set.
    end_user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("end_users.id"))
    operator_id: Mapped[int | None] = mapped_column(sa.ForeignKey("operators.id"))
    # The link whose connections an end user's session shows; null shows all of that person's.
    link_id: Mapped[int | None] = mapped_column(sa.ForeignKey("links.id"), index=True)
    # Whether the end user signed in at the OpenID provider, instead of coming by a link.
    by_sign_in: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # For the idle limit; written at most once a minute.
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class Operator(Base):
    """Staff who watch connections."""

    __tablename__ = "operators"
    __table_args__ = (sa.Index("uq_operators_issuer_subject", "issuer", "subject", unique=True),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    # Lower case.
    email: Mapped[str] = mapped_column(sa.String(320), unique=True)
    # One of Role.
    role: Mapped[str] = mapped_column(sa.String(16))
    # Argon2id, in its own self-describing form; of a text that nobody knows for who signs in by OpenID Connect alone.
    password_hash: Mapped[str] = mapped_column(sa.String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Null while the operator may sign in.
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Who this is at the OpenID provider; null for who has signed in by password only.
    issuer: Mapped[str | None] = mapped_column(sa.String(500))
    subject: Mapped[str | None] = mapped_column(sa.String(255))


class PendingSignIn(Base):
    """Somebody who has left for an OpenID provider and is not back yet; coming back takes the row away."""

    __tablename__ = "sign_ins"

    # SHA-256 of the state.
    state_hash: Mapped[str] = mapped_column(Digest, primary_key=True)
    # Whose sign-in it is: people or operators.
    door: Mapped[str] = mapped_column(sa.String(16))
    # SHA-256 of the secret of the browser that left.
    browser_hash: Mapped[str] = mapped_column(Digest, index=True)
    # PKCE verifier, nonce and the page that was wanted, sealed for this row.
    sealed: Mapped[bytes] = mapped_column(sa.LargeBinary)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class SignInThrottle(Base):
    """Failed sign-ins of one address or account, shared by every process."""

    __tablename__ = "sign_in_throttles"

    # SHA-256 of "email:…" or "address:…".
    key_hash: Mapped[str] = mapped_column(Digest, primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)
    # When the count started; it starts again after the window.
    since: Mapped[datetime] = mapped_column(UtcDateTime)


class KeyCanary(Base):
    """A known sentence sealed with each key that has sealed anything: shows at start whether the ring opens it."""

    __tablename__ = "key_canaries"

    kid: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(sa.LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
