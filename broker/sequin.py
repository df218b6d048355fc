"""Sequin's management API: import, read and delete credentials, find and create OAuth apps.

Its documentation contradicts itself and parts of it are lost. Reading is therefore tolerant, and
everything that rests on no evidence at all stands in the block below, easy to correct.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NoReturn, Protocol

from broker.clock import Clock, SystemClock
from broker.errors import (
    AnswerTooLarge,
    SequinError,
    SequinNotFound,
    SequinRefused,
    SequinUnauthorized,
    SequinUnavailable,
    UnusableAnswer,
)
from broker.http import TOTAL_SECONDS, Answer, Http, dated, parse_json, readable, retry_after
from broker.secret import Secret

# --- assumptions without evidence ---------------------------------------------------------------------
# The paths and the bearer scheme are documented; what follows is not.

# What a call answers that would fail the same way again. Anything else from 400 up is worth another try.
REFUSALS = frozenset({400, 402, 403, 405, 409, 410, 411, 413, 414, 415, 422})
# Words for a healthy credential: two vocabularies are documented.
HEALTHY = frozenset({"ok", "healthy"})
# Properties that are no secrets and may be quoted when Sequin names them in an error; all others are masked.
CLEAR = frozenset({"kind", "name", "scope", "account_type", "account_login", "stripe_user_id"})
# The form of an id that is put into a path: UUIDs today.
ID_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
# There are no pages: the whole list comes in one answer.
LIST_BYTES = 512 * 1024 * 1024
ELEMENT_CHARACTERS = 1 << 20

FIELDS_SHOWN = 20
REASONS_SHOWN = 5


# --- what Sequin tells --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Credential:
    """A credential as Sequin shows it: its secrets are stars."""

    id: str
    provider: str | None = None
    kind: str | None = None
    oauth_app_id: str | None = None
    properties: Mapping[str, object] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, object] = field(default_factory=dict)
    health_status: str | None = None
    """None where Sequin does not report health."""
    health_notes: tuple[str, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def healthy(self) -> bool | None:
        """Whether Sequin can use it; None where Sequin does not say."""
        return None if self.health_status is None else self.health_status.lower() in HEALTHY


@dataclass(frozen=True)
class SequinOAuthApp:
    """An OAuth app registered in Sequin, without its secret."""

    id: str
    provider: str | None
    client_id: str | None
    name: str | None


# --- the client ---------------------------------------------------------------------------------------


class Watch(Protocol):
    """What is wrapped around every call; `conclusive` unless the call says little about the others."""

    def __call__(self, *, conclusive: bool) -> AbstractContextManager[None]:
        """Watch the calls inside; raises what they raise."""


class Sequin:
    """Calls Sequin; each method sends one request and repeats nothing.

    Besides the SequinErrors, every method raises NetworkError when no answer came; its `sent` says whether Sequin may
    have acted.
    """

    def __init__(
        self, http: Http, *, url: str, token: Secret, clock: Clock | None = None, watch: Watch | None = None
    ) -> None:
        """`watch` is told how every call goes."""
        self._watch = watch or (lambda **_: nullcontext())
        self._http = http
        self._url = url.rstrip("/")
        self._token = token
        self._clock = clock or SystemClock()

    def import_credential(
        self,
        *,
        properties: Mapping[str, object],
        oauth_app_id: str,
        name: str | None = None,
        metadata: Mapping[str, object] | None = None,
        deadline: float = TOTAL_SECONDS,
    ) -> Credential:
        """Create the credential, or update the one for the same upstream account: it may be repeated.

        Nothing is sent any more once `deadline`, in seconds from now, has passed.

        `metadata=None` leaves what Sequin has. Refuses here, without a request, a value made of stars alone: that is
        how Sequin shows a secret, and importing it would replace the real one.
        """
        if starred := sorted(path for path, value in _leaves(properties, "properties") if _is_starred(value)):
            raise SequinRefused(f"{starred[0]}: masked", {path: ["is masked: only stars"] for path in starred})
        if not oauth_app_id:
            raise SequinRefused("oauth_app_id: missing", {"oauth_app_id": ["is missing"]})
        body: dict[str, object] = {"properties": dict(properties), "oauth_app_id": oauth_app_id}
        if name is not None:
            body["name"] = name
        if metadata is not None:
            body["metadata"] = dict(metadata)
        with self._watch(conclusive=True):
            answer = self._call("POST", "/v1/credentials", body, secrets=_secrets_of(properties), deadline=deadline)
            return _credential(self._single(answer))

    def credential(self, id: str) -> Credential:  # noqa: A002 - it is what Sequin calls it
        """Return one credential. Raises SequinNotFound."""
        path = f"/v1/credentials/{_in_path(id)}"
        with self._watch(conclusive=True):
            return _credential(self._single(self._call("GET", path)))

    def delete_credential(self, id: str) -> bool:  # noqa: A002 - as above
        """Delete one credential; False when there was none."""
        try:
            path = f"/v1/credentials/{_in_path(id)}"
            with self._watch(conclusive=True):
                _require_deleted(self._call("DELETE", path), id)
        except SequinNotFound:
            return False
        return True

    def credentials(self, *, deadline: float = TOTAL_SECONDS) -> Iterator[Credential]:
        """Yield every credential while the list arrives. It counts as complete only if this ends without an error.

        `deadline` covers the caller's own work between two credentials too.
        """
        # Only the way in is watched: what happens while the list is read may be the reader's own doing.
        with ExitStack() as opened:
            with self._watch(conclusive=False):
                stream = opened.enter_context(
                    self._http.stream(
                        "GET",
                        f"{self._url}/v1/credentials",
                        bearer=self._token,
                        deadline=deadline,
                        max_bytes=LIST_BYTES,
                    )
                )
                if stream.status >= 400:
                    self._refuse(stream.status, stream.headers, _first(stream.chunks()), stream.where, [])
            try:
                for element in elements(stream.chunks()):
                    yield _credential(element)
            except UnusableAnswer as error:
                raise SequinUnavailable(f"{stream.where}: {error.detail}") from error

    def oauth_apps(self) -> list[SequinOAuthApp]:
        """Return every OAuth app; never asks for their secrets. Filter here: Sequin's own filters may not work."""
        # That the list is shown does not mean that imports are taken again.
        with self._watch(conclusive=False):
            return self.survey()[0]

    def survey(self, *, deadline: float = TOTAL_SECONDS) -> tuple[list[SequinOAuthApp], datetime | None]:
        """Return every OAuth app and the time by Sequin's own clock. Nobody watches how this call goes."""
        answer = self._call("GET", "/v1/oauth-apps", deadline=deadline)
        content = self._json(answer)
        listed = content.get("data") if isinstance(content, dict) else content
        if not isinstance(listed, list):
            raise SequinUnavailable("GET /v1/oauth-apps: the answer is not a list")
        return [_oauth_app(entry) for entry in listed], dated(answer.headers)

    def create_oauth_app(
        self,
        *,
        provider: str,
        client_id: str,
        client_secret: Secret,
        name: str,
        metadata: Mapping[str, object] | None = None,
    ) -> SequinOAuthApp:
        """Register an OAuth app. Repeating it makes a second one: after an error look first whether it exists."""
        body: dict[str, object] = {
            "provider": provider,
            "client_id": client_id,
            "client_secret": client_secret.reveal(),
            "name": name,
        }
        if metadata is not None:
            body["metadata"] = dict(metadata)
        with self._watch(conclusive=False):
            answer = self._call("POST", "/v1/oauth-apps", body, secrets=[client_secret.reveal()])
            return _oauth_app(self._single(answer))

    def _call(
        self,
        method: str,
        path: str,
        body: object | None = None,
        secrets: Iterable[str] = (),
        deadline: float = TOTAL_SECONDS,
    ) -> Answer:
        where = f"{method} {path}"
        try:
            answer = self._http.request(method, self._url + path, json=body, bearer=self._token, deadline=deadline)
        except UnusableAnswer as error:
            raise SequinUnavailable(error.detail) from error
        if answer.status >= 400:
            self._refuse(answer.status, answer.headers, answer.body, where, secrets)
        return answer

    def _refuse(
        self, status: int, headers: Mapping[str, str], body: bytes, where: str, secrets: Iterable[str]
    ) -> NoReturn:
        raise _error(
            status,
            f"{where}: HTTP {status}",
            _object_or_none(body, where) or {},
            [*secrets, self._token.reveal()],
            retry_after(headers, self._clock.now()),
        )

    def _json(self, answer: Answer) -> object:
        try:
            return answer.json()
        except UnusableAnswer as error:
            raise SequinUnavailable(error.detail) from error

    def _single(self, answer: Answer) -> object:
        """Return the object of an answer, bare as documented or in the list envelope as some samples show it."""
        content = self._json(answer)
        if isinstance(content, dict) and "id" not in content and "data" in content:
            content = content["data"]
        if isinstance(content, list) and len(content) == 1:
            content = content[0]
        return content


