"""The settings in the console: what is in force, and where each value comes from. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flask import render_template

from broker.settings import CONFIG_SETTINGS, SETTINGS, Setting, Settings
from broker.web import services

SOURCES: Mapping[str, str] = MappingProxyType(
    {"environment": "Environment", ".env": ".env", "file": "File named by _FILE", "default": "Default"}
)
"""How the places settings come from read; others stand as they are."""
_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "BROKER_ENV": "environment", "BROKER_LIMITS": "limits.enabled", "limits.flow_minutes": "flow_minutes",
        "limits.link_minutes": "link_minutes",
        **{setting.name: setting.name.replace("operators.sign_in", "operators_sign_in") for setting in CONFIG_SETTINGS
           if setting.section == "operators.sign_in"},
    }
)  # fmt: skip
"""Settings whose field is not called as they are."""


@dataclass(frozen=True)
class Shown:
    """One setting as the page shows it: a secret is only ever set or not set."""

    name: str
    meaning: str
    value: str
    source: str


def show_settings() -> str:
    """Show what is in force."""
    settings = services().settings
    return render_template("console/settings.html", settings=shown(settings), warnings=settings.warnings)


def shown(settings: Settings) -> list[Shown]:
    """Return every setting that is not an OAuth app's own."""
    found = []
    for setting in (*SETTINGS, *CONFIG_SETTINGS):
        source = settings.sources.get(setting.name, "default")
        found.append(
            Shown(setting.name, setting.meaning, _value(setting, settings, source), SOURCES.get(source, source))
        )
    return found


def _value(setting: Setting, settings: Settings, source: str) -> str:
    if setting.secret:
        return "Not set" if source == "default" else "Set, not shown"
    value: Any = settings
    for name in _FIELDS.get(setting.name, setting.name.removeprefix("BROKER_").lower()).split("."):
        if not hasattr(value, name):
            # Read at start and not kept: what it names is in force anyway.
            return "Not set" if source == "default" else "Set"
        value = getattr(value, name)
    if isinstance(value, bool):
        return "On" if value else "Off"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "None"
    return "Not set" if value in (None, "") else str(value)
