"""What stops somebody from trying again and again to sign in, counted over every process."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broker.errors import Refused
from broker.models import SignInThrottle
from broker.secret import digest

WINDOW = timedelta(minutes=15)


class SignInThrottled(Refused):
    """Too many failed sign-ins for this e-mail or from this address; `minutes` says how long to wait."""

    code = "sign_in_throttled"
    status = 429
    heading = "Too many tries"
    advice = "Wait a quarter of an hour, then try again."

    def __init__(self, wait: timedelta) -> None:
        self.retry_after = max(1, math.ceil(wait.total_seconds()))
        self.minutes = math.ceil(self.retry_after / 60)
        super().__init__(f"again in {self.minutes} min")


@dataclass(frozen=True)
class Counter:
    """Something that is counted, and how often it may fail within the window."""

    key_hash: str
    most: int


def counter(name: str, most: int) -> Counter:
    """Return the counter of this name, such as `email:jo@example.com`."""
    return Counter(digest(name), most)


def network(address: str) -> str:
    """Return what counts as one address: for IPv6 the /64, since one machine may use all of it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        return (
            str(ipaddress.ip_network((parsed, 64), strict=False)) if not parsed.ipv4_mapped else str(parsed.ipv4_mapped)
        )
    return str(parsed)


def count(connection: Connection, counters: Iterable[Counter], now: datetime) -> None:
    """Count one attempt as failed, before anybody looks whether it is right: many at once cannot slip through.

    Always hand the counters over in the same order, so that no two attempts deadlock. Raises SignInThrottled.
    """
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    over = SignInThrottle.since <= now - WINDOW
    for one in counters:
        attempt = insert(SignInThrottle).values(key_hash=one.key_hash, failures=1, since=now)
        row = connection.execute(
            attempt.on_conflict_do_update(
                index_elements=["key_hash"],
                set_={
                    "failures": sa.case((over, 1), else_=SignInThrottle.failures + 1),
                    "since": sa.case((over, now), else_=SignInThrottle.since),
                },
            ).returning(SignInThrottle.failures, SignInThrottle.since)
        ).one()
        if row.failures > one.most:
            # Raised inside the transaction: an attempt that was not let through does not count.
            raise SignInThrottled(row.since + WINDOW - now)


def take_back(connection: Connection, one: Counter) -> None:
    """Take back one attempt that turned out right; the other failures stay."""
    connection.execute(
        sa.update(SignInThrottle)
        .where(SignInThrottle.key_hash == one.key_hash, SignInThrottle.failures > 0)
        .values(failures=SignInThrottle.failures - 1)
    )


def forget(connection: Connection, one: Counter) -> None:
    """Begin afresh."""
    connection.execute(sa.delete(SignInThrottle).where(SignInThrottle.key_hash == one.key_hash))
