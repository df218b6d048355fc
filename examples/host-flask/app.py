"""A host in about thirty lines: make a connect link, show how things stand, verify a webhook."""

from __future__ import annotations

import os

import requests
from flask import Flask, Response, redirect, render_template_string, request
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

BROKER = os.environ.get("BROKER_URL", "http://localhost:8000")
KEY = {"Authorization": f"Bearer {os.environ['BROKER_API_KEY']}"}
PORT = int(os.environ.get("PORT", "5000"))
USER = "user-42"  # whoever is signed in to your product
PAGE = """<h1>Settings</h1><form method="post" action="/connect"><button>Connect an account</button></form>
<ul>{% for one in connections %}<li>{{ one.account.name }}: {{ one.status }}, {{ one.note }}</li>{% endfor %}</ul>"""

app = Flask(__name__)


@app.get("/")
def settings() -> str:
    found = requests.get(f"{BROKER}/api/v1/connections", params={"end_user": USER}, headers=KEY, timeout=10)
    found.raise_for_status()
    return render_template_string(PAGE, connections=found.json()["data"])


@app.post("/connect")
def connect() -> Response:
    body = {"end_user": {"id": USER, "email": "ada@example.com"}, "return_url": f"http://localhost:{PORT}/"}
    made = requests.post(f"{BROKER}/api/v1/connect-links", json=body, headers=KEY, timeout=10)
    made.raise_for_status()
    return redirect(made.json()["url"], 303)


@app.post("/webhooks")
def webhook() -> tuple[str, int]:
    try:
        event = Webhook(os.environ["WEBHOOK_SECRET"]).verify(request.get_data(), dict(request.headers))
    except WebhookVerificationError:
        return "not from the broker", 400
    print(event["type"], flush=True)
    return "", 204


if __name__ == "__main__":
    app.run(port=PORT)