def _in_path(id: str) -> str:  # noqa: A002 - as above
    # An empty id would address the whole collection, and ".." another resource.
    if not ID_FORM.fullmatch(id):
        raise SequinNotFound("not an id of Sequin's")
    return id


def _require_deleted(answer: Answer, id: str) -> None:  # noqa: A002 - as above
    """Raise SequinUnavailable unless the answer can mean that this credential is gone: a page of somebody else cannot.

    What the answer looks like is not documented, so it may be empty and may leave anything out.
    """
    told = _object_or_none(answer.body, "DELETE") if answer.body.strip() else {}
    if told is None or told.get("id", id) != id or told.get("deleted", True) is not True:
        raise SequinUnavailable(f"DELETE /v1/credentials: HTTP {answer.status}, and not a word of its being deleted")


# --- errors -------------------------------------------------------------------------------------------


def _error(status: int, where: str, body: Mapping[str, object], secrets: list[str], wait: float | None) -> SequinError:
    fields = _fields(body.get("validation_errors"), secrets)
    said = [readable(_summary(body), secrets=secrets), *(f"{path}: {', '.join(why)}" for path, why in fields.items())]
    detail = ": ".join([where, "; ".join(part for part in said if part)]).removesuffix(": ")
    if status == 401:
        return SequinUnauthorized(detail)
    if status == 404:
        return SequinNotFound(detail)
    if status in REFUSALS:
        return SequinRefused(detail, fields)
    return SequinUnavailable(detail, wait)


