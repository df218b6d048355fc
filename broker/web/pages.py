"""What every template can use: the product's name, static addresses, times, and the words for a status."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

from flask import Flask, url_for
from werkzeug.wrappers import Response

from broker.settings import Settings
from broker.status import Status
from broker.web.outcome import opening

TINTS = 6

ACCOUNT_TYPES = {"User": "personal account", "Organization": "organisation"}
"""Providers' words for kinds of account, in ours; what is not here stays as it is."""

BRAND_SHEET = ".button-primary,.button-primary:hover{{background:{color};border-color:{color};color:#fff}}\n"
"""The host's colour, on main buttons alone: settings accept only colours that white text can be read on."""


@dataclass(frozen=True)
class StatusWords:
    """How one status reads to the person and to operators, its colour, and the shape that stands for the colour."""

    person: str
    operator: str
    tone: str
    icon: str


STATUS_WORDS = {
    Status.DISCONNECTED: StatusWords("Disconnected", "Disconnected", "neutral", "slash"),
    Status.REVOKED: StatusWords("Access removed", "Revoked at provider", "bad", "cross"),
    Status.ERROR: StatusWords("Needs attention", "Error", "bad", "alert"),
    Status.IMPORT_FAILED: StatusWords("Finishing set-up", "Import failed", "warn", "alert"),
    Status.AWAITING_APPROVAL: StatusWords("Waiting for approval", "Waiting for approval", "warn", "clock"),
    Status.PENDING: StatusWords("Finishing set-up", "Import pending", "neutral", "clock"),
    Status.UNKNOWN: StatusWords("Connected · not checked yet", "Not checked", "neutral", "question"),
    Status.OK: StatusWords("Connected", "Healthy", "ok", "tick"),
    Status.INTERRUPTED: StatusWords("Not finished", "Interrupted", "warn", "alert"),
}


def init_app(app: Flask, settings: Settings) -> None:
    """Teach the templates of `app`."""
    env = app.jinja_env
    env.trim_blocks = env.lstrip_blocks = True
    env.globals["asset"] = _asset(Path(app.static_folder or "."))
    env.globals["status_words"] = lambda status: STATUS_WORDS[Status(status)]
    env.filters["when"] = when
    env.filters["iso"] = iso
    env.filters["tint"] = tint
    env.filters["opening"] = opening
    env.filters["account_type"] = lambda name: ACCOUNT_TYPES.get(name, name)

    brand_address = "/brand.css"

    @app.context_processor
    def branding() -> dict[str, object]:
        return {"product": settings.branding.name, "branding": settings.branding, "brand_address": brand_address}

    if settings.branding.color:
        sheet = BRAND_SHEET.format(color=settings.branding.color)
        app.add_url_rule("/brand.css", "brand", lambda: Response(sheet, content_type="text/css; charset=utf-8"))


def when(value: datetime) -> str:
    """Return a time as people write it, zone included: `20 Nov 2026, 10:00 UTC`."""
    value = value.astimezone(UTC)
    return f"{value.day} {value:%b %Y, %H:%M} UTC"


def iso(value: datetime) -> str:
    """Return a time as machines write it: `2026-11-20T10:00:00Z`."""
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def tint(name: str) -> int:
    """Return the number of the colour that a name always has on its letter tile."""
    return crc32(name.encode()) % TINTS


def _asset(folder: Path) -> Callable[[str], str]:
    # The digest makes the address name the content: browsers may keep it for ever.
    versions = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in folder.glob("*") if path.is_file()
    }

    def asset(filename: str) -> str:
        return url_for("static", filename=filename, v=versions.get(filename))

    return asset
