"""Every failure becomes a page with a heading, advice and a reference, or problem+json for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType

import structlog
from flask import Flask, current_app, g, render_template, request, url_for
from flask_babel import gettext as _
from flask_wtf.csrf import CSRFError
from markupsafe import escape
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from broker.errors import BrokerError, FlowFailure, Refused, Verdict
from broker.web import request_ref, services
from broker.web.languages import product_name, translated
from broker.web.outcome import opening

log = structlog.get_logger("broker.errors")

MACHINE_PATHS = ("/api/", "/hooks/")
"""Callers below these paths are programs."""

RETRY_SECONDS = 30
"""What a 503 asks callers to wait."""


@dataclass(frozen=True)
class Sentence:
    """What is said of a failure: English for machines, in the language of the page for people."""

    code: str
    heading: str
    advice: str
    provider: str = ""

    @property
    def in_english(self) -> Sentence:
        """The sentence with its `{names}` filled in."""
        words = self._words(services().settings.branding.name, "the other side")
        return Sentence(self.code, opening(self.heading.format(**words)), opening(self.advice.format(**words)))

    @property
    def for_people(self) -> Sentence:
        """The sentence in the language of the page."""
        words = self._words(product_name(services().settings.branding), _("the other side"))
        return Sentence(
            self.code, opening(translated(self.heading, **words)), opening(translated(self.advice, **words))
        )

    def _words(self, host: str, nobody: str) -> dict[str, str]:
        return {"provider": self.provider or nobody, "host": host}


@dataclass(frozen=True)
class Way:
    """A way on from the page of a failure."""

    address: str
    label: str


NOT_HERE = Sentence("not_allowed_here", "That cannot be done here", "Go back and use the buttons on the page.")
UNAVAILABLE = Sentence("unavailable", "The service is not available", "Try again in a few minutes.")
BROKEN = Sentence("internal_error", BrokerError.heading, BrokerError.advice)
SENTENCES = {
    400: Sentence("bad_request", "That request was not understood", "Go back, reload the page and try again."),
    401: Sentence("sign_in_required", "Sign in again", "Your session has ended. Go back to where you started."),
    403: Sentence("forbidden", "You do not have access to this", "Ask the people who run this service for access."),
    404: Sentence("not_found", "Page not found", "Check the address, or go back to where you found the link."),
    405: NOT_HERE,
    409: Sentence("conflict", "Someone changed this first", "Reload the page to see how it is now, then try again."),
    410: Sentence("gone", "This page is gone", "Go back to where you found the link and start again."),
    413: Sentence("too_large", "That cannot be done here", "What was sent is too large."),
    415: NOT_HERE,
    429: Sentence("too_many_requests", "Too many requests", "Wait a minute, then try again."),
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
MACHINE_SENTENCES = SENTENCES | {
    404: Sentence("not_found", "There is nothing at this address", "Compare the address with /docs."),
    405: Sentence("method_not_allowed", "This address does not take that method", "Use one of those in `Allow`."),
    411: Sentence("length_required", "The body must say its length", "Send `Content-Length`; no chunked encoding."),
    413: Sentence("too_large", "The body is too large", "Send less: 256 KiB at most."),
    414: Sentence("too_large", "The address is too long", "Send less in the query."),
    415: Sentence("media_type_unsupported", "The body cannot be read", "Send JSON."),
    429: Sentence("too_many_requests", "Too many requests", "Wait for the seconds in `Retry-After`, then go on."),
}
"""What programs are told instead: no word about pages."""
STALE_FORM = Sentence(
    "form_expired", "That request was not understood", "This page was open too long. Go back, reload, try again."
)

PAGES_OF_FORMS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "connect.start": ("connect.link", "token"),
        "connect.open_manage": ("connect.link", "token"),
        "connect.start_again": ("connect.flow", "ref"),
        "connect.install": ("connect.flow", "ref"),
        "connect.choose": ("connect.flow", "ref"),
        "connect.finish": ("connect.flow", "ref"),
        "console.check_connection": ("console.show_connection", "ref"),
        "connections.check": ("connections.details", "ref"),
        "connections.connect": ("connections.index", ""),
        "connections.disconnect": ("connections.confirm_disconnect", "ref"),
        "sign_in.begin": ("sign_in.show", ""),
        "console.begin_openid": ("console.show_sign_in", ""),
        "console.do_sign_in": ("console.show_sign_in", ""),
        "console.retry_connection": ("console.show_connection", "ref"),
        "console.disconnect": ("console.confirm_disconnect", "ref"),
        "demo.connect": ("demo.index", ""),
        "demo.manage": ("demo.index", ""),
    }
)
"""Which page, known by which part of the address, holds the form that an endpoint answers."""


def init_app(app: Flask) -> None:
    """Answer every failure of `app`."""
    app.register_error_handler(BrokerError, on_broker_error)
    app.register_error_handler(CSRFError, on_stale_form)
    app.register_error_handler(HTTPException, on_http_error)
    app.register_error_handler(Exception, on_surprise)


def on_broker_error(error: BrokerError) -> Response:
    """Answer a failure that this program raised on purpose."""
    if isinstance(error, FlowFailure):
        return on_no_departure(error)
    if error.status >= 500:
        log.error("failed", error=error.code, detail=error.detail, exc_info=error)
    else:
        log.info("refused", error=error.code, detail=error.detail)
    sentence = Sentence(error.code, error.heading, error.advice)
    # What has changed meanwhile, and what only needs time, is best looked at where it was asked for.
    way = _page_before(_("Open the page again")) if error.status in {409, 429} else None
    response = answer(error.status if error.status >= 400 else 500, sentence, fields=_fields(error), way=way)
    if error.status == 503:
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    elif (wait := getattr(error, "retry_after", None)) is not None:
        response.headers["Retry-After"] = str(max(1, round(wait)))
    return response


def on_no_departure(error: FlowFailure) -> Response:
    """Answer a person who would have left for a provider in vain; why is known and was told to operators already."""
    log.info("refused", error=error.code, detail=error.detail)
    sentence = Sentence(error.code, error.heading, error.advice, error.provider)
    helps = error.verdict is not Verdict.CONFIGURATION
    response = page(503, sentence, way=_page_before(_("Go back and try again") if helps else _("Go back")))
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response


def on_stale_form(error: CSRFError) -> Response:
    """Answer a form whose CSRF token is missing, wrong or old."""
    log.info("refused", error=STALE_FORM.code, detail=error.description)
    return answer(400, STALE_FORM, way=_page_before(_("Open the page again")))


def on_http_error(error: HTTPException) -> Response:
    """Answer what the framework refused: an unknown address, a wrong method, a body too large."""
    status = error.code or 500
    if status < 400:
        return error.get_response()
    sentences = MACHINE_SENTENCES if request.path.startswith(MACHINE_PATHS) else SENTENCES
    response = answer(status, sentences.get(status) or (BROKEN if status >= 500 else sentences[400]))
    if status == 429:
        # The limits count by the second.
        response.headers["Retry-After"] = "1"
    for name, value in error.get_headers():
        if name in {"Allow", "Retry-After", "WWW-Authenticate"}:
            response.headers[name] = value
    return response


def on_surprise(error: Exception) -> Response:
    """Answer what nobody expected; the traceback goes to the log, never to the page."""
    log.error("crashed", error=type(error).__name__, exc_info=error)
    return answer(500, BROKEN)


def answer(
    status: int, sentence: Sentence, *, fields: dict[str, list[str]] | None = None, way: Way | None = None
) -> Response:
    """Return the answer for a failed request in the form its caller reads."""
    if request.path.startswith(MACHINE_PATHS):
        told = sentence.in_english
        return problem(status, told.code, told.heading, told.advice, fields=fields)
    return page(status, sentence, way=way)


def problem(status: int, code: str, title: str, detail: str, *, fields: dict[str, list[str]] | None = None) -> Response:
    """Return an RFC 9457 answer; `error_ref` is the reference that people see too."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "error_ref": request_ref(),
    }
    if fields:
        body["errors"] = fields
    return Response(json.dumps(body), status, content_type="application/problem+json")


