"""What every template can use: the product's name, times, and the words for a status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from zlib import crc32

from flask import Flask
from flask_babel import gettext
from werkzeug.wrappers import Response

from broker.connections import ConnectionView
from broker.settings import LANGUAGES, Branding, Settings
from broker.status import Status
from broker.steps import Step, StepName, StepState
from broker.text import translatable
from broker.web import cookies, languages
from broker.web.languages import translated
from broker.web.outcome import opening

TINTS = 6

ACCOUNT_TYPES = {"User": translatable("personal account"), "Organization": translatable("organisation")}
"""Providers' words for kinds of account, in ours; what is not here stays as it is."""

THEMES = ("light", "dark")

BRAND_SHEET = (
    ".button-primary,.button-primary:hover{{background:{color};border-color:var(--brand-edge,{color});color:#fff}}\n"
)
"""The host's colour, on main buttons alone: settings accept only colours that white text can be read on."""


@dataclass(frozen=True)
class StatusWords:
    """How one status reads to the person and to operators, its colour, and the shape that stands for the colour."""

    person: str
    operator: str
    tone: str
    icon: str


STATUS_WORDS = {
    Status.DISCONNECTED: StatusWords(translatable("Disconnected"), "Disconnected", "neutral", "slash"),
    Status.REVOKED: StatusWords(translatable("Access removed"), "Revoked at provider", "bad", "cross"),
    Status.ERROR: StatusWords(translatable("Needs attention"), "Error", "bad", "alert"),
    Status.IMPORT_FAILED: StatusWords(translatable("Finishing set-up"), "Import failed", "warn", "alert"),
    Status.AWAITING_APPROVAL: StatusWords(
        translatable("Waiting for approval"), "Waiting for approval", "warn", "clock"
    ),
    Status.PENDING: StatusWords(translatable("Finishing set-up"), "Import pending", "neutral", "clock"),
    Status.UNKNOWN: StatusWords(translatable("Connected · not checked yet"), "Not checked", "neutral", "question"),
    Status.OK: StatusWords(translatable("Connected"), "Healthy", "ok", "tick"),
    Status.INTERRUPTED: StatusWords(translatable("Not finished"), "Interrupted", "warn", "alert"),
}


@dataclass(frozen=True)
class StepWords:
    """How one step reads: its name, where it stands, its colour, and the shape that stands for the colour."""

    name: str
    state: str
    tone: str
    icon: str
    # What comes before the time; empty where the time says it all.
    since: str = ""


STEP_SHAPES = {
    StepState.DONE: ("ok", "tick"),
    StepState.WAITING: ("neutral", "clock"),
    StepState.FAILED: ("bad", "alert"),
}
STEP_NAMES = {
    StepName.CONNECTED: "Connected",
    StepName.SEALED: "Sealed",
    StepName.IMPORTED: "Imported",
    StepName.VERIFIED: "Verified",
}
STEP_SENTENCES = {
    (StepName.CONNECTED, StepState.DONE): "Your permission from {provider} has arrived.",
    (StepName.IMPORTED, StepState.DONE): "{product} has received it.",
    (StepName.IMPORTED, StepState.WAITING): "This takes a minute or two.",
    (StepName.IMPORTED, StepState.FAILED): "This takes longer than usual. You do not need to do anything.",
    (StepName.VERIFIED, StepState.DONE): "We looked, and it is as it should be.",
    (StepName.VERIFIED, StepState.WAITING): "We look as soon as it is imported.",
    (StepName.VERIFIED, StepState.FAILED): "We looked, and it is no longer as it should be.",
}
"""What each step says to the person whose account it is."""
SEALED_SENTENCES = {
    True: "It is kept encrypted.",
    False: "It was kept encrypted, and erased here once it was no longer needed.",
}


def step_words(step: Step) -> StepWords:
    """Return how a step reads. What was not reached says so in words, not by its colour."""
    tone, icon = STEP_SHAPES[step.state]
    name = translated(STEP_NAMES[step.name])
    if step.state is StepState.DONE:
        return StepWords(name, "", tone, icon)
    if step.state is StepState.WAITING:
        return StepWords(name, gettext("not yet"), tone, icon)
    if step.name is StepName.IMPORTED:
        # For the person this is somebody else's to mend; a later try may well succeed.
        return StepWords(name, gettext("not yet"), "warn", icon, gettext("failing since"))
    return StepWords(name, gettext("failed"), tone, icon, gettext("since"))


def step_sentence(branding: Branding, step: Step, connection: ConnectionView) -> str:
    """Return what a step says to the person."""
    if step.name is StepName.SEALED:
        return translated(SEALED_SENTENCES[connection.holds_grant])
    product = opening(languages.product_name(branding))
    sentence = STEP_SENTENCES.get((step.name, step.state))
    return translated(sentence, provider=connection.provider_title, product=product) if sentence else ""


def init_app(app: Flask, settings: Settings) -> None:
    """Teach the templates of `app`."""
    env = app.jinja_env
    env.trim_blocks = env.lstrip_blocks = True
    env.globals["status_words"] = lambda status: STATUS_WORDS[Status(status)]
    env.globals["step_words"] = step_words
    env.globals["step_sentence"] = partial(step_sentence, settings.branding)
    env.globals["has_route"] = lambda endpoint: endpoint in app.view_functions
    env.filters["when"] = languages.in_full
    env.filters["iso"] = iso
    env.filters["tint"] = tint
    env.filters["opening"] = opening
    env.filters["account_type"] = lambda name: translated(ACCOUNT_TYPES[name]) if name in ACCOUNT_TYPES else name
    languages.init_app(app, settings)

    brand_address = "/brand.css"

    @app.context_processor
    def branding() -> dict[str, object]:
        return {
            "product": languages.product_name(settings.branding),
            "branding": settings.branding,
            "brand_address": brand_address,
            "theme": cookies.preference(cookies.THEME, THEMES) or settings.branding.theme,
        }

    @app.after_request
    def keep_preferences(response: Response) -> Response:
        if response.mimetype == "text/html":
            cookies.keep_preference(response, cookies.LANGUAGE, LANGUAGES)
            cookies.keep_preference(response, cookies.THEME, THEMES)
        return response

    if settings.branding.color:
        sheet = BRAND_SHEET.format(color=settings.branding.color)
        app.add_url_rule("/brand.css", "brand", lambda: Response(sheet, content_type="text/css; charset=utf-8"))


def iso(value: datetime) -> str:
    """Return a time as machines write it: `2026-11-20T10:00:00Z`."""
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def tint(name: str) -> int:
    """Return the number of the colour that a name always has on its letter tile."""
    return crc32(name.encode()) % TINTS
