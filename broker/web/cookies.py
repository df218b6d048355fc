"""The cookies: names, attributes, and the two values that views read from them.

`__Host-` and Secure exactly when the public address is https. Plain http is a development mode with names
of its own, so that no browser mixes the two up.
"""

from __future__ import annotations

import re
from collections.abc import Container
from datetime import timedelta

from flask import request
from werkzeug.wrappers import Response

from broker.journal import Browser
from broker.secret import Secret, random_token
from broker.settings import Settings
from broker.web import services

BROWSER = "browser"
"""Binds links and flows to the browser that started them."""
SESSION = "session"
"""Signs an end user in."""
OPERATOR = "operator"
"""Signs an operator in; never the same cookie as an end user's."""
CSRF = "csrf"
"""Flask's own signed session: the CSRF token, and for one page the name of an account that was refused."""

LANGUAGE = "language"
THEME = "theme"
"""What an address asked for (`?lang=de`, `?theme=dark`), so that the pages that follow agree; neither is a secret."""
PREFERENCES = {LANGUAGE: "lang", THEME: "theme"}

BROWSER_LIFE = timedelta(days=7)
SESSION_LIFE = timedelta(minutes=30)

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


def cookie_name(purpose: str, settings: Settings) -> str:
    """Return the full name of the cookie for `purpose`."""
    return f"{'__Host-' if settings.secure_cookies else ''}broker_{purpose}"


def read(purpose: str) -> str | None:
    """Return the cookie for `purpose`, or None when it is absent or cannot be one of ours."""
    value = request.cookies.get(cookie_name(purpose, services().settings), "")
    return value if _TOKEN.fullmatch(value) else None


def preference(purpose: str, known: Container[str]) -> str | None:
    """Return what this page's address asks for, else what an earlier one did; None unless it is one of `known`."""
    kept = request.cookies.get(cookie_name(purpose, services().settings))
    asked = (request.args.get(PREFERENCES[purpose]), kept)
    return next((value for value in asked if value in known), None)


def keep_preference(response: Response, purpose: str, known: Container[str]) -> None:
    """Remember, until the browser is closed, what this page's address asked for."""
    asked = request.args.get(PREFERENCES[purpose])
    if asked is not None and asked in known:
        settings = services().settings
        response.set_cookie(
            cookie_name(purpose, settings), asked, path="/", secure=settings.secure_cookies, httponly=True,
            samesite="Lax",
        )  # fmt: skip


def write(response: Response, purpose: str, value: Secret, life: timedelta) -> None:
    """Set the cookie for `purpose` on `response`."""
    settings = services().settings
    response.set_cookie(
        cookie_name(purpose, settings),
        value.reveal(),
        max_age=life,
        path="/",
        secure=settings.secure_cookies,
        httponly=True,
        samesite="Lax",
    )


def forget(response: Response, purpose: str) -> None:
    """Ask the browser to drop the cookie for `purpose`."""
    settings = services().settings
    response.delete_cookie(
        cookie_name(purpose, settings), path="/", secure=settings.secure_cookies, httponly=True, samesite="Lax"
    )


def new_browser_secret() -> Secret:
    """Return a fresh 256-bit secret for a browser that has none."""
    return Secret(random_token(256))


def sign_in(
    response: Response,
    *,
    end_user_id: int,
    link_id: int | None,
    life: timedelta = SESSION_LIFE,
    by_sign_in: bool = False,
) -> None:
    """Open a session for an end user and end the one this browser had; `link_id` limits what it shows.

    `by_sign_in` says that the person signed in as themself, instead of coming by a link. Raises EndUserErased.
    """
    sessions = services().sessions
    token = sessions.open_end_user(None, end_user_id, link_id, life=life, by_sign_in=by_sign_in)
    sessions.end(read(SESSION))
    write(response, SESSION, token, life)


def this_browser() -> Browser | None:
    """Return the browser in front of us, None when it carries no secret of ours."""
    secret = read(BROWSER)
    return Browser(Secret(secret)) if secret else None


def remembering(browser: Browser | None, response: Response) -> Response:
    """Let the browser keep its secret, if it came without one."""
    if this_browser() is None:
        secret = browser.secret if browser else new_browser_secret()
        write(response, BROWSER, secret, BROWSER_LIFE)
    return response
