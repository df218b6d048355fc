"""What narrows and sorts the list of connections: all of it stands in the address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from flask import url_for
from werkzeug.datastructures import MultiDict

from broker.connection_search import ConnectionFilters, Order
from broker.errors import Refused
from broker.status import Status

_Word = TypeVar("_Word", Order, Status)

MODES = ("test", "live")
FIELDS = ("q", "provider", "app", "kind", "status", "mode", "user", "from", "to")
LABELS: Mapping[str, str] = {
    "q": "Search", "provider": "Provider", "app": "OAuth app", "kind": "Kind", "status": "Status", "mode": "Mode",
    "user": "End user", "from": "From", "to": "To",
}  # fmt: skip
MEMBER = "metadata."
"""What the names of metadata filters begin with: `metadata.plan=pro`."""
MOST_MEMBERS = 20
LARGEST_START = 10**9


class NarrowingWrong(Refused):
    """The address asks for a list that cannot be narrowed so."""

    code = "list_wrong"
    status = 400
    heading = "There is a problem with the filters"
    advice = "Go back to the list, which says at each field what is wrong."


@dataclass(frozen=True)
class Active:
    """One filter that narrows the list, and the address of the list without it."""

    label: str
    value: str
    without: str


class Narrowing:
    """The query of the list's address, read once. What cannot be read is in `problems`, by field."""

    def __init__(self, query: MultiDict[str, str]) -> None:
        """Read the address's query."""
        self.wanted = {name: query.get(name, "").strip() for name in FIELDS}
        self.metadata = {
            name.removeprefix(MEMBER): value
            for name, value in query.items()
            if name.startswith(MEMBER) and name != MEMBER and value.strip()
        }
        # The form's two fields for one more.
        key, value = query.get("key", "").strip(), query.get("value", "").strip()
        if key and value:
            self.metadata[key] = value
        self.problems: dict[str, str] = {}
        if bool(key) != bool(value):
            self.problems["key"] = "Metadata needs a key and a value."
        if len(self.metadata) > MOST_MEMBERS:
            self.problems["key"] = f"At most {MOST_MEMBERS} metadata values can be compared."
        self.order = self._one_of("sort", query.get("sort", "") or Order.NEWEST, Order, "There is no such order.")
        self._status = None
        if self.wanted["status"]:
            self._status = self._one_of("status", self.wanted["status"], Status, "There is no such status.")
        if self.wanted["mode"] and self.wanted["mode"] not in MODES:
            self.problems["mode"] = "The mode is test or live."
        self._from = self._day("from")
        until = self._day("to")
        self._before = until + timedelta(days=1) if until is not None else None
        if self.order is Order.CHANGED and (self._from or self._before):
            self.problems["sort"] = "Between two days the list is sorted by day: choose newest or oldest."
        self.after = query.get("after") or None
        self.before = query.get("before") or None
        start = query.get("start", "")
        is_number = start.isascii() and start.isdecimal() and len(start) <= len(str(LARGEST_START))
        self.start = min(int(start), LARGEST_START) if is_number and (self.after or self.before) else 0

    @property
    def is_narrowed(self) -> bool:
        """Whether anything is left out of the list."""
        return any(self.wanted.values()) or bool(self.metadata)

    @property
    def query(self) -> dict[str, str]:
        """The address's query without the place in the list."""
        found = {name: value for name, value in self.wanted.items() if value}
        found |= {MEMBER + key: value for key, value in self.metadata.items()}
        if self.order not in (None, Order.NEWEST):
            found["sort"] = str(self.order)
        return found

    @property
    def filters(self) -> ConnectionFilters:
        """What the use case is asked for; only when there is no problem."""
        wanted = self.wanted
        return ConnectionFilters(
            provider=wanted["provider"] or None,
            app=wanted["app"] or None,
            kind=wanted["kind"] or None,
            status=self._status,
            mode=wanted["mode"] or None,
            end_user=wanted["user"] or None,
            metadata=self.metadata,
            search=wanted["q"] or None,
            connected_from=self._from,
            connected_before=self._before,
        )

    def address(self, **place: object) -> str:
        """Return the list's address, narrowed and sorted like this, at a place in it."""
        return url_for("console.list_connections", **(self.query | place))  # type: ignore[arg-type]

    def here(self, **more: object) -> str:
        """Return the address of the place in the list that is shown."""
        place = {"after": self.after, "before": self.before, "start": self.start or None}
        return self.address(**{name: value for name, value in place.items() if value}, **more)

    def active(self, words: Callable[[Status], str]) -> list[Active]:
        """Return each filter with the address that leaves it out; `words` names a status."""
        query = self.query
        shown = {
            name: (LABELS.get(name) or f"Metadata {name.removeprefix(MEMBER)}", value)
            for name, value in query.items()
            if name != "sort"
        }
        if self._status is not None:
            shown["status"] = (LABELS["status"], words(self._status))
        return [
            Active(
                label,
                value,
                url_for("console.list_connections", **{key: each for key, each in query.items() if key != name}),  # type: ignore[arg-type]
            )
            for name, (label, value) in shown.items()
        ]

    def _one_of(self, name: str, value: str, words: type[_Word], problem: str) -> _Word | None:
        try:
            return words(value)
        except ValueError:
            self.problems[name] = problem
            return None

    def _day(self, name: str) -> datetime | None:
        text = self.wanted[name]
        if not text:
            return None
        try:
            day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            day = None
        if day is None or not 2000 <= day.year <= 9000:
            self.problems[name] = "A day looks like 2026-11-20."
            return None
        return day
