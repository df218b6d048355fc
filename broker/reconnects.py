"""A person connects one of their accounts again from their own page: no host has to make a link for that."""

from __future__ import annotations

from broker.connections import ConnectionEnded, ConnectionView
from broker.flows import Flows
from broker.journal import Browser
from broker.links import BY_PERSON, LinkRequest, Links


class Reconnects:
    """Makes a link for one connection and starts it at once."""

    def __init__(self, links: Links, flows: Flows) -> None:
        self._links = links
        self._flows = flows

    def begin(self, connection: ConnectionView, browser: Browser) -> str:
        """Return the provider's address for connecting this account again.

        Raises ConnectionEnded for one that was disconnected: that was meant. Otherwise as `Flows.begin` does.
        """
        if connection.disconnected_at is not None:
            raise ConnectionEnded
        # No link is left behind where nothing could begin.
        self._flows.require_provider(connection.app)
        # Nobody ever sees its address: it is spent by this very browser.
        request = LinkRequest(connection.end_user.id, reconnects=connection.ref)
        link = self._links.create(request, created_by=BY_PERSON)
        return self._flows.begin(link.url.rpartition("/")[2], connection.app, browser)