def page(status: int, sentence: Sentence, *, way: Way | None = None) -> Response:
    """Return the page for a failed request: it needs no database, and no template engine if that is what broke."""
    g.is_error = True
    try:
        text = render_template(
            "errors/error.html",
            status=status,
            error=sentence.for_people,
            ref=request_ref(),
            way=way or _home(status),
            for_operators=_is_console(),
        )
    except Exception:
        # Whatever is wrong with the templates, the person still gets a sentence.
        log.exception("error_page_failed")
        text = _plain_page(status, sentence.in_english)
    return Response(text, status, content_type="text/html; charset=utf-8")


def _page_before(label: str) -> Way | None:
    """Return the page whose form has just been sent, None where nothing was."""
    page_of, known_by = PAGES_OF_FORMS.get(request.endpoint or "", ("", ""))
    if not page_of:
        return None
    sent = request.view_args or {}
    return Way(url_for(page_of, **({known_by: sent[known_by]} if known_by else {})), label)


def _home(status: int) -> Way | None:
    """Return the list that a page belongs to; None where nobody knows where the person came from."""
    if _is_console():
        if request.endpoint in {"console.begin_openid", "console.openid_callback"}:
            return Way(url_for("console.show_sign_in"), "Sign in")
        return Way(url_for("console.list_connections"), "All connections")
    if services().people_sign_ins is not None and (
        request.blueprint == "sign_in" or (_is_own_page() and status == 401)
    ):
        return Way(url_for("sign_in.show"), _("Sign in"))
    # Without a session the list is closed too.
    if _is_own_page() and status != 401:
        return Way(url_for("connections.index"), _("See your accounts"))
    branding = services().settings.branding
    if branding.home_url is None or status >= 500:
        return None
    return Way(branding.home_url, _("Back to %(host)s", host=product_name(branding)))


def _is_console() -> bool:
    return request.path.startswith("/ops/") and "console" in current_app.blueprints


def _is_own_page() -> bool:
    return request.blueprint == "connections"


def _plain_page(status: int, sentence: Sentence) -> str:
    title = escape(sentence.heading or HTTPStatus(status).phrase)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Error: {title}</title>'
        f"<h1>{title}</h1><p>{escape(sentence.advice)}</p><p>Reference {request_ref()}</p></html>"
    )


def _fields(error: BrokerError) -> dict[str, list[str]] | None:
    # Only refusals of ours: what Sequin or a provider did not like is not for strangers.
    return getattr(error, "fields", None) if isinstance(error, Refused) else None