def _summary(body: Mapping[str, object]) -> object:
    # Outside its own error handling Sequin answers as its framework (Phoenix) does.
    errors = body.get("errors")
    return body.get("summary") or (errors.get("detail") if isinstance(errors, Mapping) else None) or ""


def _fields(errors: object, secrets: list[str]) -> dict[str, list[str]]:
    """Return each field with its reasons: nested objects become dotted paths, and everything is capped."""
    found: dict[str, list[str]] = {}
    for path, reason in _leaves(errors, ""):
        name = readable(path, 100, secrets)
        if name not in found and len(found) == FIELDS_SHOWN:
            break
        reasons = found.setdefault(name, [])
        if len(reasons) < REASONS_SHOWN:
            reasons.append(readable(reason if isinstance(reason, str) else json.dumps(reason), secrets=secrets))
    return found


def _leaves(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield every value below `value` with its dotted path; a list's members share the list's path."""
    if depth > 8:
        return
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield from _leaves(member, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from _leaves(member, path, depth + 1)
    elif value is not None:
        yield path, value


def _is_starred(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\*+", value) is not None


def _secrets_of(properties: Mapping[str, object]) -> list[str]:
    clear = {f"properties.{name}" for name in CLEAR}
    return [
        value
        for path, value in _leaves(properties, "properties")
        if isinstance(value, str) and value and path not in clear
    ]


# --- reading, as tolerant as the documentation is uncertain -------------------------------------------


def _credential(content: object) -> Credential:
    entry, id_ = _entry(content)
    properties = entry.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    health = entry.get("health")
    health = health if isinstance(health, dict) else {}
    notes = health.get("notes")
    notes = notes if isinstance(notes, list) else []
    return Credential(
        id=id_,
        provider=_text(entry.get("provider")),
        # Listed at top level, shown inside the properties.
        kind=_text(properties.get("kind")) or _text(entry.get("kind")),
        oauth_app_id=_text(entry.get("oauth_app_id")),
        properties=properties,
        metadata=_metadata(entry.get("metadata")),
        health_status=readable(health.get("status")) or None,
        health_notes=tuple(text for note in notes if (text := readable(note))),
        created_at=moment(entry.get("created_at")),
        updated_at=moment(entry.get("updated_at")),
    )


def _oauth_app(content: object) -> SequinOAuthApp:
    entry, id_ = _entry(content)
    return SequinOAuthApp(
        id_, _text(entry.get("provider")), _text(entry.get("client_id")), readable(entry.get("name")) or None
    )


def _entry(content: object) -> tuple[dict[str, object], str]:
    """Return an object and its id, the one thing nothing can be done without."""
    found = content.get("id") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(found, str) or not ID_FORM.fullmatch(found):
        raise SequinUnavailable("the answer holds no object with an id")
    return content, found


def _text(value: object) -> str | None:
    # As it came: ids are compared exactly.
    return value if isinstance(value, str) and value else None


def _metadata(value: object) -> Mapping[str, object]:
    # Typed "string" in one place and shown as an object in all others.
    if isinstance(value, str):
        value = _object_or_none(value.encode(errors="replace"), "metadata")
    return value if isinstance(value, dict) else {}


def moment(value: object) -> datetime | None:
    """Read either of the documented forms, `2024-02-20T02:10:52Z` and `2023-12-15 01:29:29` (taken as UTC)."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _object_or_none(text: bytes, where: str) -> dict[str, object] | None:
    try:
        content = parse_json(text, where)
    except UnusableAnswer:
        return None
    return content if isinstance(content, dict) else None


def _first(chunks: Iterator[bytes]) -> bytes:
    return next(chunks, b"")


# --- a list read while it arrives ---------------------------------------------------------------------


def elements(chunks: Iterable[bytes]) -> Iterator[object]:
    """Yield the members of a JSON array, bare or as `{"data": […]}`, one at a time.

    Holds one member in memory. Raises UnusableAnswer when the text is not such a list or ends early, and
    AnswerTooLarge when one member is larger than 1 MiB.
    """
    text = _Text(chunks)
    if text.next_of("[{") == "{":
        _enter_data(text)
    if text.peek() == "]":
        text.skip(1)
    else:
        while True:
            yield text.value()
            if text.next_of(",]") == "]":
                break
    # Reading on proves that the answer is whole, and lets its connection be used again.
    text.drain()


def _enter_data(text: _Text) -> None:
    while text.peek() != "}":
        name = text.value()
        text.next_of(":")
        if name == "data":
            text.next_of("[")
            return
        text.value()
        if text.next_of(",}") == "}":
            break
    raise UnusableAnswer("the list has no data")


class _Text:
    """JSON text that arrives in pieces."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
        self._parse = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._at = 0

    def peek(self) -> str:
        """Return the next character that is no white space, without taking it."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            self._more()

    def skip(self, count: int) -> None:
        """Take `count` characters."""
        self._at += count

    def next_of(self, expected: str) -> str:
        """Take the next character, which must be one of these."""
        found = self.peek()
        if found not in expected:
            raise UnusableAnswer("the list is not JSON")
        self.skip(1)
        return found

    def value(self) -> object:
        """Take the next JSON value."""
        self.peek()
        while True:
            try:
                found, end = self._parse(self._buffer, self._at)
            except RecursionError:
                raise UnusableAnswer("a member of the list is nested too deeply") from None
            except ValueError:
                end = len(self._buffer)
            # At the very end of the buffer a number may go on, and so may anything that does not parse yet.
            if end < len(self._buffer):
                self._at = end
                return found
            if len(self._buffer) - self._at > ELEMENT_CHARACTERS:
                raise AnswerTooLarge("a member of the list is too large")
            self._more()

    def drain(self) -> None:
        """Read to the end."""
        for _ in self._chunks:
            pass

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise UnusableAnswer("the list ended early")
        self._buffer = self._buffer[self._at :] + self._decode(chunk)
        self._at = 0
