"""Every provider's canned answers: each folder here is named after the provider whose `CASE` it holds."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

import tests.providers
from tests.providers.case import Case

CASES: Mapping[str, Case] = {
    found.name: import_module(f"tests.providers.{found.name}").CASE
    for found in pkgutil.iter_modules(tests.providers.__path__)
    if found.ispkg
}
