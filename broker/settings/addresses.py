"""Web addresses in settings: parsed strictly, re-serialised, and held to https outside development.

Only what Python and a browser certainly read the same way is taken: ASCII, a plain host, no credentials.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from broker.settings.report import Report, Wrong

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a browser reads a host that ends so as an IPv4 address
_UNSAFE = re.compile(r"[^\x21-\x7e]|[\\\"<>^`{|}]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_Ip = TypeVar("_Ip", IPv4Address, IPv6Address)
_TRY_IT = "to try the broker on this machine set BROKER_ENV=development"


@dataclass(frozen=True)
class Address:
    """A web address in its parts, each already normalised."""

    scheme: str
    host: str
    port: int | None
    path: str
    query: str
    loopback: bool

    @property
    def origin(self) -> str:
        """The address without path and query, as browsers write it."""
        port = "" if self.port in (None, _DEFAULT_PORTS[self.scheme]) else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


def parse(text: str) -> Address:
    """Take an address apart.

    Raises:
        Wrong: it is not an address, is ambiguous, or carries credentials or a fragment.
    """
    if not text.isascii():
        raise Wrong("holds a letter outside ASCII", "write the host in its xn-- form")
    if _UNSAFE.search(text):
        raise Wrong("holds a space or another character that no web address has")
    parts, port = _split(text)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise Wrong("is not an http or https address")
    if "@" in parts.netloc:
        raise Wrong("holds a user name or password", "remove everything between // and @")
    if "#" in text:
        raise Wrong("holds a fragment", "remove the # and what follows it")
    host, loopback = _host(parts.hostname)
    return Address(parts.scheme, host, port, parts.path, parts.query, loopback)


def _split(text: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # its message quotes the text
        raise Wrong("is not an http or https address") from None
    if port == 0 or parts.netloc.endswith(":"):
        raise Wrong("has a port that does not exist")
    return parts, port


def _host(host: str) -> tuple[str, bool]:
    """Return the host as browsers write it, and whether it is this machine."""
    try:
        if ":" in host:
            six = IPv6Address(host)
            four = six.ipv4_mapped or six
            return f"[{_specified(six).compressed}]", six.is_loopback or four.is_loopback
        if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
            address = _specified(IPv4Address(host))
            return str(address), address.is_loopback
    except Wrong:
        raise
    except ValueError:  # its message quotes the text
        raise Wrong("does not name a host the way browsers read it") from None
    if not _HOST.fullmatch(host):
        raise Wrong("does not name a host the way browsers read it")
    return host, host in ("localhost", "localhost.localdomain") or host.endswith(".localhost")


def _specified(address: _Ip) -> _Ip:
    if address.is_unspecified:
        raise Wrong("names the address that means “all of this machine”", "name the host that people use")
    return address


def safe(address: Address, report: Report, *, loopback: bool = False) -> Address:
    """Return the address if the environment allows it; `loopback` allows https loopback in production too.

    Raises:
        Wrong: it is plain http where that is refused, or a loopback address in production.
    """
    if report.production and address.loopback and not loopback:
        raise Wrong("is a loopback address, which production refuses", f"write the real address; {_TRY_IT}")
    if address.scheme == "http" and report.production:
        raise Wrong("is not https", f"use https; {_TRY_IT}")
    if address.scheme == "http" and not address.loopback:
        raise Wrong("uses plain http beyond this machine", "use https, or loopback such as http://127.0.0.1:8000")
    return address


def public_origin(text: str, report: Report) -> str:
    """Parse the address of this broker: an origin that other machines reach, https outside development."""
    origin = safe(_bare(parse(text)), report).origin
    if origin.startswith("http:"):
        report.warn("BROKER_PUBLIC_URL uses plain http: cookies travel unprotected, so use it on this machine only.")
    return origin


def origins(text: str, report: Report) -> tuple[str, ...]:
    """Parse a comma-separated list of origins."""
    found = [safe(_bare(parse(part.strip())), report, loopback=True).origin for part in text.split(",") if part.strip()]
    return tuple(dict.fromkeys(found))


def networks(text: str, _report: Report) -> tuple[IPv4Network | IPv6Network, ...]:
    """Parse a comma-separated list of networks and single addresses."""
    try:
        return tuple(dict.fromkeys(ip_network(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError:
        raise Wrong("is not a list of networks") from None


def _bare(address: Address) -> Address:
    if address.path not in ("", "/") or address.query:
        raise Wrong("has a path or a query", "keep the scheme, host and port only")
    return address


def base(text: str, report: Report | None) -> str:
    """Parse the base address of an API: no query, no trailing slash. Without a report only its form is checked."""
    address = parse(text)
    if "?" in text:
        raise Wrong("has a query", "remove the ? and what follows it")
    if report is not None:
        safe(address, report)
    return address.origin + address.path.rstrip("/")


def issuer(text: str, report: Report) -> str:
    """Parse an OpenID issuer. It is compared letter by letter ever after, so it is kept exactly as it was written."""
    address = safe(parse(text), report)
    if "?" in text:
        raise Wrong("has a query", "remove the ? and what follows it")
    if "/.well-known/" in address.path:
        raise Wrong("is the address of its configuration", "write what stands before /.well-known/")
    return text


def link(text: str, report: Report) -> str:
    """Parse the address of a page or picture."""
    address = safe(parse(text), report, loopback=True)
    return address.origin + address.path + (f"?{address.query}" if address.query else "")
