"""Small servers on this machine: a reverse proxy, with TLS if asked, and a third host that people are sent through."""

from __future__ import annotations

import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from socket import socket
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlencode, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOP_BY_HOP = {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade"}
BEEN_THERE = "signed_in"


def make_certificate(folder: Path) -> Path:
    """Write a self-signed certificate for this machine, with its key, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class Loopback(ThreadingHTTPServer):
    """A server on 127.0.0.1 in a thread of its own; `host` is the name that people use for it."""

    handler: ClassVar[type[BaseHTTPRequestHandler]]
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *, host: str = "localhost", certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self.origin = f"{'https' if certificate else 'http'}://{host}:{self.server_port}"
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; its handshake happens in the thread that answers it."""
        accepted, address = super().get_request()
        if self._tls is not None:
            assert isinstance(accepted, socket)
            accepted = self._tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        return accepted, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: browsers open connections ahead of need, and leave a certificate they do not know yet."""

    def stop(self) -> None:
        """Close it."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Keep quiet."""

    def lead(self, address: str) -> None:
        """Answer with a redirect."""
        self.send_response(302)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()


class _ThirdHostHandler(_Handler):
    server: ThirdHost

    def do_GET(self) -> None:
        self.server.seen.append(f"GET {self.path}")
        back = parse_qs(urlsplit(self.path).query).get("back")
        if back is None:
            self.send_error(404)
        else:
            self.lead(back[0])


class ThirdHost(Loopback):
    """A sign-in host of the provider's own, on another origin: `/sign-in?back=…` leads straight back."""

    handler = _ThirdHostHandler


class _ProxyHandler(_Handler):
    server: Proxy

    def do_GET(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        self._forward()

    def _forward(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        detour = self.server.detour_of(self.command, self.path)
        if detour is not None:
            self.lead(detour)
            return
        upstream = HTTPConnection("127.0.0.1", self.server.target_port, timeout=60)
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(self.command, self.path, body or None, kept)
            answer = upstream.getresponse()
            content = self.server.altered(self.path, answer.read())
        finally:
            upstream.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        if self.server.policy is not None:
            # Beside the page's own: a browser keeps both.
            self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Proxy(Loopback):
    """Passes everything on to a port of this machine, Host header included.

    With `through`, whoever opens `path` is sent to that host first, as providers do who have to sign somebody in.
    `policy` is a content security policy that every page gets besides its own; `alters` says by path what stands for
    what in an answer.
    """

    handler = _ProxyHandler
    policy: str | None = None

    def __init__(
        self,
        target_port: int,
        *,
        certificate: Path | None = None,
        through: ThirdHost | None = None,
        path: str = "/stripe/oauth/authorize",
    ) -> None:
        self.target_port = target_port
        self._through = through
        self._path = path
        self.alters: dict[str, tuple[bytes, bytes]] = {}
        super().__init__(certificate=certificate)

    def altered(self, path: str, content: bytes) -> bytes:
        """Return an answer's content as it is passed on."""
        return content.replace(*self.alters.get(urlsplit(path).path, (b"", b"")))

    def detour_of(self, method: str, path: str) -> str | None:
        """Return where a request is sent first, None when it may pass."""
        parts = urlsplit(path)
        if self._through is None or method != "GET" or parts.path != self._path or BEEN_THERE in parse_qs(parts.query):
            return None
        return f"{self._through.origin}/sign-in?{urlencode({'back': f'{self.origin}{path}&{BEEN_THERE}=1'})}"


class _HostPagesHandler(_Handler):
    server: HostPages

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/favicon.ico":
            self._answer("")
        elif path == "/cut":
            self._answer("<p>The tie is cut.</p>", **{"Cross-Origin-Opener-Policy": "same-origin"})
        elif path == "/back":
            self._answer(f"<p>You are back.</p>{self._script()}")
        else:
            self._answer(f'<p><a href="{self.server.link}" data-broker-connect>Connect Stripe</a></p>{self._script()}')

    def _script(self) -> str:
        return f'<script src="{self.server.script}" defer></script>'

    def _answer(self, body: str, **headers: str) -> None:
        page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Host</title>{body}</html>'.encode()
        self.send_response(200)
        for name, value in {"Content-Type": "text/html", "Content-Length": str(len(page)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(page)


class HostPages(Loopback):
    """A host's product: `/` offers a link, `/back` is where people return to, both with the broker's script."""

    handler = _HostPagesHandler
    link = ""
    script = ""
