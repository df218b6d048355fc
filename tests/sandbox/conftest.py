"""Fixtures for the sandbox's own tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.clock import ManualClock
from broker.sandbox import RunningSandbox, Secrets, create_sandbox, running
from broker.sandbox.secrets import generate_secrets
from tests.sandbox.visitor import Visitor


@pytest.fixture(scope="session")
def secrets() -> Secrets:
    """One set for all tests: the RSA key in it takes a while to make."""
    return generate_secrets()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that the sandbox of this test shares."""
    return ManualClock()


@pytest.fixture
def visitor(secrets: Secrets, clock: ManualClock) -> Visitor:
    """A broker and a browser in one, without sockets."""
    app = create_sandbox(secrets, clock=clock)
    return Visitor(app.test_client(), secrets)


@pytest.fixture
def sandbox(secrets: Secrets) -> Iterator[RunningSandbox]:
    """A sandbox on a real socket."""
    with running(secrets) as served:
        yield served
