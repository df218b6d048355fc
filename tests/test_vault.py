"""Sealed values, judged by a second implementation written from the description alone.

The second one derives keys with hmac and hashlib (RFC 5869) and runs AES in counter mode with a GHASH of its own
(NIST SP 800-38D): the only thing it shares with the vault is the AES block function.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Unreadable
from broker.settings import EncryptionKey
from broker.vault import Binding, Vault, key_id, sealed_with

KEY = EncryptionKey("k20261120", bytes(range(32)))
OTHER = EncryptionKey("k20270101", bytes(range(100, 132)))
SALT, NONCE = bytes(range(32, 64)), bytes(range(64, 76))
HERE = Binding("connections", "grant", "7F3K-92QD-M4TX", 3)
SECRET = b'{"access_token":"canary-token-value"}'


# --- the second implementation ----------------------------------------------------------------------


def hkdf_sha256(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    pseudorandom = hmac.new(salt, key, hashlib.sha256).digest()
    block, output, number = b"", b"", 1
    while len(output) < length:
        block = hmac.new(pseudorandom, block + info + bytes([number]), hashlib.sha256).digest()
        output, number = output + block, number + 1
    return output[:length]


def aes_block(key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - one block, as GCM is built from
    return encryptor.update(block) + encryptor.finalize()


def multiply(first: int, second: int) -> int:
    product = 0
    for bit in range(127, -1, -1):
        if second >> bit & 1:
            product ^= first
        first = (first >> 1) ^ (0xE1 << 120 if first & 1 else 0)
    return product


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 16)


def gcm_encrypt(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    stream = b"".join(
        aes_block(key, nonce + (number + 2).to_bytes(4, "big")) for number in range((len(plaintext) + 15) // 16)
    )
    ciphertext = bytes(a ^ b for a, b in zip(plaintext, stream, strict=False))
    lengths = (len(associated) * 8).to_bytes(8, "big") + (len(ciphertext) * 8).to_bytes(8, "big")
    data, subkey, digest = padded(associated) + padded(ciphertext) + lengths, aes_block(key, bytes(16)), 0
    for start in range(0, len(data), 16):
        digest = multiply(digest ^ int.from_bytes(data[start : start + 16], "big"), int.from_bytes(subkey, "big"))
    mask = aes_block(key, nonce + (1).to_bytes(4, "big"))
    return ciphertext + bytes(a ^ b for a, b in zip(digest.to_bytes(16, "big"), mask, strict=True))


def second_seal(key: EncryptionKey, binding: Binding, plaintext: bytes, salt: bytes, nonce: bytes) -> bytes:
    name = key.kid.encode()
    fields = [b"\x01", name, binding.table.encode(), binding.column.encode(), binding.owner.encode()]
    fields.append(str(binding.version).encode())
    associated = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    subkey = hkdf_sha256(key.key, salt, b"broker/vault/record\x00" + name)
    return b"\x01" + bytes([len(name)]) + name + salt + nonce + gcm_encrypt(subkey, nonce, plaintext, associated)


# --- known answers ----------------------------------------------------------------------------------


def test_the_second_implementation_knows_the_published_answers() -> None:
    # RFC 5869, test case 1.
    derived = hkdf_sha256(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert derived.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    # The GCM specification, test case 16 (AES-256 with associated data).
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    plaintext = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    associated = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    sealed = gcm_encrypt(key, bytes.fromhex("cafebabefacedbaddecaf888"), plaintext, associated)
    assert sealed[-16:].hex() == "76fc6ece0f4e1768cddf8853bb2d551b"


@pytest.mark.parametrize("plaintext", [b"", b"x", SECRET, bytes(range(256)) * 5])
@pytest.mark.parametrize(
    "binding", [HERE, Binding("", "", ""), Binding("hops", "verifier", "é🎉", 0), replace(HERE, version=2**40)]
)
def test_both_implementations_seal_alike(plaintext: bytes, binding: Binding, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {len(SALT): SALT, len(NONCE): NONCE}
    monkeypatch.setattr("broker.vault.os.urandom", lambda size: drawn[size])
    expected = second_seal(KEY, binding, plaintext, SALT, NONCE)
    assert Vault([KEY]).seal(plaintext, binding) == expected
    assert Vault([KEY]).open(expected, binding) == plaintext


def test_a_value_sealed_by_the_first_release_still_opens() -> None:
    kept = bytes.fromhex(
        "01096b3230323631313230202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
        "404142434445464748494a4b"
        "992e94caf6a26aeb4566f8e491cdc65f0a713c44455461a99cc7bd0d455d4648ab9bdd1c5b38c711"
        "26ebac11496650278b0dd3cd92"
    )
    assert Vault([OTHER, KEY]).open(kept, HERE) == SECRET


# --- opening ----------------------------------------------------------------------------------------


def test_what_is_sealed_opens_and_shows_nothing() -> None:
    sealed = Vault([KEY]).seal(SECRET, HERE)
    assert Vault([KEY]).open(sealed, HERE) == SECRET
    assert b"canary" not in sealed
    assert KEY.key not in sealed


def test_sealing_twice_never_repeats_salt_or_nonce() -> None:
    sealed = [Vault([KEY]).seal(SECRET, HERE) for _ in range(50)]
    start = 2 + len(KEY.kid)
    assert len({value[start : start + 32] for value in sealed}) == 50
    assert len({value[start + 32 : start + 44] for value in sealed}) == 50


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(HERE, table="flows"),
        replace(HERE, column="other"),
        replace(HERE, owner="7F3K-92QD-M4TY"),
        replace(HERE, version=2),
        replace(HERE, version=4),
        Binding("connection", "sgrant", HERE.owner, HERE.version),
        Binding(HERE.table, HERE.column + HERE.owner, "", HERE.version),
        Binding(HERE.table, HERE.column, HERE.owner + "3", 0),
    ],
)
def test_a_moved_value_does_not_open(elsewhere: Binding) -> None:
    sealed = Vault([KEY]).seal(SECRET, HERE)
    with pytest.raises(Unreadable):
        Vault([KEY]).open(sealed, elsewhere)


def test_no_altered_byte_goes_unnoticed() -> None:
    sealed = Vault([KEY, OTHER]).seal(SECRET, HERE)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(Unreadable):
            Vault([KEY, OTHER]).open(bytes(altered), HERE)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_unreadable_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(Unreadable):
        Vault([KEY]).open(data, HERE)


def test_cut_values_are_unreadable() -> None:
    sealed = Vault([KEY]).seal(SECRET, HERE)
    for length in range(len(sealed)):
        with pytest.raises(Unreadable):
            Vault([KEY]).open(sealed[:length], HERE)


def test_an_unknown_or_a_wrong_key_opens_nothing() -> None:
    sealed = Vault([KEY]).seal(SECRET, HERE)
    for ring in ([OTHER], [EncryptionKey(KEY.kid, OTHER.key)]):
        with pytest.raises(Unreadable) as refused:
            Vault(ring).open(sealed, HERE)
        assert "canary" not in str(refused.value)


def test_the_same_key_bytes_under_another_name_do_not_open() -> None:
    renamed = EncryptionKey("k2", KEY.key)
    sealed = bytearray(Vault([KEY]).seal(SECRET, HERE))
    forged = bytes([1, 2]) + b"k2" + bytes(sealed[2 + len(KEY.kid) :])
    with pytest.raises(Unreadable):
        Vault([renamed]).open(forged, HERE)


def test_every_key_opens_and_the_first_seals() -> None:
    old = Vault([KEY]).seal(SECRET, HERE)
    rotated = Vault([OTHER, KEY])
    assert rotated.open(old, HERE) == SECRET
    assert not old.startswith(sealed_with(rotated.key_ids[0]))
    fresh = rotated.seal(SECRET, HERE)
    assert key_id(fresh) == OTHER.kid
    assert fresh.startswith(sealed_with(rotated.key_ids[0]))
    assert key_id(rotated.seal(SECRET, HERE, kid=KEY.kid)) == KEY.kid


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02abc", b"\x01\xffshort"])
def test_bytes_that_are_no_sealed_value_name_no_key(data: bytes) -> None:
    with pytest.raises(Unreadable):
        key_id(data)


def test_an_empty_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Vault([])


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=5))
def test_any_json_comes_back_as_it_was(content: dict[str, Any]) -> None:
    plaintext = json.dumps(content).encode()
    sealed = Vault([KEY]).seal(plaintext, HERE)
    assert json.loads(Vault([KEY]).open(sealed, HERE)) == content
