"""Sealed files of released versions open for ever, and are what the format's page says, read here without our code."""

import hashlib
import hmac
import json
from pathlib import Path

import msgpack
import pytest
from Crypto.Cipher import AES

from modelctl.crypto import envelope
from modelctl.crypto.keys import AesKey, OpeningKey, Passphrase

GOLDEN = Path(__file__).parent / "golden"
SECRET = bytes(range(32))


@pytest.mark.parametrize(("name", "key"), [("v1", AesKey(SECRET)), ("v1-passphrase", Passphrase("word"))])
def test_released_version_opens(name: str, key: OpeningKey) -> None:
    payload = envelope.open_sealed(GOLDEN / f"{name}.sealed", [key])
    assert payload.files == {"model.onnx": b"graph"}
    assert payload.manifest.lineage[0].name == "root"


def expand(key: bytes, info: bytes, length: int, digest: str) -> bytes:
    return hmac.digest(key, info + b"\x01", digest)[:length]


@pytest.mark.parametrize("name", ["v1", "v1-passphrase"])
def test_file_is_laid_out_as_its_page_says(name: str) -> None:
    data = (GOLDEN / f"{name}.sealed").read_bytes()
    assert data[:9] == b"MCTLSEAL\x01"
    end = 13 + int.from_bytes(data[9:13], "big")
    header = msgpack.unpackb(data[13:end])
    assert list(header) == ["created_by", "stanzas"]
    (stanza,) = header["stanzas"]
    if name == "v1":
        assert list(stanza) == ["kid", "type", "wrapped"] and stanza["type"] == "aes256"
        assert stanza["kid"] == hashlib.sha256(b"modelctl/kid" + SECRET).hexdigest()
        wrapping = SECRET
    else:
        assert list(stanza) == ["kid", "log_n", "salt", "type", "wrapped"] and stanza["type"] == "scrypt"
        assert stanza["log_n"] == 17 and len(stanza["salt"]) == 16
        wrapping = hashlib.scrypt(b"word", salt=stanza["salt"], n=2**17, r=8, p=1, maxmem=2**28, dklen=32)
    content_key = AES.new(wrapping, AES.MODE_KWP).unseal(stanza["wrapped"])
    assert len(content_key) == 32

    # HKDF (RFC 5869) without salt: extract under 32 zero bytes, then expand.
    extracted = hmac.digest(bytes(32), content_key, "sha256")
    mac_key = expand(extracted, b"modelctl/sealed/v1/header", 32, "sha256")
    assert data[end : end + 32] == hmac.digest(mac_key, data[:end], "sha256")

    key = expand(extracted, b"modelctl/sealed/v1/body", 32, "sha256")
    floe, segment = data[end + 32 : end + 106], data[end + 106 :]
    assert floe[:10] == b"\0\0" + (1 << 20).to_bytes(4, "big") + (32).to_bytes(4, "big")
    info, aad = floe[:42], b"modelctl/sealed/v1"
    assert floe[42:] == expand(key, info + b"HEADER_TAG:" + aad, 32, "sha384")
    message_key = expand(key, info + b"MESSAGE_KEY:" + aad, 48, "sha384")
    segment_key = expand(message_key, info + b"DEK:" + bytes(8) + aad, 32, "sha384")
    assert int.from_bytes(segment[:4], "big") == len(segment)
    cipher = AES.new(segment_key, AES.MODE_GCM, nonce=segment[4:16])
    cipher.update(bytes(8) + b"\x01")
    body = cipher.decrypt_and_verify(segment[16:-16], segment[-16:])

    at = 4 + int.from_bytes(body[:4], "big")
    for entry in msgpack.unpackb(body[4:at]):
        file = body[at : at + entry["size"]]
        assert hashlib.sha256(file).hexdigest() == entry["sha256"]
        at += entry["size"]
        if entry["path"] == "model.onnx.manifest.json":
            assert json.loads(file)["files"][0]["path"] == "model.onnx"
    assert at == len(body) and file == b"graph"
