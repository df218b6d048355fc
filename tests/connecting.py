"""A bench for the connect path: every collaborator on a real database, canned providers, and a clock of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import responses
import sqlalchemy as sa
from joserfc.jwk import RSAKey
from sqlalchemy.engine import Connection, Row

from broker.app import build_services
from broker.apps import AppCatalogue
from broker.callback import CallbackAnswer, SetupAnswer
from broker.clock import ManualClock
from broker.db import Base, Database
from broker.delivery import Deliveries
from broker.flows import Flows, Onward
from broker.jobs import Jobs, LeasedJob
from broker.journal import Browser, FlowJournal
from broker.links import LinkRequest
from broker.models import AuditRecord, Claim, ConnectedAccount, Flow, Hop, Job, LinkUse
from broker.providers.base import Provider
from broker.providers.github import GitHubOptions
from broker.providers.github_oauth import GitHubOAuthOptions
from broker.secret import Secret
from broker.services import Services
from broker.settings import OAuthApp
from broker.vault import Vault
from broker.worker import Worker
from tests.house import House, open_house, stripe_app

STRIPE_TOKEN = "https://connect.stripe.com/oauth/token"
STRIPE_ACCOUNT = "https://api.stripe.com/v1/account"
STRIPE_DEAUTHORIZE = "https://connect.stripe.com/oauth/deauthorize"
GITHUB_TOKEN = "https://github.com/login/oauth/access_token"
GITHUB_API = "https://api.github.com"
GITHUB_END_TOKEN = f"{GITHUB_API}/applications/Iv1.acme/token"
SEQUIN = "http://localhost:8100/sequin"
SEQUIN_STRIPE_APP = "0b7b7d0e-0000-4000-8000-000000000001"
SEQUIN_GITHUB_APP = "0b7b7d0e-0000-4000-8000-000000000002"
CREDENTIAL = "5d0c8f52-0000-4000-8000-000000000001"
APP_ID = 4711
ACCESS = "SENTINEL-ACCESS"
REFRESH = "SENTINEL-REFRESH"
CODE = "SENTINEL-CODE"
PERSON = 7
"""The GitHub user behind the grants of these tests."""

Body = Callable[[requests.PreparedRequest], tuple[int, dict[str, str], str]]


@cache
def github_key() -> RSAKey:
    """Return the key pair of the GitHub App in these tests."""
    return RSAKey.generate_key(2048)


def github_app(**options: Any) -> OAuthApp:
    """Return a configured GitHub App."""
    pem = github_key().as_pem(private=True).decode()
    registered: dict[str, Any] = {"app_slug": "acme-broker", "app_id": APP_ID, "private_key": Secret(pem)}
    return OAuthApp(
        key="github",
        provider="github",
        client_id="Iv1.acme",
        client_secrets=(Secret("github_never_to_be_seen"),),
        scopes=(),
        sequin_oauth_app_id=None,
        webhook_secrets=(Secret("github_hook_never_to_be_seen"),),
        why="",
        options=GitHubOptions(**(registered | options)),
    )


def github_oauth_app(**options: Any) -> OAuthApp:
    """Return a configured GitHub OAuth App."""
    return OAuthApp(
        key="github_oauth",
        provider="github_oauth",
        client_id="Ov23.acme",
        client_secrets=(Secret("github_oauth_never_to_be_seen"),),
        scopes=(),
        sequin_oauth_app_id=None,
        webhook_secrets=(),
        why="",
        options=GitHubOAuthOptions(**options),
    )


def installation(number: int, owner: int, login: str, **changes: Any) -> dict[str, Any]:
    """Return an installation as GitHub shows it, of an organisation unless told otherwise."""
    account = {"id": owner, "login": login, "type": "Organization"} | changes.pop("account", {})
    return {"id": number, "app_id": APP_ID, "account": account, "suspended_at": None} | changes


def person_installation(number: int = 9, owner: int = PERSON) -> dict[str, Any]:
    """Return an installation on a personal account."""
    return installation(number, owner, f"user-{owner}", account={"type": "User"})


class ManualDatabase(Database):
    """Judges leases by the manual clock, on PostgreSQL too: no test waits for a lease to run out."""

    def now(self, connection: Connection) -> datetime:
        return self._clock.now()


@dataclass
class Dice:
    """Jitter that falls as told."""

    value: float = 1.0

    def __call__(self) -> float:
        return self.value


@dataclass
class Bench:
    """Everything between a connect link and Sequin, with the network canned."""

    house: House
    network: responses.RequestsMock
    services: Services
    vault: Vault
    worker: Worker
    browser: Browser = field(default_factory=lambda: Browser(Secret("this-browser")))

    @property
    def database(self) -> Database:
        """The database."""
        return self.house.database

    @property
    def clock(self) -> ManualClock:
        """The clock."""
        return self.house.clock

    @property
    def apps(self) -> AppCatalogue:
        """The OAuth apps."""
        return self.house.apps

    @property
    def jobs(self) -> Jobs:
        """The job table."""
        return self.services.jobs

    @property
    def journal(self) -> FlowJournal:
        """The durable steps of flows."""
        return self.services.journal

    @property
    def flows(self) -> Flows:
        """The connect flow."""
        return self.services.flows

    @property
    def deliveries(self) -> Deliveries:
        """Imports into Sequin."""
        return self.services.deliveries

    # --- a person's way ------------------------------------------------------------------------------

    def link(self, end_user: str = "user-1", **asked: Any) -> str:
        """Make a connect link and return its token."""
        made = self.house.links.create(LinkRequest(end_user, **asked), created_by="cli")
        return made.url.rpartition("/")[2]

    def leave(self, app: str = "stripe", *, link: str | None = None, browser: Browser | None = None) -> Secret:
        """Leave for the provider and return the state that the address carries."""
        return state_in(self.flows.begin(link or self.link(), app, browser or self.browser))

    def come_back(self, state: Secret, app: str = "stripe", browser: Browser | None = None, **answer: Any) -> Onward:
        """Come back from the provider with a code, unless the answer says something else."""
        return self.flows.complete(app, an_answer(state, **answer), browser or self.browser)

    def connect(self, app: str = "stripe", *, end_user: str = "user-1", **asked: Any) -> Onward:
        """Go the whole way: link, start, callback."""
        return self.come_back(self.leave(app, link=self.link(end_user, **asked)), app)

    def from_installation(self, address: str | None, number: int | None, action: str = "install") -> Onward | None:
        """Come back from GitHub's installation page."""
        assert address is not None
        text = None if number is None else str(number)
        return self.flows.installed("github", SetupAnswer(state_in(address), text, action), self.browser)

    # --- the canned network ----------------------------------------------------------------------------

    def stripe(self, account: str = "acct_1", *, token: str = ACCESS, **changes: Any) -> None:
        """Let Stripe give a grant of this account."""
        answer = {
            "access_token": token, "refresh_token": REFRESH, "token_type": "bearer", "scope": "read_write",
            "stripe_user_id": account, "livemode": True,
        }  # fmt: skip
        self.network.upsert("POST", STRIPE_TOKEN, json=answer | changes)
        shown = {"id": account, "type": "standard", "email": f"{account}@example.com"}
        self.network.upsert("GET", STRIPE_ACCOUNT, json=shown)
        self.network.upsert("POST", STRIPE_DEAUTHORIZE, json={"stripe_user_id": account})

    def github(self, *installations: Mapping[str, Any], admin_of: Sequence[int] = ()) -> None:
        """Let GitHub give a grant of a person who reaches these installations."""
        tokens = {"access_token": ACCESS, "token_type": "bearer", "scope": "", "refresh_token": REFRESH}
        self.network.upsert("POST", GITHUB_TOKEN, json=tokens)
        self.network.upsert("DELETE", GITHUB_END_TOKEN, status=204)
        self.network.upsert("GET", f"{GITHUB_API}/user", json={"id": PERSON, "login": f"user-{PERSON}"})
        listed = {"total_count": len(installations), "installations": list(installations)}
        self.network.upsert("GET", f"{GITHUB_API}/user/installations", json=listed)
        for each in installations:
            owner = each["account"]
            membership = {
                "state": "active", "role": "admin" if owner["id"] in admin_of else "member",
                "organization": {"id": owner["id"]},
            }  # fmt: skip
            self.network.upsert("GET", f"{GITHUB_API}/user/memberships/orgs/{owner['login']}", json=membership)
            self.network.upsert("GET", f"{GITHUB_API}/app/installations/{each['id']}", json=dict(each))

    def open_requests(self, *asked: tuple[int, int, str], told: bool = True) -> None:
        """Let GitHub tell these open requests: who asked (id), of which account (id, login); or know no such list."""
        url = f"{GITHUB_API}/app/installation-requests"
        rows = [
            {"id": 1, "requester": {"id": who}, "account": {"id": owner, "login": login}} for who, owner, login in asked
        ]
        if told:
            self.network.upsert("GET", url, json=rows)
        else:
            self.network.upsert("GET", url, status=404, json={"message": "Not Found"})

    def ask_owner(self, end_user: str = "user-1") -> Row[Any]:
        """Ask an owner on GitHub's installation page and return what waits."""
        self.github()
        self.from_installation(self.connect("github", end_user=end_user).address, None, "request")
        return self.rows(ConnectedAccount)[-1]

    def sequin(self, **answer: Any) -> None:
        """Let Sequin know both OAuth apps and answer imports like this: with a credential unless told otherwise."""
        known = [
            {"id": SEQUIN_STRIPE_APP, "provider": "stripe", "client_id": "ca_stripe"},
            {"id": SEQUIN_GITHUB_APP, "provider": "github", "client_id": "Iv1.acme"},
        ]
        self.network.upsert("GET", f"{SEQUIN}/v1/oauth-apps", json={"data": known})
        self.network.upsert("POST", f"{SEQUIN}/v1/credentials", **(answer or {"json": {"id": CREDENTIAL}}))

    def answering(self, method: str, url: str, body: Body) -> None:
        """Let an address answer by a function; for looking at the world in the middle of a call."""
        self.network.remove(method, url)
        self.network.add_callback(method, url, callback=body)

    def calls(self, url: str) -> list[requests.PreparedRequest]:
        """Return what was sent to an address, whatever the query."""
        return [call.request for call in self.network.calls if str(call.request.url).partition("?")[0] == url]

    def imports(self) -> list[dict[str, Any]]:
        """Return the bodies of the imports sent to Sequin."""
        return [json.loads(request.body or "") for request in self.calls(f"{SEQUIN}/v1/credentials")]

    # --- looking ---------------------------------------------------------------------------------------

    def rows(self, model: type[Base]) -> list[Row[Any]]:
        """Return every row of a table, by key."""
        table = model.__table__
        with self.database.read() as connection:
            return list(
                connection.execute(sa.select(table).order_by(*[each for each in table.columns if each.primary_key]))
            )

    def row(self, model: type[Base]) -> Row[Any]:
        """Return the only row of a table."""
        (found,) = self.rows(model)
        return found

    def flow(self, ref: str) -> Row[Any]:
        """Return a flow's row."""
        (found,) = (each for each in self.rows(Flow) if each.ref == ref)
        return found

    def job(self, kind: str) -> Row[Any]:
        """Return the only job of a kind."""
        (found,) = (each for each in self.rows(Job) if each.kind == kind)
        return found

    def everything(self) -> dict[str, list[Row[Any]]]:
        """Return all rows that a refused request must not change."""
        tables = (Flow, Hop, Claim, ConnectedAccount, Job, LinkUse, AuditRecord)
        return {model.__tablename__: self.rows(model) for model in tables}

    # --- the worker ------------------------------------------------------------------------------------

    def lease(self, *kinds: str) -> LeasedJob:
        """Lease the one job that is due."""
        (job,) = self.jobs.lease(kinds or ("import", "finish"))
        return job

    def let_go(self) -> None:
        """Let a worker end what was received by flows that made no connection."""
        for job in self.jobs.lease(["discard"], most=10):
            self.services.discards.run(job)

    def deliver(self) -> None:
        """Let a worker run the import that is due."""
        self.deliveries.run(self.lease("import"))

    def later(self, **duration: float) -> None:
        """Let time pass."""
        self.clock.advance(timedelta(**duration).total_seconds())


