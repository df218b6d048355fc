"""What protects every answer: headers, CSRF, cookie settings, trusted proxies.

Nothing here is opt-in. A view can only widen its own page, by name: `allow_leaving()` for a page whose form
leads to a provider.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from flask import Flask, g, request
from flask_wtf.csrf import CSRFError, CSRFProtect
from werkzeug.exceptions import LengthRequired
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response

from broker.settings import Settings
from broker.web import request_ref
from broker.web.cookies import CSRF, cookie_name

MAX_BODY_BYTES = 256 * 1024
"""Larger bodies are refused with 413 before anything reads them; a view that must take more says so itself."""

STATIC_SECONDS = 31_536_000
"""Addresses of static files carry a digest of their content, so that browsers may keep them for a year."""

PERMISSIONS = (
    "accelerometer=(), browsing-topics=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), "
    "magnetometer=(), microphone=(), midi=(), payment=(), usb=()"
)

SECRET_ADDRESSES = ("/connect/", "/oauth/", "/sign-in/callback", "/ops/sign-in/callback")
"""Paths below these carry a token or a code in their address: no page of theirs sends it on as a referrer."""

POPUP_PATHS = ("/connect/", "/oauth/", "/flows/", "/demo/")
"""Pages a host may show in a popup: with `same-origin` the host's page would believe the popup closed."""

SCRIPT_FOR_HOSTS = "connect.js"

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
LOOPBACK_SOURCES = ("http://127.0.0.1:*", "http://localhost:*")


class OriginCheckedCsrf(CSRFProtect):  # type: ignore[misc]  # published without types
    """CSRF tokens, plus a look at who sent the form, whatever the scheme."""

    def protect(self, apply_exemptions: bool = False) -> None:
        """Refuse a form without a valid token, then one that another origin sent. Raises CSRFError."""
        super().protect(apply_exemptions=apply_exemptions)
        if g.get("csrf_valid") and not _sent_from_here():
            raise CSRFError("The form was sent from another origin.")


csrf = OriginCheckedCsrf()
"""Protects every unsafe route; a blueprint for machines calls `csrf.exempt(blueprint)`."""


def _sent_from_here() -> bool:
    # Browsers always send Origin with a form post. A client that sends neither header is not a browser,
    # and has to hold the token and its cookie anyway.
    sender = request.headers.get("Origin") or request.headers.get("Referer")
    if sender is None:
        return True
    return _origin(sender) in g.own_origins


def _origin(address: str) -> str | None:
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return f"{parts.scheme}://{parts.netloc}".lower() if parts.scheme and parts.netloc else None


def allow_leaving() -> None:
    """Let this page's form lead to a provider: the address rules of every later redirect apply to it too."""
    g.may_leave = True
    keep_own_referrer()


def keep_own_referrer() -> None:
    """Let this page's forms tell ourselves where they came from, although the page's address holds a token."""
    g.own_referrer = True


def is_ahead_of_the_person() -> bool:
    """Whether a browser or scanner asks for the page before anybody wants to see it."""
    wanted = " ".join(request.headers.get(name, "") for name in ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"))
    return request.method == "HEAD" or any(word in wanted.lower() for word in ("prefetch", "prerender", "preview"))


def init_app(app: Flask, settings: Settings) -> None:
    """Protect every route that `app` has or will have."""
    life = timedelta(minutes=settings.flow_minutes)
    app.secret_key = settings.secret_key.reveal()
    app.config.update(
        SESSION_COOKIE_NAME=cookie_name(CSRF, settings),
        SESSION_COOKIE_PATH="/",
        SESSION_COOKIE_DOMAIN=None,
        SESSION_COOKIE_SECURE=settings.secure_cookies,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        WTF_CSRF_TIME_LIMIT=int(life.total_seconds()),
        # Its Referer rule compares with the Host header; ours compares with the public address as well.
        WTF_CSRF_SSL_STRICT=False,
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        MAX_FORM_MEMORY_SIZE=MAX_BODY_BYTES,
        MAX_FORM_PARTS=200,
        SEND_FILE_MAX_AGE_DEFAULT=STATIC_SECONDS,
    )
    # A redirect that only adds a slash would be built from the Host header: match both forms instead.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    headers = SecurityHeaders(settings)

    @app.before_request
    def remember_own_origins() -> None:
        g.own_origins = {_origin(settings.public_url), *_loopback_alias(settings)}

    @app.before_request
    def want_a_length() -> None:
        # A body of unknown length cannot be refused before it is read, and a broken one fails in the middle.
        if "Transfer-Encoding" in request.headers:
            raise LengthRequired

    csrf.init_app(app)
    app.after_request(headers.on_answer)


def _loopback_alias(settings: Settings) -> Iterator[str | None]:
    """In development, 127.0.0.1 and localhost are the same place under two names."""
    if not settings.production and urlsplit(request.host_url).hostname in LOOPBACK_NAMES:
        yield _origin(request.host_url)


class SecurityHeaders:
    """The headers of every answer: pages, redirects, errors and static files."""

    def __init__(self, settings: Settings) -> None:
        """Work out what depends on the settings alone."""
        self._https = settings.secure_cookies
        images = " ".join(["'self'", "data:", *_logo_source(settings)])
        self._policy = (
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
            f"img-src {images}; frame-ancestors 'none'; base-uri 'none'; form-action "
        )
        # Browsers enforce form-action on every redirect that follows the post, and providers redirect to
        # sign-in hosts of their own: a list of hosts would break the Connect button.
        self._leaving = " ".join(["'self'", "https:", *_development_sources(settings)])

    def on_answer(self, response: Response) -> Response:
        """Put the headers on a response of the application."""
        static = request.endpoint == "static"
        for name, value in self.common().items():
            response.headers[name] = value
        response.headers["X-Request-Id"] = request_ref()
        response.headers["Content-Security-Policy"] = self._policy + (self._leaving if g.get("may_leave") else "'self'")
        hide = request.path.startswith(SECRET_ADDRESSES) and not g.get("own_referrer")
        response.headers["Referrer-Policy"] = "no-referrer" if hide else "same-origin"
        popup = request.path.startswith(POPUP_PATHS)
        response.headers["Cross-Origin-Opener-Policy"] = "unsafe-none" if popup else "same-origin"
        if static and (request.view_args or {}).get("filename") == SCRIPT_FOR_HOSTS:
            # Hosts' pages load it, with a check of its digest if they like.
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            response.headers["Access-Control-Allow-Origin"] = "*"
        response.headers["Cache-Control"] = _static_cache() if static and response.status_code < 400 else "no-store"
        return response

    def common(self) -> dict[str, str]:
        """Return the headers that depend on nothing; also for a server that answers static files by itself."""
        headers = {
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Permissions-Policy": PERMISSIONS,
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Robots-Tag": "noindex",
        }
        if self._https:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        return headers


def _static_cache() -> str:
    # The address names the content (`?v=`); without that, a day is plenty.
    return f"public, max-age={STATIC_SECONDS}, immutable" if "v" in request.args else "public, max-age=86400"


def _logo_source(settings: Settings) -> Iterator[str]:
    origin = _origin(settings.branding.logo_url or "")
    if origin is not None and origin != settings.public_url:
        yield origin


def _development_sources(settings: Settings) -> Iterator[str]:
    if settings.environment != "development":
        return
    yield from LOOPBACK_SOURCES
    addresses = (str(value) for app in settings.apps.values() for _, value in app.options)
    yield from sorted({origin for address in addresses if (origin := _origin(address)) and "http:" in origin})
