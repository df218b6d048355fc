"""One tree of errors: each has a stable code, a sentence for the person and a cure for the operator."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Verdict(StrEnum):
    """What a failure asks for; every failure is classified exactly once, where it happens."""

    RETRY = "retry"
    """It may pass by itself: try again later."""
    PERSON = "person"
    """Only the person can mend it, usually by connecting again."""
    CONFIGURATION = "configuration"
    """Only whoever runs this broker can mend it."""


class BrokerError(Exception):
    """Base of everything this program raises on purpose.

    `code` never changes once released. `heading` and `advice` are for the person in front of the page;
    `cure` is for the operator. `detail` adds facts for operators and logs and must never hold a secret.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    verdict: ClassVar[Verdict] = Verdict.CONFIGURATION
    heading: ClassVar[str] = "Something went wrong on our side"
    advice: ClassVar[str] = "Try again in a few minutes. If it happens again, quote the reference below."
    cure: ClassVar[str] = "Search the log for the reference; the traceback is there."

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.code)
        self.detail = detail


# --- settings and start-up ---------------------------------------------------------------------------


class SettingsError(BrokerError):
    """The settings cannot be used; `problems` lists every one of them, each with its fix."""

    code = "settings_invalid"
    cure = "Correct every setting listed and start again."

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


# --- sealing ------------------------------------------------------------------------------------------


class Unreadable(BrokerError):
    """A sealed value does not open: wrong key, wrong row, or altered bytes."""

    code = "grant_unreadable"
    verdict = Verdict.CONFIGURATION
    cure = "Put the key that sealed this row back into BROKER_ENCRYPTION_KEYS, or ask the person to reconnect."


# --- the network --------------------------------------------------------------------------------------


class NetworkError(BrokerError):
    """An outbound call failed. `sent` says whether the other side may have acted on it."""

    code = "network_error"
    status = 502
    verdict = Verdict.RETRY
    heading = "The other side is not responding"
    advice = "This is usually short. Try again in a few minutes."
    cure = "Check that this machine can reach the address named in the detail."
    sent: bool = True


class Unreachable(NetworkError):
    """No connection could be made, so nothing was sent."""

    code = "unreachable"
    sent = False


class DeadlineExceeded(NetworkError):
    """The call took longer than its total deadline; the other side may have acted."""

    code = "deadline_exceeded"


class ConnectionBroken(NetworkError):
    """The connection ended before the whole answer arrived; the other side may have acted."""

    code = "connection_broken"


class AnswerTooLarge(NetworkError):
    """The answer was larger than its cap and was cut off."""

    code = "answer_too_large"


class RedirectRefused(NetworkError):
    """The other side answered with a redirect, which is never followed: it would re-send the secret."""

    code = "redirect_refused"
    verdict = Verdict.CONFIGURATION
    cure = "The configured address redirects elsewhere: configure the final address."


class AddressRefused(NetworkError):
    """The address is not https (and not loopback in development), or holds credentials."""

    code = "address_refused"
    verdict = Verdict.CONFIGURATION
    sent = False


class CertificateRefused(Unreachable):
    """The TLS handshake failed: the certificate is not trusted, or no TLS is spoken there. Nothing was sent."""

    code = "certificate_refused"
    cure = "Check the certificate of the address named in the detail, and the certificates this machine trusts."


class RequestUnsendable(NetworkError):
    """Our own request cannot be written: a value holds characters that may not travel. Nothing was sent."""

    code = "request_unsendable"
    verdict = Verdict.CONFIGURATION
    cure = "A configured value (a client id, secret, token or address) holds characters it cannot have: enter it again."
    sent = False


class UnusableAnswer(NetworkError):
    """An answer arrived whole but is not what the protocol says: not JSON, wrong types, missing members."""

    code = "unusable_answer"


# --- OAuth --------------------------------------------------------------------------------------------


