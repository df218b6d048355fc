"""One attempt to connect: leave for the provider, come back, find out which account it is, attach it.

Every durable step is the journal's; this module decides which step comes next. After the exchange the grant is
committed before anything parses it, so whatever a crash interrupts, the worker can finish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.engine import Row

from broker import approvals, attach
from broker.approvals import Asked
from broker.apps import AppCatalogue, OfferedApp
from broker.attach import Attachment
from broker.callback import CallbackAnswer, SetupAnswer
from broker.circuits import Circuits, OpenCircuit, app_circuit
from broker.clock import Clock
from broker.db import Database
from broker.errors import (
    BrokerError,
    CallbackInvalid,
    ClientRefused,
    CodeRefused,
    ConsentDenied,
    ExchangeAmbiguous,
    FlowEnded,
    FlowExpired,
    FlowFailure,
    FlowInterrupted,
    GrantRefused,
    GrantUnusable,
    IssuerMismatch,
    NetworkError,
    OAuthFailure,
    OAuthUnavailable,
    ProviderDown,
    ProviderFailed,
    ProviderMisconfigured,
    Refused,
    Unreadable,
    UnusableAnswer,
    Verdict,
)
from broker.http import Http
from broker.jobs import Jobs
from broker.journal import Browser, FlowJournal, Received, Reload, Step
from broker.models import FlowState, Hold, HopKind
from broker.oauth import OAuth, parse_grant
from broker.providers.base import Account, ProviderRefused, TokenRejected, calls_within
from broker.secret import Secret, random_token
from broker.settings import Settings
from broker.trials import TrialOver, findings
from broker.vault import Vault

EXCHANGE_SECONDS = 9.0
"""Total time for the token request."""
IDENTITY_SECONDS = 8.0
"""Total time for all calls that find out which account it is; with the exchange well under the callback's 20 s."""

REQUESTED = "requested"
"""A flow's selector once the person has asked an owner, so that there is nothing to pick."""
ELSEWHERE = "elsewhere"
"""A flow's selector when the person wants another account than those the grant reaches."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Onward:
    """Where the person is led: to the flow's own page, or straight on to the provider's next page."""

    flow_ref: str
    address: str | None = None


@dataclass(frozen=True)
class Wish:
    """Which of several accounts it is to be: picked at the provider, or on our page. Both are proven before use."""

    selector: str | None = None
    account_id: str | None = None

    @property
    def was_requested(self) -> bool:
        """Whether an owner was asked, so that nothing can be picked yet."""
        return self.selector == REQUESTED and self.account_id is None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the person goes to the provider's installation page first, whatever the grant reaches."""
        return self.selector == ELSEWHERE and self.account_id is None


