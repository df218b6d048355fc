"""What most tests of pages and calls stand on: a database with things in it, and the broker in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from broker.app import create_app
from broker.operators import Operators
from tests.house import House, make_settings, open_house


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    """An empty house on each database."""
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def app(house: House, tmp_path: Path) -> Iterator[Flask]:
    """The broker over that house, by its clock."""
    built = create_app(make_settings(house.settings.database_url, data_dir=tmp_path), clock=house.clock)
    yield built
    built.extensions["broker"].database.engine.dispose()


@pytest.fixture
def operators(house: House) -> Operators:
    """Who may sign in at its console."""
    return Operators(house.database, house.clock)
