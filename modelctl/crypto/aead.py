"""AES-256-GCM: the one place that chooses whose. `cryptography` (the extra `fast`) where installed, else pycryptodome.

Both let go of the interpreter's lock while they work, so that threads help. The bytes are the same.
"""

from collections.abc import Callable

from Crypto.Cipher import AES

TAG_BYTES = 16
NONCE_BYTES = 12

Bytes = bytes | bytearray | memoryview


class BadTag(ValueError):  # noqa: N818 - what was found, as in the libraries
    """The bytes were not made with this key, nonce and associated data."""


def portable_seal(key: bytes, nonce: bytes, data: Bytes, aad: bytes, out: memoryview) -> None:
    """Write ciphertext and tag of `data` into `out`, which is 16 bytes longer; with pycryptodome."""
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=TAG_BYTES)
    cipher.update(aad)
    cipher.encrypt(data, output=out[:-TAG_BYTES])
    out[-TAG_BYTES:] = cipher.digest()


def portable_open(key: bytes, nonce: bytes, data: Bytes, aad: bytes, out: memoryview) -> None:
    """Write the plaintext of ciphertext and tag into `out`, which is 16 bytes shorter; with pycryptodome.

    BadTag if they are not what was sealed; what is in `out` then is not to be looked at.
    """
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=TAG_BYTES)
    cipher.update(aad)
    view = memoryview(data)
    try:
        cipher.decrypt_and_verify(view[:-TAG_BYTES], bytes(view[-TAG_BYTES:]), output=out)
    except ValueError:
        raise BadTag("the tag does not fit") from None


seal: Callable[[bytes, bytes, Bytes, bytes, memoryview], None] = portable_seal
open_: Callable[[bytes, bytes, Bytes, bytes, memoryview], None] = portable_open
name = "pycryptodome"

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError:
    pass
else:

    def _fast_seal(key: bytes, nonce: bytes, data: Bytes, aad: bytes, out: memoryview) -> None:
        AESGCM(key).encrypt_into(nonce, data, aad, out)

    def _fast_open(key: bytes, nonce: bytes, data: Bytes, aad: bytes, out: memoryview) -> None:
        try:
            AESGCM(key).decrypt_into(nonce, data, aad, out)
        except InvalidTag:
            raise BadTag("the tag does not fit") from None

    seal, open_, name = _fast_seal, _fast_open, "cryptography"
