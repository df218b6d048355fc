"""A person who signed in connects an account for themself: no host has to make a link for that."""

from __future__ import annotations

import sqlalchemy as sa

from broker.apps import AppCatalogue
from broker.db import Database, table
from broker.errors import EndUserUnknown
from broker.flows import Flows
from broker.journal import Browser
from broker.links import BY_PERSON, LinkRequest, Links
from broker.models import EndUser, Flow, Link, PendingSignIn
from broker.secret import Secret, random_token

_flows = table(Flow)
_links = table(Link)
_sign_ins = table(PendingSignIn)


class SelfService:
    """Says who the person in front of us is, gives them their browser, and makes a link that is started at once."""

    def __init__(self, database: Database, apps: AppCatalogue, links: Links, flows: Flows) -> None:
        self._database = database
        self._apps = apps
        self._links = links
        self._flows = flows

    def label(self, end_user_id: int) -> str:
        """Return what a person is called on pages: e-mail, else name, else the host's id. Raises EndUserUnknown."""
        with self._database.read() as connection:
            query = sa.select(EndUser.email, EndUser.name, EndUser.external_id).where(EndUser.id == end_user_id)
            row = connection.execute(query).one_or_none()
        if row is None:
            raise EndUserUnknown
        found: str = row.email or row.name or row.external_id
        return found

    def renewed(self, end_user_id: int, browser: Browser | None) -> Browser:
        """Return the browser under a new secret, as which it goes on with what is this person's and nobody else's.

        What others left in it opens no more. Sign-ins under way at the OpenID provider go on, whoever began them.
        """
        fresh = Browser(Secret(random_token(256)))
        if browser is None:
            return fresh
        with self._database.write() as connection:
            mine = sa.select(_links.c.id).where(_links.c.end_user_id == end_user_id)
            for rows, which in (
                (_links, _links.c.end_user_id == end_user_id),
                (_flows, _flows.c.link_id.in_(mine)),
                # Another tab's: whoever is on the way there proves who they are. Nothing tells whose it is before.
                (_sign_ins, sa.true()),
            ):
                renew = sa.update(rows).where(which, rows.c.browser_hash == browser.hash)
                connection.execute(renew.values(browser_hash=fresh.hash))
        return fresh

    def begin(self, end_user_id: int, app_key: str, browser: Browser) -> str:
        """Return the provider's address for connecting an account through this OAuth app.

        Raises AppUnknown, EndUserUnknown or EndUserErased, and otherwise as `Flows.begin` does.
        """
        app = self._apps.get(app_key)
        # No link is left behind where nothing could begin.
        self._flows.require_provider(app.key)
        with self._database.read() as connection:
            query = sa.select(EndUser.external_id).where(EndUser.id == end_user_id)
            external_id = connection.execute(query).scalar_one_or_none()
        if external_id is None:
            raise EndUserUnknown
        # Nobody ever sees its address: it is spent by this very browser.
        link = self._links.create(LinkRequest(external_id, apps=(app.key,)), created_by=BY_PERSON)
        return self._flows.begin(link.url.rpartition("/")[2], app.key, browser)
