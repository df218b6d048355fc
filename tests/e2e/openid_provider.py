"""An OpenID provider that is not ours: Django OAuth Toolkit, as its documentation says to run it, with three people.

`python -m tests.e2e.openid_provider --port P --folder F --callback URL …` serves it on loopback. Its signing key is the
newest `key-*.pem` of the folder, so that a start after another was added is a rotation.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

CLIENT_ID = "oauth-broker"
CLIENT_SECRET = "SENTINEL-OPENID-CLIENT-SECRET-0123456789"
PASSWORD = "SENTINEL-PASSWORD-AT-THE-PROVIDER"
PEOPLE = {"jo": [], "sam": ["broker-admins"], "vi": ["staff", "broker-viewers"]}
"""Who there is, with their groups."""

_LOGIN = '<form method="post">{% csrf_token %}{{ form.as_p }}<button>Log in</button></form>'


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def configure(folder: Path, port: int) -> None:
    """Give Django its settings; nothing of it may be imported before."""
    from django.conf import settings

    keys = [path.read_text() for path in sorted(folder.glob("key-*.pem"), reverse=True)]
    settings.configure(
        SECRET_KEY="a secret of the provider, for tests alone",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF="tests.e2e.openid_provider",
        INSTALLED_APPS=[
            "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "provider.db")}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.PBKDF2PasswordHasher"],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [("django.template.loaders.locmem.Loader", {"registration/login.html": _LOGIN})],
                    "context_processors": ["django.template.context_processors.request"],
                },
            }
        ],
        LOGIN_URL="/login/",
        USE_TZ=True,
        # Other services of this host have cookies too.
        SESSION_COOKIE_NAME=f"provider_{port}",
        CSRF_COOKIE_NAME=f"provider_csrf_{port}",
        OAUTH2_PROVIDER={
            "OIDC_ENABLED": True,
            "OIDC_RSA_PRIVATE_KEY": keys[0],
            "OIDC_RSA_PRIVATE_KEYS_INACTIVE": keys[1:],
            "PKCE_REQUIRED": True,
            "SCOPES": {"openid": "Who you are", "email": "Your e-mail", "profile": "Your name"},
            "OAUTH2_VALIDATOR_CLASS": "tests.e2e.openid_claims.Claims",
        },
    )  # fmt: skip


def fill(callbacks: list[str]) -> None:
    """Make tables, people and the broker's registration."""
    from django.contrib.auth.models import Group, User
    from django.core.management import call_command
    from oauth2_provider.models import Application

    call_command("migrate", verbosity=0)
    for name, groups in PEOPLE.items():
        user = User.objects.create_user(name, f"{name}@example.com", PASSWORD, first_name=name.title())
        user.groups.set([Group.objects.get_or_create(name=group)[0] for group in groups])
    Application.objects.create(
        name="broker", client_id=CLIENT_ID, client_secret=CLIENT_SECRET, algorithm="RS256", skip_authorization=True,
        client_type="confidential", authorization_grant_type="authorization-code", redirect_uris=" ".join(callbacks),
    )  # fmt: skip


def __getattr__(name: str) -> Any:
    """Django asks its URL module, which is this one, for `urlpatterns` once everything is set up."""
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.contrib.auth.views import LoginView
    from django.urls import include, path

    return [path("o/", include("oauth2_provider.urls")), path("login/", LoginView.as_view())]


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--callback", action="append", required=True)
    parser.add_argument("--until-eof", action="store_true")
    asked = parser.parse_args()
    is_new = not (asked.folder / "provider.db").exists()
    configure(asked.folder, asked.port)

    import django
    from django.core.wsgi import get_wsgi_application

    django.setup()
    if is_new:
        fill(asked.callback)
    server = make_server("127.0.0.1", asked.port, get_wsgi_application(), server_class=_Server)
    if asked.until_eof:
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
