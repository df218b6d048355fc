"""A thin client of the host API for backends in Python, made from the models that the API itself is made of.

    client = Client("https://connect.example.com", key)
    link = client.create_link("user-42", email="ada@example.com", return_url="https://app.example.com/settings")

Its calls go out by the broker's own network door: no redirect is followed, each has a deadline, and an API key never
travels unencrypted beyond this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from broker import __version__
from broker.contract import (
    AcceptedAnswer,
    AppAnswer,
    AppsAnswer,
    ConfirmBody,
    ConnectionAnswer,
    ConnectionQuery,
    ConnectionsAnswer,
    CreatedLinkAnswer,
    EndUserBody,
    ErasureAnswer,
    FlowAnswer,
    LinkAnswer,
    LinkBody,
    ProblemAnswer,
)
from broker.errors import BrokerError, UnusableAnswer
from broker.http import Answer, Http
from broker.secret import Secret

DEADLINE_SECONDS = 15.0

_Given = TypeVar("_Given", bound=BaseModel)


class ApiRefused(BrokerError):
    """The broker refused a call; `problem` says why, and its `code` is what programs go by."""

    code = "api_refused"

    def __init__(self, problem: ProblemAnswer, retry_after: float | None = None) -> None:
        self.problem = problem
        # Seconds, where the broker said so.
        self.retry_after = retry_after
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")


class Client:
    """Calls the API with one key. Safe to share between threads.

    Every method raises ApiRefused, NetworkError when no answer came, or pydantic's ValidationError for an argument
    that cannot be right. A POST carries an Idempotency-Key: pass the same one to repeat a call whose answer was lost.
    """

    def __init__(self, url: str, key: str | Secret, *, http: Http | None = None) -> None:
        self._base = f"{url.rstrip('/')}/api/v1"
        self._key = key if isinstance(key, Secret) else Secret(key)
        self._http = http or Http(allow_plain_loopback=True, user_agent=f"sequin-oauth-broker-client/{__version__}")

    # --- connect links -----------------------------------------------------------------------------------

    def create_link(
        self,
        end_user: str,
        *,
        email: str | None = None,
        name: str | None = None,
        apps: list[str] | None = None,
        return_url: str | None = None,
        auto_return: bool = False,
        metadata: Mapping[str, str | int | float | bool | None] | None = None,
        expires_in: int | None = None,
        connection: str | None = None,
        confirm: bool = False,
        manage: bool = False,
        idempotency_key: str | None = None,
    ) -> CreatedLinkAnswer:
        """Make a connect link for one of your users; `expires_in` is in seconds."""
        body = LinkBody(
            end_user=EndUserBody(id=end_user, email=email, name=name),
            apps=apps,
            return_url=return_url,
            auto_return=auto_return,
            metadata=None if metadata is None else dict(metadata),
            expires_in=expires_in,
            connection=connection,
            confirm=confirm,
            manage=manage,
        )
        return self._post("/connect-links", CreatedLinkAnswer, body, idempotency_key)

    def link(self, link_id: str) -> LinkAnswer:
        """Tell how far a link has come."""
        return self._call("GET", f"/connect-links/{_part(link_id)}", LinkAnswer)

    def revoke_link(self, link_id: str) -> LinkAnswer:
        """Take a link back."""
        return self._call("DELETE", f"/connect-links/{_part(link_id)}", LinkAnswer)

    def confirm(self, flow_ref: str, end_user: str, *, idempotency_key: str | None = None) -> FlowAnswer:
        """Say which of your users came back; somebody else's coming back ends the flow (ApiRefused)."""
        body = ConfirmBody(end_user_id=end_user)
        return self._post(f"/flows/{_part(flow_ref)}/confirm", FlowAnswer, body, idempotency_key)

    # --- connections -------------------------------------------------------------------------------------

    def connections(self, *, metadata: Mapping[str, str] | None = None, **filters: Any) -> Iterator[ConnectionAnswer]:
        """Yield every connection that matches, newest first; `filters` are those of the API."""
        query = ConnectionQuery.model_validate(filters)
        while True:
            page = self.connections_page(query, metadata=metadata)
            yield from page.data
            if page.next_cursor is None:
                return
            query = query.model_copy(update={"cursor": page.next_cursor})

    def connections_page(
        self, query: ConnectionQuery, *, metadata: Mapping[str, str] | None = None
    ) -> ConnectionsAnswer:
        """Return one page of connections."""
        asked = {name: str(value) for name, value in query.model_dump(mode="json", exclude_none=True).items()}
        asked |= {f"metadata.{name}": value for name, value in (metadata or {}).items()}
        return self._call("GET", f"/connections?{urlencode(asked)}", ConnectionsAnswer)

    def connection(self, ref: str) -> ConnectionAnswer:
        """Show a connection."""
        return self._call("GET", f"/connections/{_part(ref)}", ConnectionAnswer)

    def check(self, ref: str) -> AcceptedAnswer:
        """Ask for a check now."""
        return self._post(f"/connections/{_part(ref)}/check", AcceptedAnswer)

    def retry(self, ref: str) -> AcceptedAnswer:
        """Ask for the import again."""
        return self._post(f"/connections/{_part(ref)}/retry", AcceptedAnswer)

    def disconnect(self, ref: str) -> AcceptedAnswer:
        """End a connection."""
        return self._call("DELETE", f"/connections/{_part(ref)}", AcceptedAnswer)

    # --- the rest ----------------------------------------------------------------------------------------

    def apps(self) -> list[AppAnswer]:
        """List the OAuth apps that links can offer."""
        return self._call("GET", "/apps", AppsAnswer).data

    def erase_end_user(self, end_user: str) -> ErasureAnswer:
        """Disconnect everything of a person, then forget them."""
        return self._call("DELETE", f"/end-users/{_part(end_user)}", ErasureAnswer)

    def _post(
        self, path: str, answer: type[_Given], body: BaseModel | None = None, idempotency_key: str | None = None
    ) -> _Given:
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        return self._call("POST", path, answer, body=body, headers=headers)

    def _call(
        self,
        method: str,
        path: str,
        answer: type[_Given],
        *,
        body: BaseModel | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Given:
        got = self._http.request(
            method,
            self._base + path,
            headers=headers,
            json=None if body is None else body.model_dump(mode="json", exclude_none=True),
            bearer=self._key,
            deadline=DEADLINE_SECONDS,
        )
        if got.status >= 400:
            raise ApiRefused(_read(ProblemAnswer, got), _seconds(got.headers.get("Retry-After")))
        return _read(answer, got)


def _read(model: type[_Given], answer: Answer) -> _Given:
    try:
        return model.model_validate(answer.json())
    except ValidationError:
        # Its text quotes what was received.
        raise UnusableAnswer(f"HTTP {answer.status}: not an answer of the broker’s API") from None


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _part(value: str) -> str:
    return quote(value, safe="")
