"""A broker whose use cases are stand-ins: the pages are real, what they show is made up by the test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from flask import Flask

from broker.apps import AppCatalogue, OfferedApp
from broker.audit import Actor
from broker.callback import CallbackAnswer, SetupAnswer
from broker.clock import ManualClock
from broker.connection_search import ConnectionFilters
from broker.connections import AccountView, ConnectionPage, ConnectionUnknown, ConnectionView, HandOff, Health, Person
from broker.disconnection import Effect
from broker.errors import EndUserErased, FlowUnknown, LinkUnknown
from broker.flow_page import FlowPage
from broker.flows import Onward
from broker.history import Event
from broker.journal import Browser
from broker.links import CreatedLink, LinkRequest, OpenedLink
from broker.models import FlowState, ImportState
from broker.providers.github import PROVIDER as GITHUB
from broker.providers.stripe import PROVIDER as STRIPE
from broker.secret import Secret
from broker.sessions import SignedIn
from broker.settings import Branding, EncryptionKey, OAuthApp, Settings
from broker.status import Status
from broker.web import connect, connections, demo, init_web, ops, sign_in

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
TOKEN = "lnk-token-0123456789-0123456789-abcdef"
BROWSER = "browser-secret-0123456789-0123456789-abc"
SESSION = "session-token-0123456789-0123456789-abcd"
FLOW = "7F3K-92QD-M4TX"
PROVIDER_PAGE = "https://connect.stripe.test/oauth/authorize?state=abc"


def oauth_app(key: str, provider: str, why: str = "") -> OAuthApp:
    options = (STRIPE if provider == "stripe" else GITHUB).options
    facts = {} if provider == "stripe" else {"app_slug": "acme", "app_id": "1", "private_key": Secret("pem")}
    wanted = {name: value for name, value in facts.items() if name in options.model_fields}
    return OAuthApp(
        key=key,
        provider=provider,
        client_id="ca_123",
        client_secrets=(Secret("hidden"),),
        scopes=(),
        sequin_oauth_app_id=None,
        webhook_secrets=(),
        why=why,
        options=options.model_validate(wanted),
    )


def settings(
    public_url: str = "http://localhost:8000",
    environment: Literal["production", "development"] = "development",
    **changes: Any,
) -> Settings:
    apps = {
        "stripe": oauth_app("stripe", "stripe", "So Acme can show your revenue next to your traffic."),
        "github": oauth_app("github", "github", "So Acme can tell you which release moved your numbers."),
    }
    values: dict[str, Any] = {
        "public_url": public_url,
        "secret_key": Secret("a secret that signs cookies in tests"),
        "encryption_keys": (EncryptionKey("k1", bytes(32)),),
        "environment": environment,
        "database_url": "sqlite://",
        "data_dir": Path("nowhere"),
        "port": 8000,
        "sequin_api_token": Secret("hidden"),
        "sequin_api_url": "https://api.sequin.test",
        "apps": apps,
        "return_origins": (public_url,),
        "branding": Branding(
            name="Acme Analytics", support_email="help@acme.example", privacy_url="https://acme.example/privacy"
        ),
    }
    return Settings(**(values | changes))


def connection(
    status: Status = Status.OK, *, ref: str = "9QD2-7F3K-M4TX", app: str = "stripe", **changes: Any
) -> ConnectionView:
    title = "Stripe" if app == "stripe" else "GitHub"
    made = ConnectionView(
        id=1,
        ref=ref,
        end_user=Person(7, "jo-lind", "jo@example.com", "Jo Lind"),
        provider=app,
        provider_title=title,
        app=app,
        kind="stripe_oauth2",
        account=AccountView("acct_1032D82eZvKYlo2C", "Lind Ceramics", "standard", "live"),
        scopes=("read_write",),
        status=status,
        health=Health("ok", (), NOW - timedelta(minutes=3)),
        hand_off=HandOff(ImportState.IMPORTED, None, None, NOW, None, "", "", "", None, 0, None, None),
        metadata={},
        holds_grant=False,
        connected_at=NOW - timedelta(days=2),
        revoked_at=None,
        disconnected_at=None,
        created_at=NOW - timedelta(days=2),
        updated_at=NOW,
    )
    return replace(made, **changes)


@dataclass
class FakeLinks:
    """Knows one link."""

    apps: tuple[OfferedApp, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    failure: Exception | None = None
    counted: list[bool] = field(default_factory=list)
    created: list[LinkRequest] = field(default_factory=list)

    def opened(self, token: str, browser_hash: str | None, *, count: bool) -> OpenedLink:
        if self.failure is not None:
            raise self.failure
        if token != TOKEN:
            raise LinkUnknown
        self.counted.append(count)
        link = OpenedLink(3, 7, "jo@example.com", self.apps, {}, {}, None, False, NOW + timedelta(minutes=30))
        return replace(link, **self.changes)

    def enter(self, token: str, browser_hash: str) -> int:
        link = self.opened(token, browser_hash, count=True)
        if not link.manage:
            raise LinkUnknown
        return link.end_user_id

    def create(self, request: LinkRequest, *, created_by: str) -> CreatedLink:
        self.created.append(request)
        return CreatedLink("lnk_1", f"http://localhost:8000/connect/{TOKEN}", NOW)


@dataclass
class FakeFlows:
    """Records what it is asked to do, and answers what the test says."""

    onward: Onward | None = field(default_factory=lambda: Onward(FLOW))
    failure: Exception | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    def begin(self, token: str, app_key: str, browser: Browser) -> str:
        self._called("begin", token, app_key, browser)
        return PROVIDER_PAGE

    def begin_again(self, ref: str, app_key: str, browser: Browser | None) -> str:
        self._called("begin_again", ref, app_key, browser)
        return PROVIDER_PAGE

    def complete(self, app_key: str, answer: CallbackAnswer, browser: Browser | None) -> Onward | None:
        self._called("complete", app_key, answer, browser)
        return self.onward

    def installed(self, app_key: str, answer: SetupAnswer, browser: Browser | None) -> Onward | None:
        self._called("installed", app_key, answer, browser)
        return self.onward

    def choose(self, ref: str, account_id: str, browser: Browser | None) -> None:
        self._called("choose", ref, account_id, browser)

    def install_again(self, ref: str, browser: Browser | None) -> str:
        self._called("install_again", ref, browser)
        return PROVIDER_PAGE


@dataclass
class FakeFlowPages:
    """Shows one flow to one browser."""

    app: OfferedApp
    changes: dict[str, Any] = field(default_factory=dict)

    def page(self, ref: str, browser: Browser | None) -> FlowPage:
        if ref != FLOW or browser is None or browser.secret.reveal() != BROWSER:
            raise FlowUnknown
        page = FlowPage(
            ref=FLOW,
            app=self.app,
            renews=None,
            trial=False,
            state=FlowState.DONE,
            hold=None,
            failure=None,
            failure_detail=None,
            connection=connection(),
            was_connected_before=False,
            missing_scopes=(),
            choices=(),
            link_apps_left=(),
            can_retry=False,
            return_url=None,
            goes_back=False,
            end_user_id=7,
            end_user_label="Jo Lind",
            session_link_id=3,
            updated_at=NOW,
            ended_at=NOW,
        )
        return replace(page, **self.changes)


@dataclass
class FakeConnections:
    """Holds a list, and records what is asked for again."""

    items: list[ConnectionView] = field(default_factory=list)
    retried: list[tuple[str, Actor]] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def check(self, ref: str) -> None:
        self.checked.append(ref)

    def retry(self, ref: str, *, actor: Actor) -> None:
        self.retried.append((ref, actor))

    def of_person(self, end_user_id: int, *, link_id: int | None) -> list[ConnectionView]:
        return self.items

    def by_id(self, key: int) -> ConnectionView:
        return self.find_first()

    def find_first(self) -> ConnectionView:
        if not self.items:
            raise ConnectionUnknown
        return self.items[0]

    def page(self, filters: ConnectionFilters, *, limit: int, cursor: str | None = None) -> ConnectionPage:
        return ConnectionPage(tuple(self.items), None)


@dataclass
class FakeHistory:
    """Tells what the test says."""

    events: list[Event] = field(default_factory=list)

    def of_connection(self, ref: str) -> list[Event]:
        return self.events


@dataclass
class FakeDisconnections:
    """Records who asked for what."""

    would: Effect = field(default_factory=lambda: Effect(is_shared=False, ends_access=True, stays=""))
    requested: list[tuple[str, Actor]] = field(default_factory=list)

    def effect(self, ref: str) -> Effect:
        return self.would

    def request(self, ref: str, *, actor: Actor) -> None:
        self.requested.append((ref, actor))


@dataclass
class FakeSessions:
    """Hands out one session and remembers whether it is open."""

    current: SignedIn | None = None
    opened: list[tuple[int, int | None]] = field(default_factory=list)
    ended: list[str | None] = field(default_factory=list)
    lives: list[timedelta] = field(default_factory=list)
    # Who is being forgotten.
    erased: int | None = None

    def find(self, token: str | None) -> SignedIn | None:
        return self.current if token == SESSION else None

    def open_end_user(
        self,
        _connection: None,
        end_user_id: int,
        link_id: int | None,
        *,
        life: timedelta = timedelta(minutes=30),
        by_sign_in: bool = False,
    ) -> Secret:
        if end_user_id == self.erased:
            raise EndUserErased
        self.lives.append(life)
        self.opened.append((end_user_id, link_id))
        self.current = SignedIn(end_user_id, link_id, None, NOW + timedelta(minutes=30))
        return Secret(SESSION)

    def end(self, token: str | None) -> None:
        self.ended.append(token)


class FakeServices(SimpleNamespace):
    """What the views are handed."""

    settings: Settings
    clock: ManualClock
    apps: AppCatalogue
    links: FakeLinks
    flows: FakeFlows
    flow_pages: FakeFlowPages
    connections: FakeConnections
    history: FakeHistory
    disconnections: FakeDisconnections
    sessions: FakeSessions


def services(chosen: Settings | None = None) -> FakeServices:
    chosen = chosen or settings()
    apps = AppCatalogue(chosen.apps, {"stripe": STRIPE, "github": GITHUB})
    return FakeServices(
        settings=chosen,
        clock=ManualClock(NOW),
        database=None,
        key_ring=None,
        apps=apps,
        links=FakeLinks(tuple(apps)),
        flows=FakeFlows(),
        flow_pages=FakeFlowPages(apps.get("stripe")),
        connections=FakeConnections(),
        history=FakeHistory(),
        disconnections=FakeDisconnections(),
        sessions=FakeSessions(),
        people_sign_ins=None,
        operator_sign_ins=None,
    )


def application(fake: FakeServices) -> Flask:
    """Return an app with every page of ours, put together as the composition root does it."""
    app = Flask(
        "broker.app",
        root_path=str(ROOT / "broker"),
        template_folder=str(ROOT / "templates"),
        static_folder=str(ROOT / "broker/web/static"),
        static_url_path="/static",
    )
    app.extensions["broker"] = fake
    init_web(app, fake.settings)
    for module in (connect, connections, sign_in, demo, ops):
        app.register_blueprint(module.blueprint)
    return app
