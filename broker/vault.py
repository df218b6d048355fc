"""Sealed values: the only module that encrypts what the database keeps.

A key ring whose first key seals and whose every key opens; a subkey per record (HKDF-SHA256 with a random
salt, so that no two records share a nonce space); AES-256-GCM with associated data that names the row, so
that a ciphertext moved to another row, column or owner does not open.

Stored bytes: version (1) | length of kid (1) | kid | salt (32) | nonce (12) | ciphertext and tag.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.errors import Unreadable
from broker.settings import EncryptionKey

VERSION = 1
SALT_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_PURPOSE = b"broker/vault/record"


@dataclass(frozen=True)
class Binding:
    """The one place where a sealed value may be opened.

    `owner` is the row's own public reference, `version` the token version (0 where a row has none).
    """

    table: str
    column: str
    owner: str
    version: int = 0


class Vault:
    """Seals and opens. Holds no state but the key ring; safe to share between threads."""

    def __init__(self, keys: Sequence[EncryptionKey]) -> None:
        if not keys:
            raise ValueError("the key ring is empty")
        self._keys = {key.kid: key.key for key in keys}
        self._sealing = keys[0].kid

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys in the ring, the sealing one first."""
        return tuple(self._keys)

    def seal(self, plaintext: bytes, binding: Binding, *, kid: str | None = None) -> bytes:
        """Return `plaintext` sealed for `binding` with the ring's first key (or the one named)."""
        kid = kid or self._sealing
        return _seal(self._keys[kid], kid, plaintext, binding, os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES))

    def open(self, sealed: bytes, binding: Binding) -> bytes:
        """Return what was sealed for exactly this binding.

        Raises Unreadable whatever the reason: unknown key, another row's value, altered or short bytes.
        """
        try:
            kid, salt, nonce, ciphertext = _split(sealed)
            cipher = AESGCM(_subkey(self._keys[kid], salt, kid))
            return cipher.decrypt(nonce, ciphertext, _associated(kid, binding))
        except (InvalidTag, KeyError, ValueError, IndexError) as failure:
            raise Unreadable(f"{binding.table}.{binding.column} of {binding.owner}") from failure


def key_id(sealed: bytes) -> str:
    """Return the id of the key that sealed these bytes. Raises Unreadable if they are no sealed value."""
    try:
        return _split(sealed)[0]
    except (ValueError, IndexError) as failure:
        raise Unreadable("not a sealed value") from failure


def sealed_with(kid: str) -> bytes:
    """Return how every value begins that a key has sealed."""
    name = kid.encode()
    return bytes([VERSION, len(name)]) + name


def _seal(key: bytes, kid: str, plaintext: bytes, binding: Binding, salt: bytes, nonce: bytes) -> bytes:
    ciphertext = AESGCM(_subkey(key, salt, kid)).encrypt(nonce, plaintext, _associated(kid, binding))
    return sealed_with(kid) + salt + nonce + ciphertext


def _split(sealed: bytes) -> tuple[str, bytes, bytes, bytes]:
    if len(sealed) < 2 or sealed[0] != VERSION:
        raise ValueError("unknown version")
    start = 2 + sealed[1]
    body = sealed[start:]
    if len(body) < SALT_BYTES + NONCE_BYTES + TAG_BYTES:
        raise ValueError("too short")
    salt, nonce = body[:SALT_BYTES], body[SALT_BYTES : SALT_BYTES + NONCE_BYTES]
    return sealed[2:start].decode(), salt, nonce, body[SALT_BYTES + NONCE_BYTES :]


def _subkey(key: bytes, salt: bytes, kid: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=_PURPOSE + b"\x00" + kid.encode()).derive(key)


def _associated(kid: str, binding: Binding) -> bytes:
    # Length prefixes keep ("ab", "c") and ("a", "bc") apart.
    named = (kid, binding.table, binding.column, binding.owner, str(binding.version))
    parts = [bytes([VERSION]), *(name.encode() for name in named)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
