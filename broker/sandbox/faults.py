"""Scripted failures: which call fails, how, when and how often."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

POINTS = [
    "stripe.authorize",
    "stripe.token",
    "stripe.account",
    "stripe.deauthorize",
    "github.authorize",
    "github.token",
    "github.user",
    "github.installations",
    "github.memberships",
    "github.app_installation",
    "github.install",
    "github.check",
    "github.revoke",
    "github.uninstall",
    "sequin.import",
    "sequin.get",
    "sequin.list",
    "sequin.update",
    "sequin.delete",
    "sequin.oauth_apps",
]
KINDS = (
    "status", "hang", "drip", "reset", "break_off", "truncate", "html", "wrong_types", "huge", "flood", "gzip_bomb",
    "redirect",
)  # fmt: skip
MEMBERS = ("on", "fault", "when", "status", "headers", "seconds", "location", "times", "bytes", "body")
LONGEST_SECONDS = 3600.0
MOST_BYTES = 1024 * 1024 * 1024


def add_points(names: Iterable[str]) -> None:
    """Let the calls of a stand-in fail, too, under these names."""
    POINTS.extend(name for name in names if name not in POINTS)


class Unscripted(ValueError):
    """A control request that makes no sense; its text is one sentence for whoever wrote it."""


@dataclass(frozen=True)
class Fault:
    """One way to fail. `when` is before the effect, or after it (the effect happens, the answer is lost)."""

    on: str
    kind: str
    when: str = "before"
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 30.0
    location: str | None = None
    size: int = 3 * 1024 * 1024
    body: str | None = None


class Faults:
    """The faults waiting to happen. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: list[tuple[Fault, int]] = []
        self._lasting: dict[str, Fault] = {}

    def add(self, fault: Fault, times: int | None) -> None:
        """Script one. Those with `times` happen first, in the order given; without, the latest lasts until reset."""
        with self._lock:
            if times is None:
                self._lasting[fault.on] = fault
            else:
                self._counted.append((fault, times))

    def take(self, point: str) -> Fault | None:
        """Return the fault for a call that has just arrived, and count it."""
        with self._lock:
            for index, (fault, left) in enumerate(self._counted):
                if fault.on == point:
                    self._counted[index : index + 1] = [(fault, left - 1)] if left > 1 else []
                    return fault
            return self._lasting.get(point)

    def clear(self, on: str | None = None) -> None:
        """Forget those of one point, or all."""
        with self._lock:
            self._counted = [(fault, left) for fault, left in self._counted if on not in (None, fault.on)]
            self._lasting = {point: fault for point, fault in self._lasting.items() if on not in (None, point)}


def parse_fault(asked: Mapping[str, object]) -> tuple[Fault, int | None]:
    """Read a control request: the fault, and how many times it happens (None: until reset). Raises Unscripted."""
    _refuse_unknown(asked)
    fault = Fault(
        on=_one_of(asked, "on", POINTS),
        kind=_one_of(asked, "fault", KINDS),
        when=_one_of(asked, "when", ("before", "after"), "before"),
        status=_whole(asked, "status", 200, 599),
        headers=_headers(asked),
        seconds=_seconds(asked),
        location=_text(asked, "location"),
        size=_whole(asked, "bytes", 1, MOST_BYTES) or Fault.size,
        body=_text(asked, "body"),
    )
    return fault, _whole(asked, "times", 1, 1_000_000)


def _refuse_unknown(asked: Mapping[str, object]) -> None:
    unknown = sorted(set(asked) - set(MEMBERS))
    if unknown:
        raise Unscripted(f"Unknown member {unknown[0]!r}; a fault has {', '.join(MEMBERS)}.")


def _one_of(asked: Mapping[str, object], name: str, allowed: Sequence[str], default: str | None = None) -> str:
    value = asked.get(name, default)
    if isinstance(value, str) and value in allowed:
        return value
    raise Unscripted(f"{name!r} is {value!r} but must be one of {', '.join(allowed)}.")


def _whole(asked: Mapping[str, object], name: str, least: int, most: int) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise Unscripted(f"{name!r} is {value!r} but must be a whole number from {least} to {most}.")


def _seconds(asked: Mapping[str, object]) -> float:
    value = asked.get("seconds", Fault.seconds)
    # Compared this way round, a NaN is refused too.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST_SECONDS:
        return float(value)
    raise Unscripted(f"'seconds' is {value!r} but must be a number from 0 to {LONGEST_SECONDS:.0f}.")


def _text(asked: Mapping[str, object], name: str) -> str | None:
    value = asked.get(name)
    if value is None or isinstance(value, str):
        return value
    raise Unscripted(f"{name!r} must be a string.")


def _headers(asked: Mapping[str, object]) -> Mapping[str, str]:
    value = asked.get("headers") or {}
    if not isinstance(value, dict):
        raise Unscripted("'headers' must be an object of strings.")
    headers = {str(name): str(text) for name, text in value.items()}
    if any(set(name + text) & {"\r", "\n"} for name, text in headers.items()):
        raise Unscripted("'headers' may not hold line breaks.")
    return headers
