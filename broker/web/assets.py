"""Static files: their addresses, which name their content, and their packed form, made once."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from pathlib import Path

from flask import Flask, Response, request, url_for

# Pages are not packed: what an attacker may add beside a secret would show in how long they are (BREACH).
MIMETYPES = {"text/css", "text/javascript", "application/javascript", "image/svg+xml"}


class Assets:
    """The files of the static folder, read when the application is built."""

    def __init__(self, folder: Path) -> None:
        """Read and pack them."""
        contents = {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
        # The digest makes the address name the content: browsers may keep it for ever.
        self._versions = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in contents.items()}
        self._packed = {
            name: gzip.compress(content, mtime=0) for name, content in contents.items() if _mimetype(name) in MIMETYPES
        }

    def address(self, filename: str) -> str:
        """Return where browsers find a file."""
        return url_for("static", filename=filename, v=self._versions.get(filename))

    def packed(self, filename: str) -> Response | None:
        """Return a file packed, None when it is not or the browser cannot unpack it."""
        if filename not in self._packed or not request.accept_encodings["gzip"]:
            return None
        answer = Response(self._packed[filename], mimetype=_mimetype(filename))
        answer.content_encoding = "gzip"
        answer.set_etag(f"{self._versions[filename]}-gzip")
        answer.make_conditional(request)
        return answer


def init_app(app: Flask) -> None:
    """Serve the static files of `app`, packed to whoever can unpack them."""
    assets = Assets(Path(app.static_folder or "."))
    app.jinja_env.globals["asset"] = assets.address

    def static(filename: str) -> Response:
        answer = assets.packed(filename) or app.send_static_file(filename)
        answer.vary.add("Accept-Encoding")
        return answer

    app.view_functions["static"] = static


def _mimetype(filename: str) -> str | None:
    return mimetypes.guess_type(filename)[0]