class OAuthFailure(BrokerError):
    """The provider refused a token request (RFC 6749 section 5.2). `error` is its code, shortened and escaped."""

    code = "oauth_failure"
    status = 502
    verdict = Verdict.PERSON

    def __init__(self, error: str, detail: str = "") -> None:
        self.error = error
        super().__init__(f"{error}: {detail}" if detail else error)


class GrantRefused(OAuthFailure):
    """The code or refresh token is no longer good (`invalid_grant` and its dialects): start again."""

    code = "grant_refused"
    verdict = Verdict.PERSON


class ClientRefused(OAuthFailure):
    """The provider does not accept OUR credentials (`invalid_client` and its dialects)."""

    code = "client_refused"
    verdict = Verdict.CONFIGURATION
    cure = "Compare this OAuth app’s client id and secret with the provider’s console."


class RegistrationDoubted(ClientRefused):
    """Every account asked about is unknown to the provider: most likely we ask as somebody else than before."""

    code = "registration_doubted"
    cure = (
        "Is this the right platform? Set the client id and secret with which these accounts were connected. If their "
        "owners did remove them all, disconnect them: nothing else ends them meanwhile."
    )

    def __init__(self, detail: str) -> None:
        super().__init__("every account is unknown", detail)


class OAuthUnavailable(OAuthFailure):
    """The token endpoint answered 429 or 5xx. `retry_after` is in seconds when the provider said so."""

    code = "oauth_unavailable"
    verdict = Verdict.RETRY

    def __init__(self, error: str, detail: str = "", retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(error, detail)


# --- Sequin -------------------------------------------------------------------------------------------


class SequinError(BrokerError):
    """Sequin did not accept a call. `retry_after` is in seconds when Sequin said so."""

    code = "sequin_error"
    status = 502
    verdict = Verdict.RETRY

    def __init__(self, detail: str = "", retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(detail)


class SequinUnavailable(SequinError):
    """429, 5xx, or an answer that is not the documented one: try again later."""

    code = "sequin_unavailable"
    cure = "Nothing to do unless it lasts: the import is tried again by itself."


class SequinUnauthorized(SequinError):
    """401: Sequin does not accept our API token."""

    code = "sequin_unauthorized"
    verdict = Verdict.CONFIGURATION
    cure = "Put a valid Sequin API token into SEQUIN_API_TOKEN and restart; the imports then go out by themselves."


class SequinNotFound(SequinError):
    """404: the credential or OAuth app does not exist in this Sequin account."""

    code = "sequin_not_found"
    verdict = Verdict.CONFIGURATION


class SequinRefused(SequinError):
    """Sequin refused the content (422) or the call (400, 403): retrying the same would fail the same way.

    `fields` maps a dotted field path to reasons, e.g. `{"properties.secret": ["can't be blank"]}`.
    """

    code = "sequin_refused"
    verdict = Verdict.CONFIGURATION
    cure = "Read the field named in the detail; correct the OAuth app or the provider’s configuration, then retry."

    def __init__(self, detail: str = "", fields: dict[str, list[str]] | None = None) -> None:
        self.fields = fields or {}
        super().__init__(detail)


# --- connect links and flows --------------------------------------------------------------------------


class Refused(BrokerError):
    """A request that cannot be honoured; nothing was changed."""

    code = "refused"
    status = 400
    verdict = Verdict.PERSON
    heading = "That request was not understood"
    advice = "Go back, reload the page and try again."
    cure = "Nothing to do unless many people report it."


class LinkUnknown(Refused):
    """No connect link has this token."""

    code = "link_unknown"
    status = 404
    heading = "This link does not work"
    advice = "Check that you copied all of it."


class LinkExpired(Refused):
    """The link's time is over."""

    code = "link_expired"
    status = 410
    heading = "This link has expired"
    advice = "Go back to where you found it and start again."


class LinkUsed(Refused):
    """The link has already saved a connection for this OAuth app."""

    code = "link_used"
    status = 410
    heading = "This link has already been used"
    advice = "If that was you, you are connected. If not, tell the people who sent you the link."


class LinkRevoked(Refused):
    """The host has taken the link back."""

    code = "link_revoked"
    status = 410
    heading = "This link no longer works"
    advice = "Go back to where you found it and ask for a new one."


class OtherBrowser(Refused):
    """The link, flow or state belongs to another browser."""

    code = "other_browser"
    status = 403
    heading = "Open this link in the browser you started from"
    advice = "You began in another browser or window. Go back to it; your progress there is kept."


class AppUnknown(Refused):
    """No OAuth app has this key, or the link does not offer it."""

    code = "app_unknown"
    status = 404
    heading = "Page not found"
    advice = "Check the address, or go back to where you found the link."


class CallbackInvalid(Refused):
    """The provider's answer is malformed: missing, doubled, oversized or contradictory parameters."""

    code = "callback_invalid"
    heading = "We could not match this to a request"
    advice = "This can happen if you used the Back button. Go back to where you started and try again."


class StateUnknown(CallbackInvalid):
    """The state was not issued by us for this OAuth app."""

    code = "state_unknown"


class IssuerMismatch(CallbackInvalid):
    """`iss` is not the registered issuer (RFC 9207): the answer comes from somebody else."""

    code = "issuer_mismatch"
    cure = "If many people report it, compare the provider’s issuer with the one in its entry."


class PrefetchRefused(Refused):
    """A browser or scanner asked ahead of the person; nothing was spent."""

    code = "prefetch_refused"
    status = 425


class TooManyFlows(Refused):
    """Too many unfinished attempts through one link."""

    code = "too_many_flows"
    status = 429
    heading = "Too many tries"
    advice = "Wait a few minutes, then try again."


class FlowUnknown(Refused):
    """No flow of this browser has this reference."""

    code = "flow_unknown"
    status = 404
    heading = "Page not found"
    advice = "Check the address, or go back to where you started."


class FlowEnded(Refused):
    """The flow has moved on; what was asked no longer applies."""

    code = "flow_ended"
    status = 409
    heading = "This was finished already"
    advice = "Reload the page to see how it ended."


class ConfirmationMismatch(Refused):
    """The host said that somebody else came back than the person the link was made for: the flow has ended."""

    code = "confirmation_mismatch"
    status = 409
    heading = "That is not the person this link was made for"
    advice = "The attempt has ended and nothing was exchanged. Make a link for the person who is signed in."


class ConfirmationTooLate(Refused):
    """The provider's code is no longer good, or the flow's time was over, before the host confirmed."""

    code = "confirmation_too_late"
    status = 409
    heading = "The confirmation came too late"
    advice = "Nothing was exchanged. The person can start again through the same link while it lasts."


class EndUserUnknown(Refused):
    """No end user has this id, or they were forgotten."""

    code = "end_user_unknown"
    status = 404
    heading = "There is no such end user"
    advice = "Check the id; a person who was erased is unknown afterwards."


class EndUserErased(Refused):
    """This end user is being forgotten; until that is over nothing new can begin for them."""

    code = "end_user_erased"
    status = 409
    heading = "This end user is being erased"
    advice = "Wait until their connections are cleared up; then the id can be used again."


class FlowFailure(BrokerError):
    """A flow ended without a connection. The flow keeps the code; its page shows the sentence."""

    code = "flow_failed"
    status = 200
    verdict = Verdict.PERSON
    # The provider's name, where it is told before there is a flow that knows it.
    provider: str = ""


class ConsentDenied(FlowFailure):
    """The person said no at the provider (`access_denied`)."""

    code = "consent_denied"
    heading = "{provider} was not connected"
    advice = "You chose not to allow access, or closed {provider}’s page. Nothing was shared."
    cure = "Nothing to do: the person decided."


class ProviderFailed(FlowFailure):
    """The provider reported an error other than a denial."""

    code = "provider_failed"
    heading = "{provider} could not complete the connection"
    advice = "Nothing was shared. You can try again."
    cure = "Look the provider’s error code up in its documentation."


class ProviderMisconfigured(FlowFailure):
    """The provider does not accept this deployment's registration."""

    code = "provider_misconfigured"
    verdict = Verdict.CONFIGURATION
    heading = "{host} needs to fix a setting before you can connect"
    advice = "Nothing was shared, and there is nothing you can do here. Please tell {host}."
    cure = "Compare the client id, client secret and callback address with the provider’s console."


class ProviderDown(FlowFailure):
    """The provider could not be reached before the code was sent: nothing happened."""

    code = "provider_down"
    status = 502
    verdict = Verdict.RETRY
    heading = "{provider} is not responding"
    advice = "This is usually short. Nothing was shared. You can try again."


class CodeRefused(FlowFailure):
    """The provider no longer accepts the code."""

    code = "code_refused"
    heading = "{provider} could not complete the connection"
    advice = "The permission you gave was no longer valid when it reached us. Start again."


class ExchangeAmbiguous(FlowFailure):
    """The exchange may or may not have happened; a code is never sent twice."""

    code = "exchange_ambiguous"
    status = 502
    heading = "The connection was interrupted"
    advice = "{provider} did not answer in full, so we kept nothing. Start again."
    cure = "Nothing to do: the person starts again. If it lasts, look at the provider’s status page."


class GrantUnusable(FlowFailure):
    """The provider's answer holds no usable token."""

    code = "grant_unusable"
    verdict = Verdict.CONFIGURATION
    heading = "{provider} could not complete the connection"
    advice = "What {provider} sent us cannot be used. Nothing was kept. Please tell {host}."
    cure = "Read the detail; the provider’s registration may be of another kind than configured."


class AccountTaken(FlowFailure):
    """The account is connected to another end user, who is never named."""

    code = "account_taken"
    status = 409
    heading = "This {provider} account is already connected"
    advice = "It is connected to someone else at {host}. Use another {provider} account, or ask {host}."
    cure = "Disconnect it there first if it should move."


class AccountDisconnected(FlowFailure):
    """The account was disconnected while this flow was under way; a disconnect wins."""

    code = "account_disconnected"
    status = 409
    heading = "This {provider} account was disconnected"
    advice = "It was disconnected while you were connecting it, so nothing was kept. Start again to connect it."
    cure = "Nothing to do: the person starts again."


class AccountNotPermitted(FlowFailure):
    """The person may see the account but may not connect it."""

    code = "account_not_permitted"
    status = 403
    heading = "You cannot connect this {provider} account"
    advice = "Only an owner of the account can connect it. Ask an owner, or choose another account."
    cure = "Nothing to do; `org_proof` in this OAuth app’s configuration says what counts as proof."


class AccountSuspended(FlowFailure):
    """The installation is suspended at the provider."""

    code = "account_suspended"
    heading = "Access to this {provider} account is suspended"
    advice = "Un-suspend it in the account’s settings at {provider}, then try again."


class NotConfirmed(FlowFailure):
    """The host said that somebody else came back than the person the link was made for."""

    code = "not_confirmed"
    status = 409
    heading = "{provider} was not connected"
    advice = "This link was made for somebody else, so nothing was kept. Go back to {host} and start there."
    cure = "If it happens often, see who passes links on: they are made for one person each."


class ConfirmationMissing(FlowFailure):
    """The host did not confirm before the provider's code was no longer good."""

    code = "confirmation_missing"
    status = 410
    heading = "This took too long"
    advice = "{host} did not confirm in time that it was you. Nothing was shared. Start again."
    cure = "Call POST /api/v1/flows/<ref>/confirm as soon as the person is back; Stripe’s codes last five minutes."


class EndUserForgotten(FlowFailure):
    """The host asked for this person to be forgotten while the flow was under way."""

    code = "end_user_forgotten"
    status = 410
    heading = "{provider} was not connected"
    advice = "{host} has asked us to forget what belongs to you, so nothing was kept."
    cure = "Nothing to do: the host asked for it."


class LinkSpent(FlowFailure):
    """The link saved another connection for this OAuth app first."""

    code = "link_spent"
    status = 410
    heading = "This link has already been used"
    advice = "You are connected already. For another account, go back to {host} and start again."


class FlowExpired(FlowFailure):
    """The person came back after the flow's time was over."""

    code = "flow_expired"
    status = 410
    heading = "This took too long"
    advice = "For your safety a request ends after a while. Nothing was shared. Start again."


class FlowInterrupted(FlowFailure):
    """This program stopped between the provider's answer and our commit."""

    code = "flow_interrupted"
    heading = "The connection was interrupted"
    advice = "We stopped half-way and kept nothing that can be used. Start again."
    cure = "Nothing to do: the person starts again."


# --- signing in at an OpenID provider -------------------------------------------------------------------


class SignInFailure(BrokerError):
    """Nobody was signed in. The sign-in page shows the sentence."""

    code = "sign_in_failed"
    status = 400
    verdict = Verdict.PERSON
    heading = "You were not signed in"
    advice = "The sign-in was broken off. You can try again."
    cure = "Look the code in the log up in the OpenID provider’s documentation."


class SignInDenied(SignInFailure):
    """The person said no at the OpenID provider, or may not use it for this."""

    code = "sign_in_denied"
    status = 403
    advice = "You chose not to sign in, or may not sign in here. You can try again."
    cure = "Nothing to do: the person decided, or the OpenID provider lets only some people use the broker."


class SignInExpired(SignInFailure):
    """The person came back from the OpenID provider too late."""

    code = "sign_in_expired"
    status = 410
    heading = "This took too long"
    advice = "For your safety a sign-in ends after a quarter of an hour. Start again."


class SignInUnavailable(SignInFailure):
    """The OpenID provider cannot be reached, or does not answer as it should."""

    code = "sign_in_unavailable"
    status = 503
    verdict = Verdict.RETRY
    heading = "Signing in does not work at the moment"
    advice = "This is usually short. Try again in a few minutes."
    cure = "Run `broker doctor`: it asks the OpenID provider as a sign-in does and says what is wrong."


class SignInMisconfigured(SignInFailure):
    """The registration at the OpenID provider and our settings do not agree."""

    code = "sign_in_misconfigured"
    status = 503
    verdict = Verdict.CONFIGURATION
    heading = "Signing in is not set up correctly"
    advice = "There is nothing you can do here. Please tell the people who run this service."
    cure = "Compare issuer, client id, secret and redirect address with the OpenID provider; `broker doctor` helps."


class IdentityUnproven(SignInFailure):
    """The ID token does not prove who came back: signature, issuer, audience, time or nonce are not as they must be."""

    code = "identity_unproven"
    status = 403
    verdict = Verdict.CONFIGURATION
    advice = "We could not make sure that it was you. You can try again."
    cure = "The log says which check failed. Compare this machine’s clock, `signing_algorithm` and client id."


class IdentityUnusable(SignInFailure):
    """The ID token is genuine, but does not hold the end user's id."""

    code = "identity_unusable"
    status = 403
    verdict = Verdict.CONFIGURATION
    advice = "Your account lacks something that is needed here. Please tell the people who run this service."
    cure = "Let the OpenID provider put the claim named by `id_claim` into ID tokens."


def by_code(code: str) -> type[BrokerError] | None:
    """Return the class whose stable code this is, for a code kept in a row; None when no version loaded here has it."""
    waiting: list[type[BrokerError]] = [BrokerError]
    while waiting:
        candidate = waiting.pop()
        if candidate.code == code:
            return candidate
        waiting.extend(candidate.__subclasses__())
    return None
