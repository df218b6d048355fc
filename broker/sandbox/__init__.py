"""Stand-ins for the providers and Sequin: real HTTP on loopback, with their quirks, and with faults on demand.

Nothing here talks to the real services, and nothing of the broker is used but its clock and its `Secret`.
"""

from __future__ import annotations

from broker.sandbox.app import create_sandbox
from broker.sandbox.secrets import Secrets, load_secrets
from broker.sandbox.server import RunningSandbox, print_environment, running, serve

__all__ = [
    "RunningSandbox",
    "Secrets",
    "create_sandbox",
    "load_secrets",
    "print_environment",
    "running",
    "serve",
]