def an_answer(state: Secret, **changes: Any) -> CallbackAnswer:
    """Return a successful authorization answer, with changes."""
    answer = CallbackAnswer(state=state, code=Secret(CODE), error=None, error_description="", issuer=None)
    return replace(answer, **changes)


def state_in(address: str) -> Secret:
    """Return the state that an address carries."""
    (state,) = parse_qs(urlsplit(address).query)["state"]
    return Secret(state)


@contextmanager
def open_bench(
    database_url: str, *, providers: Mapping[str, Provider] | None = None, **settings: Any
) -> Iterator[Bench]:
    """Lend a bench on a migrated database, with other providers where they are given."""
    offered = {"stripe": stripe_app("stripe"), "stripe-test": stripe_app("stripe-test"), "github": github_app()}
    with open_house(database_url, **({"apps": offered} | settings)) as house:
        house.database = ManualDatabase(house.database.engine, house.clock)
        with responses.RequestsMock(assert_all_requests_are_fired=False) as network:
            yield _bench(house, network, providers)


def _bench(house: House, network: responses.RequestsMock, providers: Mapping[str, Provider] | None) -> Bench:
    # As the composition root builds them, so that a new collaborator needs no change here.
    services = build_services(house.settings, house.database, house.clock, providers)
    return Bench(
        house=house,
        network=network,
        services=services,
        vault=Vault(house.settings.encryption_keys),
        worker=Worker(services, threads=2),
    )
