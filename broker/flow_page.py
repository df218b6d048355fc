"""What a flow's page shows, read for the browser that started the flow and for no other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlalchemy.engine import Row

from broker.apps import AppCatalogue, OfferedApp
from broker.clock import Clock
from broker.connections import Connections, ConnectionView
from broker.db import Database, table
from broker.errors import BrokerError, ConsentDenied, ProviderFailed, by_code
from broker.journal import Browser, FlowJournal, spent_apps
from broker.links import still_allowed
from broker.models import ENDED, EndUser, FlowState, Hold, Link
from broker.status import Status

MOST_DETAIL = 300
"""How much of a provider's own words people are shown."""

_links = table(Link)


@dataclass(frozen=True)
class AccountChoice:
    """An account the person may pick."""

    id: str
    name: str
    type: str


@dataclass(frozen=True)
class FlowPage:
    """What a flow's page shows."""

    ref: str
    app: OfferedApp
    state: FlowState
    hold: Hold | None
    # Why it ended without a connection; None for every other flow.
    failure: type[BrokerError] | None
    # What the provider said, shortened; None unless it is the provider that failed.
    failure_detail: str | None
    connection: ConnectionView | None
    # Whether this person had connected the same account before, so that this flow brought it up to date.
    was_connected_before: bool
    # Scopes that were asked for and not given; empty where the provider does not say what it gave.
    missing_scopes: tuple[str, ...]
    # The connection that this flow was started to renew; None for every other flow.
    renews: ConnectionView | None
    # Whether an operator tries an OAuth app out.
    trial: bool
    choices: tuple[AccountChoice, ...]
    # Other OAuth apps of the same link that can still be connected.
    link_apps_left: tuple[OfferedApp, ...]
    can_retry: bool
    # The host's address with status and reference; None when the link has none, or one that is not allowed any more.
    return_url: str | None
    # Whether the person goes there by itself: the link says so, and this page holds nothing they have to read.
    goes_back: bool
    end_user_id: int
    end_user_label: str
    # Which link an end user's session opened from here is limited to; None for a link that opens everything.
    session_link_id: int | None
    updated_at: datetime
    ended_at: datetime | None


class FlowPages:
    """Reads flow pages."""

    def __init__(
        self,
        *,
        journal: FlowJournal,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        connections: Connections,
        return_origins: Collection[str],
    ) -> None:
        self._journal = journal
        self._database = database
        self._clock = clock
        self._apps = apps
        self._connections = connections
        self._return_origins = return_origins

    def page(self, flow_ref: str, browser: Browser | None) -> FlowPage:
        """Return what the flow's page shows. Raises FlowUnknown to a browser that did not start it."""
        flow = self._journal.own(flow_ref, browser)
        with self._database.read() as connection:
            link = connection.execute(sa.select(_links).where(_links.c.id == flow.link_id)).one()
            person = connection.execute(
                sa.select(EndUser.email, EndUser.name, EndUser.external_id).where(EndUser.id == flow.end_user_id)
            ).one()
            spent = spent_apps(connection, link.id)
        usable = link.revoked_at is None and link.expires_at > self._clock.now()
        left = [app for app in self._apps.offered(link.apps) if app.key not in spent] if usable else []
        connected = self._connections.by_id(flow.connection_id) if flow.connection_id else None
        failed = flow.state in ENDED and flow.state != FlowState.DONE
        app = self._apps.get(flow.app_key)
        missing = _missing(app, connected)
        return_url = still_allowed(link.return_url, self._return_origins)
        return FlowPage(
            ref=flow.ref,
            app=app,
            state=FlowState(flow.state),
            hold=Hold(flow.hold) if flow.hold else None,
            failure=by_code(flow.failure) if flow.failure else None,
            failure_detail=(flow.failure_detail or "")[:MOST_DETAIL] if flow.failure == ProviderFailed.code else None,
            connection=connected,
            was_connected_before=connected is not None and connected.created_at < flow.created_at,
            missing_scopes=missing,
            renews=self._connections.by_id(flow.reconnects_id) if flow.reconnects_id else None,
            trial=flow.trial,
            choices=tuple(AccountChoice(**choice) for choice in flow.choices or ()),
            link_apps_left=tuple(app for app in left if app.key != flow.app_key),
            can_retry=failed and any(app.key == flow.app_key for app in left),
            return_url=_return_address(return_url, flow, connected),
            goes_back=link.auto_return and return_url is not None and _is_imported(connected) and not missing,
            end_user_id=flow.end_user_id,
            end_user_label=person.email or person.name or person.external_id,
            session_link_id=None if link.manage else link.id,
            updated_at=flow.updated_at,
            ended_at=flow.ended_at,
        )


def _is_imported(connected: ConnectionView | None) -> bool:
    return connected is not None and connected.status in (Status.OK, Status.UNKNOWN)


def _missing(app: OfferedApp, connected: ConnectionView | None) -> tuple[str, ...]:
    granted = connected.scopes if connected is not None else ()
    return tuple(scope for scope in app.scopes if scope not in granted) if granted else ()


def _return_address(return_url: str | None, flow: Row[Any], connected: ConnectionView | None) -> str | None:
    """Return the host's address with the outcome in words; it carries no more than a status and a reference."""
    if return_url is None:
        return None
    status, ref = (connected.status, connected.ref) if connected else (_outcome(flow), flow.ref)
    return f"{return_url}{'&' if '?' in return_url else '?'}{urlencode({'status': status, 'ref': ref})}"


def _outcome(flow: Row[Any]) -> str:
    """Return a flow's state for its host; that the person said no is told apart from what failed."""
    return "denied" if flow.failure == ConsentDenied.code else str(flow.state)