class Flows:
    """The connect flow. Collaborators come in from outside; nothing here knows the web framework."""

    def __init__(
        self,
        *,
        journal: FlowJournal,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        settings: Settings,
        oauth: OAuth,
        http: Http,
        vault: Vault,
        jobs: Jobs,
        circuits: Circuits,
    ) -> None:
        self._circuits = circuits
        self._journal = journal
        self._database = database
        self._clock = clock
        self._apps = apps
        self._settings = settings
        self._oauth = oauth
        self._http = http
        self._vault = vault
        self._jobs = jobs

    # --- leaving ---------------------------------------------------------------------------------------

    def begin(self, link_token: str, app_key: str, browser: Browser) -> str:
        """Start a flow from a connect link and return the provider's address.

        Raises LinkUnknown, LinkExpired, LinkRevoked, LinkUsed, OtherBrowser, AppUnknown or TooManyFlows; ProviderDown
        or ProviderMisconfigured when it is known already that the person would leave in vain.
        """
        return self._begin(link_token, app_key, browser)

    def begin_again(self, flow_ref: str, app_key: str, browser: Browser | None, *, elsewhere: bool = False) -> str:
        """Start another flow of the same link, from a flow's page in the same browser. Raises as `begin`.

        With `elsewhere` it leads on to the provider's installation page, to choose an account or ask its owner there.
        """
        flow = self._journal.own(flow_ref, browser)
        assert browser is not None
        return self._begin(flow.link_id, app_key, browser, selector=ELSEWHERE if elsewhere else None)

    def _begin(self, link: str | int, app_key: str, browser: Browser, *, selector: str | None = None) -> str:
        app = self._apps.get(app_key)
        redirect_uri = self._settings.callback_url(app.key)
        departure = self._oauth.depart(app.provider.profile(app.config), redirect_uri=redirect_uri)
        self._require_provider(link, app, browser)
        self._journal.leave(link, app, browser, departure, selector=selector)
        return departure.url

    def _require_provider(self, link: str | int, app: OfferedApp, browser: Browser) -> None:
        """Keep the person here while the app's circuit is open; one in a while may go and see."""
        circuit = self._circuits.look(app_circuit(app.key), afresh=True)
        if circuit is None:
            return
        # First, so that the one try is not spent by somebody whose link does not work anyway.
        self._journal.check(link, app, browser)
        if circuit.is_due and self._circuits.claim(circuit.name):
            return
        raise self._in_vain(circuit, app)

    def require_provider(self, app_key: str) -> None:
        """Raise what `begin` would because of the provider alone, for whoever makes a link only to begin with it.

        Raises AppUnknown, ProviderDown or ProviderMisconfigured. Spends nobody's try.
        """
        app = self._apps.get(app_key)
        circuit = self._circuits.look(app_circuit(app.key), afresh=True)
        if circuit is not None and not circuit.is_due:
            raise self._in_vain(circuit, app)

    def _in_vain(self, circuit: OpenCircuit, app: OfferedApp) -> FlowFailure:
        known = ProviderMisconfigured if circuit.is_refusal else ProviderDown
        failure = known(f"the circuit of {app.key!r} is open since {circuit.since:%H:%M:%S}: {circuit.detail}")
        failure.provider = app.title
        return failure

    # --- coming back -----------------------------------------------------------------------------------

    def complete(self, app_key: str, answer: CallbackAnswer, browser: Browser | None) -> Onward:
        """Take the provider's answer: consume the hop, redeem the code once, keep the grant, find the account.

        A failure of the flow itself is told on the flow's page. Raises AppUnknown, StateUnknown, IssuerMismatch
        or OtherBrowser, having changed nothing, and DatabaseUnavailable.
        """
        app = self._apps.get(app_key)
        if answer.issuer is not None and answer.issuer != app.provider.profile(app.config).issuer:
            raise IssuerMismatch
        step = self._journal.consume(app, HopKind.AUTHORIZE, answer.state, browser)
        if isinstance(step, Reload):
            return Onward(step.flow_ref)
        if answer.code is None:
            self._journal.end(step, _refusal(answer.error or ""))
            return Onward(step.flow_ref)
        if step.confirm:
            self._journal.await_confirmation(step, answer.code, good_for=app.provider.code_life)
            return Onward(step.flow_ref)
        try:
            verifier = self._journal.verifier(step, answer.state)
        except Unreadable as failure:
            self._exchange_failed(step, failure)
            return Onward(step.flow_ref)
        return self._exchange(step, app, answer.code, verifier)

    def confirmed(self, flow: Row[Any]) -> bool:
        """Go on with a flow whose host has said that the right person came back: redeem the code that was held.

        Returns False when nobody holds it any more. What comes of it stands on the flow.
        """
        try:
            taken = self._journal.take_up(flow)
        except Unreadable as failure:
            self._exchange_failed(Step(flow.id, flow.ref), failure)
            return True
        if taken is None:
            return False
        step, code, verifier = taken
        self._exchange(step, self._apps.get(flow.app_key), code, verifier)
        return True

    def _exchange(self, step: Step, app: OfferedApp, code: Secret, verifier: Secret | None) -> Onward:
        try:
            received = self._redeem(step, app, code, verifier)
        except (OAuthFailure, NetworkError) as failure:
            self._exchange_failed(step, failure)
            return Onward(step.flow_ref)
        return self._resolve_now(step, app, received, Wish(selector=step.selector))

    def _redeem(self, step: Step, app: OfferedApp, code: Secret, verifier: Secret | None) -> Received:
        started = self._clock.monotonic()
        # A success is only the account's: the provider's API may be down while its token endpoint answers.
        with self._circuits.watching(app_circuit(app.key), conclusive=False):
            answer = self._oauth.redeem(
                app.provider.profile(app.config),
                code=code,
                redirect_uri=self._settings.callback_url(app.key),
                code_verifier=verifier,
                deadline=EXCHANGE_SECONDS,
            )
        return self._journal.keep(step, answer, took=self._clock.monotonic() - started)

    def _exchange_failed(self, step: Step, failure: BrokerError) -> None:
        """End the flow: a code is sent at most once, so nothing of this is ever tried again."""
        if isinstance(failure, Unreadable):
            self._journal.end(step, FlowInterrupted(failure.detail), state=FlowState.INTERRUPTED)
        elif isinstance(failure, GrantRefused):
            self._journal.end(step, CodeRefused(failure.detail))
        elif isinstance(failure, ClientRefused):
            self._journal.end(step, ProviderMisconfigured(failure.detail))
        elif isinstance(failure, NetworkError) and not failure.sent:
            self._journal.end(step, ProviderDown(failure.detail))
        elif isinstance(failure, OAuthUnavailable | NetworkError):
            self._journal.end(step, ExchangeAmbiguous(failure.detail), state=FlowState.INTERRUPTED)
        else:
            self._journal.end(step, ProviderFailed(failure.detail))

    def installed(self, app_key: str, answer: SetupAnswer, browser: Browser | None) -> Onward | None:
        """Take the person back from the provider's installation page.

        Returns None for a visit without our state (an owner approved on the provider's own page): nothing is
        attached from such a visit. Raises AppUnknown, CallbackInvalid, StateUnknown or OtherBrowser.
        """
        app = self._apps.get(app_key)
        if app.provider.install_url is None:
            raise CallbackInvalid("this provider has no installation page")
        if answer.state is None:
            return None
        step = self._journal.consume(app, HopKind.INSTALL, answer.state, browser)
        if isinstance(step, Reload):
            return Onward(step.flow_ref)
        # Without an installation there is nothing to go on with: the person could only ask an owner.
        selector = answer.unverified_installation_id or REQUESTED
        self._journal.note_selector(step, selector)
        return self._reopen(step, app, Wish(selector=selector))

    def choose(self, flow_ref: str, account_id: str, browser: Browser | None) -> None:
        """Go on with the account the person picked. Raises FlowUnknown, FlowEnded, or Refused for one not offered."""
        flow = self._journal.own(flow_ref, browser)
        if flow.choices is not None and all(account_id != choice["id"] for choice in flow.choices):
            raise Refused("this account was not offered")
        try:
            step = self._journal.resume(flow, Hold.CHOICE, Hold.OTHER_ACCOUNT, account_id=account_id)
        except FlowEnded:
            # The same choice again, from a second click or because the first one's answer never came.
            if self._journal.own(flow_ref, browser).chosen_account_id == account_id:
                return
            raise
        self._reopen(step, self._apps.get(flow.app_key), Wish(account_id=account_id))

    def look_again(self, flow_ref: str, browser: Browser | None) -> None:
        """Look afresh which accounts the person reaches: the provider does not send everybody back who installs.

        Raises FlowUnknown or FlowEnded.
        """
        flow = self._journal.own(flow_ref, browser)
        step = self._journal.resume(flow, Hold.INSTALLATION)
        self._reopen(step, self._apps.get(flow.app_key), Wish())

    def install_again(self, flow_ref: str, browser: Browser | None) -> str:
        """Return the provider's installation page for a flow that waits for it, or for a choice.

        Raises FlowUnknown, FlowEnded or TooManyFlows.
        """
        flow = self._journal.own(flow_ref, browser)
        if flow.state != FlowState.HELD or flow.hold not in (Hold.INSTALLATION, Hold.CHOICE):
            raise FlowEnded
        address = self._to_installation(Step(flow.id, flow.ref), self._apps.get(flow.app_key), again=True)
        if address is None:
            raise FlowEnded
        return address

    def finish(self, flow_id: int) -> None:
        """Finish, from the sealed grant, a flow whose callback did not. Raises errors whose verdict is RETRY."""
        flow = self._journal.unfinished(flow_id)
        if flow is None:
            return
        step = Step(flow.id, flow.ref, reconnects=flow.reconnects_id, trial=flow.trial)
        if flow.expires_at <= self._clock.now():
            self._journal.end(step, FlowExpired(), state=FlowState.EXPIRED)
            return
        received = self._open(step)
        if received is not None:
            wish = Wish(selector=flow.selector, account_id=flow.chosen_account_id)
            self._resolve(step, self._apps.get(flow.app_key), received, wish)

    def _open(self, step: Step) -> Received | None:
        try:
            return self._journal.kept(step)
        except Unreadable as failure:
            self._journal.end(step, FlowInterrupted(failure.detail), state=FlowState.INTERRUPTED)
            return None

    def _reopen(self, step: Step, app: OfferedApp, wish: Wish) -> Onward:
        received = self._open(step)
        return Onward(step.flow_ref) if received is None else self._resolve_now(step, app, received, wish)

    # --- which account is it? --------------------------------------------------------------------------

    def _resolve_now(self, step: Step, app: OfferedApp, received: Received, wish: Wish) -> Onward:
        """Resolve while the person waits; what may pass by itself is left to the worker."""
        try:
            return self._resolve(step, app, received, wish)
        except BrokerError as failure:
            if failure.verdict is not Verdict.RETRY:
                raise
            log.warning("flow.resolve_later", flow=step.flow_ref, error=failure.code, detail=failure.detail)
            self._journal.finish_soon(step, not_before=getattr(failure, "retry_after", None))
            return Onward(step.flow_ref)

    def _resolve(self, step: Step, app: OfferedApp, received: Received, wish: Wish) -> Onward:
        """Find the account, prove that the person may connect it, attach it.

        Raises errors whose verdict is RETRY; every other outcome is recorded on the flow.
        """
        call = calls_within(self._http, IDENTITY_SECONDS)
        provider = app.provider
        proven_from = self._clock.now()
        try:
            grant = parse_grant(
                received.answer,
                received_at=received.at,
                requires_access_token=provider.requires_access_token,
                access_seconds=provider.profile(app.config).access_seconds,
            )
            if wish.is_elsewhere and (address := self._to_installation(step, app)) is not None:
                return Onward(step.flow_ref, address)
            # A test asks no owner for anything: nothing is to come of it.
            if wish.was_requested and provider.requester is not None and not step.trial:
                with self._circuits.watching(app_circuit(app.key)):
                    requester_id = provider.requester(app.config, grant, call)
                return self._await(step, app, requester_id)
            with self._circuits.watching(app_circuit(app.key)):
                accounts = provider.identify(app.config, grant, call)
            if step.trial:
                self._journal.tell(step, findings(app, accounts, grant))
                raise TrialOver
            account = _pick(accounts, wish) if step.reconnects is None else self._again(step, accounts, wish)
            if account is None:
                return self._ask(step, app, accounts)
            if provider.confirm is not None:
                provider.confirm(app.config, account, grant, call, self._clock.now())
            self._attach(Attachment(step.flow_id, step.flow_ref, app, account, grant, proven_from))
        except FlowFailure as failure:
            self._journal.end(step, failure)
        except (TokenRejected, UnusableAnswer) as failure:
            self._journal.end(step, GrantUnusable(failure.detail))
        except (ProviderRefused, NetworkError) as failure:
            if failure.verdict is Verdict.RETRY:
                raise
            self._journal.end(step, ProviderMisconfigured(failure.detail))
        return Onward(step.flow_ref)

    def _again(self, step: Step, accounts: tuple[Account, ...], wish: Wish) -> Account | None:
        """Return the account that a reconnect is for, None when the person has to install first or is to be asked.

        Another account is connected beside the old one, and only once the person has said so: it replaces nothing.
        """
        if wish.account_id is not None:
            return _pick(accounts, wish)
        with self._database.read() as connection:
            wanted = attach.account_wanted(connection, step.reconnects)
        return next((each for each in accounts if (each.id, each.mode) == wanted), None)

    def _ask(self, step: Step, app: OfferedApp, accounts: tuple[Account, ...]) -> Onward:
        if accounts:
            choices = [{"id": each.id, "name": each.name, "type": each.type or ""} for each in accounts]
            self._journal.hold(step, Hold.CHOICE if step.reconnects is None else Hold.OTHER_ACCOUNT, choices=choices)
            return Onward(step.flow_ref)
        address = self._to_installation(step, app)
        if address is None:
            raise GrantUnusable("the grant reaches no account")
        return Onward(step.flow_ref, address)

    def _to_installation(self, step: Step, app: OfferedApp, *, again: bool = False) -> str | None:
        """Hold the flow for the provider's installation page and return its address."""
        if app.provider.install_url is None:
            return None
        state = Secret(random_token())
        self._journal.hold(step, Hold.INSTALLATION, state=state, again=again)
        return app.provider.install_url(app.config, state)

    def _attach(self, what: Attachment) -> None:
        with self._database.write() as connection:
            ref = attach.attach(connection, what, vault=self._vault, jobs=self._jobs, now=self._clock.now())
        if ref is not None:
            self._jobs.wakeup.set()
            log.info("flow.done", flow=what.flow_ref, connection=ref, app=what.app.key)

    def _await(self, step: Step, app: OfferedApp, requester_id: str) -> Onward:
        """Let a connection wait for the owner whom the person asked."""
        asked = Asked(step.flow_id, step.flow_ref, app, requester_id)
        with self._database.write() as connection:
            ref = approvals.await_approval(connection, asked, jobs=self._jobs, now=self._clock.now())
        if ref is not None:
            self._jobs.wakeup.set()
            log.info("flow.asked", flow=step.flow_ref, connection=ref, app=app.key)
        return Onward(step.flow_ref)


def _refusal(error: str) -> FlowFailure:
    """Translate the provider's error callback (RFC 6749 section 4.1.2.1, and GitHub's dialect)."""
    if error == "access_denied":
        return ConsentDenied()
    if error in ("redirect_uri_mismatch", "invalid_client", "unauthorized_client", "application_suspended"):
        return ProviderMisconfigured(error)
    return ProviderFailed(error)


def _pick(accounts: tuple[Account, ...], wish: Wish) -> Account | None:
    """Return the account meant, None when the person must be asked.

    An account that was picked but is not among those the grant reaches is never attached.
    """
    if wish.account_id is not None:
        return next((each for each in accounts if each.id == wish.account_id), None)
    if wish.selector is not None:
        return next((each for each in accounts if each.selector == wish.selector), None)
    return accounts[0] if len(accounts) == 1 else None
