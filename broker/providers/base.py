"""What a provider is: data first, then a few pure functions that are handed a way to call out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, Protocol, cast

from broker.errors import AccountNotPermitted, BrokerError, UnusableAnswer, Verdict
from broker.http import Answer, Deadline, Http, retry_after
from broker.oauth import Grant, OAuthProfile
from broker.secret import Secret
from broker.settings import AppOptions, OAuthApp

Mode = Literal["test", "live"]
NAME_LIMIT = 200


class ProviderUnavailable(BrokerError):
    """The provider's API answered 429 or 5xx. `retry_after` is in seconds when it said so."""

    code = "provider_unavailable"
    status = 502
    verdict = Verdict.RETRY
    cure = "Nothing to do unless it lasts: it is tried again by itself."

    def __init__(self, detail: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(detail)


class TokenRejected(BrokerError):
    """The provider's API does not accept the token it has just issued or issued once."""

    code = "token_rejected"
    verdict = Verdict.PERSON
    cure = "The person has to connect again."


class ProviderRefused(BrokerError):
    """The provider's API refuses a call that this deployment's registration should be allowed to make."""

    code = "provider_refused"
    verdict = Verdict.CONFIGURATION
    cure = "Give the OAuth app the permission named in the detail, at the provider’s console."


class RevocationRefused(BrokerError):
    """The provider will not end this access for us, now or later: only the account's owner can, over there."""

    code = "revocation_refused"
    verdict = Verdict.PERSON
    cure = "Tell the person to remove the access on the provider’s own page."


class AccountGone(BrokerError):
    """The provider says that we no longer have access to this account: it was removed there."""

    code = "account_gone"
    verdict = Verdict.PERSON
    cure = "The person has to connect again."


class WebhookRefused(BrokerError):
    """A webhook's signature is missing, wrong or too old."""

    code = "webhook_refused"
    status = 401
    cure = "Compare the OAuth app’s webhook secret with the one in the provider’s settings, and this machine’s clock."


class WebhookInvalid(BrokerError):
    """A signed webhook is not in the form that the provider documents."""

    code = "webhook_invalid"
    status = 400
    cure = "Look at the delivery in the provider’s log; tell us if it is a form we should know."


class GrantIncomplete(BrokerError):
    """The grant lacks what an import needs, so nothing can be imported with it."""

    code = "grant_incomplete"
    verdict = Verdict.CONFIGURATION
    cure = "Mend what the detail says; then the person has to connect again."


@dataclass(frozen=True)
class Account:
    """An account at the provider.

    `id` is the provider's own stable id. `facts` holds what the import needs besides, never a secret.
    `selector` is what the provider's own pages call this account when the person picked it there.
    """

    id: str
    name: str
    type: str | None
    mode: Mode
    facts: Mapping[str, Any] = field(default_factory=dict)
    selector: str = ""


@dataclass(frozen=True)
class Condition:
    """What a provider says of a connected account now. A member is None where the provider did not tell it."""

    # The account read afresh: names change, ids do not.
    account: Account | None = None
    # What the grant may do now.
    scopes: tuple[str, ...] | None = None


class NoticeKind(StrEnum):
    """What a provider's webhook means here."""

    # Access has ended; the signed event is the truth, because nothing can be asked any more.
    REVOKED = "revoked"
    # Something changed: ask the provider.
    CHANGED = "changed"
    # An owner approved what a person asked for: `facts` name the installation and the requester.
    APPROVED = "approved"
    # Nothing to us.
    NOTHING = "nothing"


@dataclass(frozen=True)
class Notice:
    """A verified webhook: what it means, about which account, and when it happened where the provider says so."""

    kind: NoticeKind
    # The provider's own name for it, such as installation.deleted.
    name: str
    # The provider's id of this event or delivery, by which a replay is known.
    delivery_id: str
    account_id: str | None = None
    mode: Mode | None = None
    # Connections whose `account_facts` hold these are meant too, where the event names no account.
    facts: Mapping[str, Any] = field(default_factory=dict)
    occurred_at: datetime | None = None


@dataclass(frozen=True)
class Approval:
    """How a request to an owner stands: `account` once it is approved and proven, None while it is not."""

    account: Account | None
    # What is known of the request, to be handed in the next time. Never a secret.
    facts: Mapping[str, Any] = field(default_factory=dict)
    # The names of the accounts whose owners were asked; empty while the provider has not told.
    asked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing the doctor finds about an OAuth app: a stable name, how it stands, a sentence and what mends it."""

    name: str
    state: Literal["pass", "warn", "fail", "skip"]
    sentence: str
    fix: str = ""


class Call(Protocol):
    """How a provider's functions reach its API: the network door with a deadline already set."""

    def __call__(
        self,
        method: str,
        url: str,
        *,
        bearer: Secret | None = None,
        basic: tuple[str, Secret] | None = None,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        json: object | None = None,
    ) -> Answer:
        """Send one request. Raises NetworkError."""


def calls_within(http: Http, seconds: float) -> Call:
    """Return the network door with one deadline over all calls made through it."""
    deadline = Deadline(seconds)

    def call(method: str, url: str, **options: Any) -> Answer:
        deadline.check()
        return http.request(method, url, deadline=deadline.remaining(), **options)

    return call


def _never(_app: OAuthApp) -> bool:
    return False


@dataclass(frozen=True)
class Provider:
    """One kind of service. Optional functions are None where the provider has no such thing."""

    name: str
    title: str
    # Sequin's slug of the provider and the kind of credential imported.
    sequin_provider: str
    kind: str
    options: type[AppOptions]
    # Endpoints and the client's registration, for the OAuth door.
    profile: Callable[[OAuthApp], OAuthProfile]
    # The accounts this grant reaches, read afresh. Raises the errors of this module or NetworkError.
    identify: Callable[[OAuthApp, Grant, Call], tuple[Account, ...]]
    # The properties of the credential to import. Raises GrantIncomplete.
    properties: Callable[[OAuthApp, Account, Grant | None], dict[str, object]]
    # The members of those properties that say which account it is; none of them secret.
    identity: Callable[[Account], dict[str, object]]
    default_scopes: tuple[str, ...] = ()
    # The kind of an app whose options name another than `kind`.
    kind_of: Callable[[OAuthApp], str] | None = None
    # Which of the scopes asked for a grant lacks; None compares them one by one.
    missing: Callable[[OAuthApp, tuple[str, ...]], tuple[str, ...]] | None = None
    # What the connect page says will be read and will never be done, in plain words.
    reads: tuple[str, ...] = ()
    never: str = ""
    # What the person must know besides, such as that the permission asked for is wider than the use made of it.
    caveat: str = ""
    # Why there is no PKCE, where the provider takes none.
    no_pkce_because: str = ""
    # False where an import is built from the account alone, so that no token is needed for it.
    import_needs_grant: bool = True
    # Whether the grant is still needed after a verified import: to revoke with, or to ask about the account with.
    keeps_grant: Callable[[OAuthApp], bool] = _never
    # Whether the broker refreshes this app's grants; never where an import hands the refresh token over.
    refreshes: Callable[[OAuthApp], bool] = _never
    # Asks about a connected account with as few and as cheap calls as can be. Raises AccountGone, AccountSuspended,
    # TokenRejected, NetworkError and others of this module.
    probe: Callable[[OAuthApp, Account, Grant | None, Call, datetime], Condition] | None = None
    # False where the app's own registration is enough for that.
    probe_needs_grant: bool = True
    # How many probes the provider's rate limits allow one process, for each app; leaves room for what people do.
    probes_per_second: float = 1.0
    # Verifies a webhook's raw body with any of the app's secrets and says what it means.
    # Raises WebhookRefused for a wrong signature, WebhookInvalid for a body that is not what it says.
    webhook: Callable[[OAuthApp, Mapping[str, str], bytes, datetime], Notice] | None = None
    # How long after its arrival a code can certainly still be exchanged.
    code_life: timedelta = timedelta(minutes=5)
    # Whether a grant without an access token is worth keeping.
    requires_access_token: bool = True
    # Proof that the person behind the grant may connect this account. Raises AccountNotPermitted and others.
    confirm: Callable[[OAuthApp, Account, Grant, Call, datetime], None] | None = None
    # Where to send a person whose grant reaches no account yet; the state comes back with them.
    install_url: Callable[[OAuthApp, Secret], str] | None = None
    # The provider's id of the person behind a grant, where somebody else may have to approve. Raises as `identify`.
    requester: Callable[[OAuthApp, Grant, Call], str] | None = None
    # How a request of this person (by id) to an owner stands, given what is known of it. Raises AccountSuspended,
    # NetworkError and others of this module.
    approval: Callable[[OAuthApp, str, Mapping[str, Any], Call, datetime], Approval] | None = None
    # The provider's own page about this connection.
    manage_url: Callable[[OAuthApp, Account], str] | None = None
    # Ends at the provider what this connection was given, and nothing that another connection uses; False where
    # there was nothing it could end. Repeating it is harmless. Raises RevocationRefused and others.
    revoke: Callable[[OAuthApp, Account, Grant | None, Call, datetime], bool] | None = None
    # False where the app's own registration is enough for that, so that the grant can go at once.
    revoke_needs_grant: bool = True
    # Ends the tokens of one grant and nothing else, whatever account they reach and whoever else uses it; None where
    # the provider can only end access by account. Repeating it is harmless. Raises as `revoke` does.
    end_token: Callable[[OAuthApp, Grant, Call], None] | None = None
    # Whether a reconnect ends the token it replaces, by `end_token`: where each consent gives a token of its own, and
    # what is not ended stays for ever.
    ends_replaced: bool = False
    # What can be said of this registration without any account: what it holds, and what the provider says of it.
    # Raises NetworkError and the errors of this module.
    diagnose: Callable[[OAuthApp, Call, datetime], Iterable[Finding]] | None = None
    # False where Sequin documents no kind for this provider, so that `kind` is a guess.
    kind_documented: bool = True
    # What stays at the provider after that, until its owner removes it there; empty where nothing does.
    stays: Callable[[OAuthApp], str] | None = None


def read_json(answer: Answer, *, what: str) -> Any:
    """Return the JSON of a successful API answer.

    Raises TokenRejected (401), ProviderUnavailable (429, 5xx), ProviderRefused (other errors) or UnusableAnswer.
    """
    if answer.status == 401:
        raise TokenRejected(f"{what}: 401")
    if answer.status == 429 or answer.status >= 500 or is_limited(answer):
        raise ProviderUnavailable(f"{what}: {answer.status}", retry_after(answer.headers))
    if answer.status >= 300:
        raise ProviderRefused(f"{what}: {answer.status}")
    return answer.json()


def is_limited(answer: Answer) -> bool:
    """Tell whether a 403 is about how often we ask, as GitHub's limits are, and not about what."""
    exhausted = answer.headers.get("x-ratelimit-remaining") == "0"
    return answer.status == 403 and (exhausted or retry_after(answer.headers) is not None)


def read_object(answer: Answer, *, what: str) -> dict[str, Any]:
    """Return the JSON object of a successful API answer. Raises as `read_json` does."""
    content = read_json(answer, what=what)
    if not isinstance(content, dict):
        raise UnusableAnswer(f"{what}: not an object")
    return cast(dict[str, Any], content)


def clean(value: object, *, limit: int = NAME_LIMIT) -> str:
    """Return provider text as one line that every database and page takes; empty when it is no text.

    Control characters and lone surrogates become spaces: PostgreSQL stores neither NUL nor surrogates.
    """
    if not isinstance(value, str):
        return ""
    readable = "".join(c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else " " for c in value)
    return " ".join(readable.split())[:limit]


__all__ = [
    "Account",
    "AccountGone",
    "AccountNotPermitted",
    "Approval",
    "Call",
    "Condition",
    "Finding",
    "GrantIncomplete",
    "Mode",
    "Notice",
    "NoticeKind",
    "Provider",
    "ProviderRefused",
    "ProviderUnavailable",
    "RevocationRefused",
    "TokenRejected",
    "WebhookInvalid",
    "WebhookRefused",
    "calls_within",
    "clean",
    "is_limited",
    "read_json",
    "read_object",
]
