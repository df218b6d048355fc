"""An answer that says no, raised from wherever it becomes clear."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Response, jsonify


class Refusal(Exception):
    """Ends a view with a JSON body and a status."""

    def __init__(self, status: int, body: Mapping[str, object], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}

    def response(self) -> Response:
        """Return it as an HTTP answer."""
        answer = jsonify(dict(self.body))
        answer.status_code = self.status
        answer.headers.update(dict(self.headers))
        return answer
