"""In which language a page is, and its words in that language.

A page is in the language its address asks for (`?lang=de`), else the one this browser was given before, else the
configured one, else the one the browser likes best. What only operators and machines read stays English.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from babel import Locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from flask import Flask, g, has_request_context, request
from flask_babel import Babel, Domain, format_datetime, get_locale, gettext

from broker.settings import LANGUAGES, Branding, Settings
from broker.web import cookies

CATALOGUES = Path(__file__).parents[1] / "translations"
ENGLISH_PARTS = ("api", "console", "demo", "health")
"""What is never translated: these blueprints, and every path of machines and operators that leads nowhere."""
ENGLISH_PATHS = ("/api/", "/hooks/", "/ops/")
ENGLISH = "en"


@dataclass(frozen=True)
class OtherLanguage:
    """A language this page could be in instead."""

    code: str
    name: str


class Catalogues(Domain):  # type: ignore[misc]  # published without types
    """Reads catalogues as people write them, so that nothing has to be compiled before the pages are right."""

    def get_translations(self) -> NullTranslations:
        """Return the words of the language of the page being answered."""
        locale: Locale | None = get_locale() if has_request_context() else None
        return NullTranslations() if locale is None else _catalogue(str(locale))


@cache
def _catalogue(language: str) -> NullTranslations:
    path = CATALOGUES / language / "LC_MESSAGES" / "messages.po"
    if not path.is_file():
        return NullTranslations()
    compiled = BytesIO()
    with path.open("rb") as written:
        write_mo(compiled, read_po(written, locale=language))
    compiled.seek(0)
    return Translations(compiled)


def init_app(app: Flask, settings: Settings) -> None:
    """Let the pages of `app` speak every language there is a catalogue for."""
    app.jinja_env.policies["ext.i18n.trimmed"] = True
    babel = Babel(app, locale_selector=lambda: language(settings.branding))
    babel.domain_instance = Catalogues()
    app.jinja_env.filters["translated"] = translated
    app.jinja_env.globals["other_languages"] = other_languages
    app.jinja_env.globals["language"] = lambda: str(get_locale())


def language(branding: Branding) -> str:
    """Return the language of the page being answered."""
    if _is_english_only():
        return ENGLISH
    chosen = cookies.preference(cookies.LANGUAGE, LANGUAGES) or branding.language
    accepted = None if chosen else request.accept_languages.best_match(list(LANGUAGES))
    return chosen or accepted or ENGLISH


def translated(text: str, **words: str) -> str:
    """Return a text of ours in the language of the page, its `{names}` filled in."""
    found: str = gettext(text)
    return found.format(**words) if words else found


def product_name(branding: Branding) -> str:
    """Return what pages call the host product."""
    unnamed: str = gettext("the application")
    return unnamed if branding.name == Branding.name else branding.name


def other_languages() -> Iterator[OtherLanguage]:
    """Yield the languages a person can change to; none where the page's address would not lead here again."""
    if request.method != "GET" or request.path.startswith("/oauth/") or _is_english_only() or g.get("is_error"):
        return
    here = str(get_locale())
    for code, name in LANGUAGES.items():
        if code != here:
            yield OtherLanguage(code, name)


def in_full(moment: object) -> str:
    """Return a time as people write it, zone included: `20 Nov 2026, 10:00 UTC`."""
    # Translators: a pattern of date and time, see unicode.org/reports/tr35; UTC stays.
    text: str = format_datetime(moment, gettext("d MMM y, HH:mm 'UTC'"))
    return text


def _is_english_only() -> bool:
    return request.blueprint in ENGLISH_PARTS or request.path.startswith(ENGLISH_PATHS)
