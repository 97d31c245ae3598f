"""The sealed file: what goes in comes out, and whoever changes a byte of it is found out."""

import contextlib
import hmac
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import digests, manifest
from modelctl.artifact import Artifact, Payload, manifest_path
from modelctl.crypto import envelope, floe, keys, signing, stanza
from modelctl.crypto.floe import Floe, Parameters
from modelctl.crypto.keys import AesKey, OpeningKey, Passphrase
from modelctl.errors import ArtifactError, IntegrityError, KeyFileError, ModelctlError, UsageError
from modelctl.manifest import FileEntry

Make = Callable[..., Artifact]
AES = AesKey(bytes(range(32)))
PLAIN_BYTES = Parameters().plain_bytes
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sealed(model: Artifact, out: Path, *recipients: keys.Recipient) -> Path:
    """`out`, without a manifest of its own, so that nothing but the seal itself protects it."""
    out.unlink(missing_ok=True)
    envelope.seal(model, out, recipients or (AES,), sidecars=signing.sidecars(model), threads=2)
    return out


def opened(path: Path, *given: OpeningKey) -> Payload:
    return envelope.open_sealed(path, given or (AES,))


@pytest.fixture
def small(make_artifact: Make, tmp_path: Path) -> Path:
    return sealed(make_artifact(), tmp_path / "small.sealed")


@pytest.mark.parametrize("size", [0, 1, PLAIN_BYTES - 3000, PLAIN_BYTES, PLAIN_BYTES + 1, 3 * PLAIN_BYTES])
def test_what_goes_in_comes_out(make_artifact: Make, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    model = make_artifact(data=data, more={"model.onnx.data": b"weights"})
    payload = opened(sealed(model, tmp_path / "m.sealed"))
    assert payload.manifest == model.manifest
    assert payload.files == {"model.onnx": data, "model.onnx.data": b"weights"}
    assert list(payload.files) == ["model.onnx", "model.onnx.data"]
    assert payload.signature is None


def test_body_that_ends_at_a_segment_border_comes_back(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact(data=b"")
    whole = sealed(model, tmp_path / "m.sealed").stat().st_size
    body = whole - (9 + 4 + len(stanza.encode(envelope.header_of(tmp_path / "m.sealed"))) + 32 + 74 + 32)
    ends = set()
    for offset in range(-12, 2):  # the index and the manifest grow by some bytes with the size
        data = os.urandom(PLAIN_BYTES - body + offset)
        path = sealed(make_artifact(data=data), tmp_path / "m.sealed")
        ends.add(path.stat().st_size - (whole - body - 32))
        assert opened(path).primary == data
    assert {1 << 20, (1 << 20) + 33} <= ends  # full, and one byte in a segment of its own


def test_signature_travels_inside(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    model = make_artifact()
    key = keys.private_key(str(key_folder / "ed.pem"))
    text = manifest_path(model.path).read_bytes()
    signature = signing.sign(text, key, None, "m")
    (tmp_path / "model.onnx.dsse.json").write_bytes(signature)
    payload = opened(sealed(model, tmp_path / "m.sealed"))
    assert (payload.manifest_bytes, payload.signature) == (text, signature)


def test_sealed_bytes_in_memory_open_too(small: Path) -> None:
    payload = Artifact.open(small).load()
    assert envelope.open_sealed_payload(payload, "ref", [AES]).primary == b"graph"
    changed = Payload(payload.manifest, {small.name: payload.primary[:-1] + b"\0"})
    with pytest.raises(IntegrityError, match="ref: "):
        envelope.open_sealed_payload(changed, "ref", [AES])
    with pytest.raises(KeyFileError):
        envelope.open_sealed_payload(payload, "ref", [AesKey(bytes(32))])


def test_each_of_several_recipients_opens_alone(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    public = [keys.public_key(str(key_folder / f"{name}.pub.pem")) for name in ("rsa", "rsa2")]
    path = sealed(make_artifact(), tmp_path / "m.sealed", *public, AES)
    private = [keys.private_key(str(key_folder / f"{name}.pem")) for name in ("rsa", "rsa2")]
    each: list[OpeningKey] = [*private, AES]
    for key in each:
        assert opened(path, key).primary == b"graph"
    assert opened(path, AesKey(bytes(32)), AES).primary == b"graph"


def test_passphrase_opens_and_another_does_not(make_artifact: Make, tmp_path: Path) -> None:
    path = sealed(make_artifact(), tmp_path / "m.sealed", Passphrase("word"))
    assert opened(path, Passphrase("word")).primary == b"graph"
    with pytest.raises(KeyFileError, match="the passphrase is not the one"):
        opened(path, Passphrase("World"))
    with pytest.raises(KeyFileError, match="for passphrase"):
        opened(path, AES)


def test_wrong_key_and_no_key_say_who_may_open(small: Path, key_folder: Path) -> None:
    with pytest.raises(KeyFileError, match=f"not sealed for a key that was given, but for AES key {AES.id}"):
        opened(small, AesKey(bytes(32)), keys.private_key(str(key_folder / "rsa.pem")), Passphrase("word"))
    with pytest.raises(UsageError, match=f"is sealed, for AES key {AES.id}") as caught:
        envelope.open_sealed(small, [])
    assert caught.value.hint == "--key-file KEY"


def test_recipients_come_and_go_without_the_body(make_artifact: Make, tmp_path: Path) -> None:
    one, other, third = AES, AesKey(b"o" * 32), AesKey(b"t" * 32)
    path = sealed(make_artifact(data=os.urandom(2 << 20)), tmp_path / "m.sealed", one, other)
    size, sha256 = envelope.rewrap(path, tmp_path / "n.sealed", [other], add=[third, third], remove=[one.id])
    made = tmp_path / "n.sealed"
    assert (size, sha256) == (made.stat().st_size, digests.of_file(made))
    assert path.read_bytes()[-(2 << 20) :] == made.read_bytes()[-(2 << 20) :]
    assert envelope.header_of(made).ids == (other.id, third.id)
    assert opened(made, third).files == opened(path, other).files == opened(path, one).files
    with pytest.raises(KeyFileError):
        opened(made, one)


def test_recipients_that_can_not_be_are_refused(make_artifact: Make, tmp_path: Path) -> None:
    path, out = sealed(make_artifact(), tmp_path / "m.sealed"), tmp_path / "n.sealed"
    for wrong in (
        {"remove": [AES.id]},
        {"remove": ["0" * 64]},
        {"add": [Passphrase("word")]},
        {"add": [AesKey(bytes([number]) * 32) for number in range(65)]},
    ):
        with pytest.raises(UsageError):
            envelope.rewrap(path, out, [AES], **wrong)
        out.unlink()
    with pytest.raises(KeyFileError):
        envelope.rewrap(path, out, [AesKey(bytes(32))], add=[AES])
    with pytest.raises(UsageError, match="a passphrase stands alone"):
        sealed(make_artifact(), tmp_path / "o.sealed", AES, Passphrase("word"))


def test_two_seals_of_one_artifact_share_no_segment(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact()
    one = sealed(model, tmp_path / "a.sealed").read_bytes()
    other = sealed(model, tmp_path / "b.sealed").read_bytes()
    assert len(one) == len(other) and one[-64:] != other[-64:]


def test_plaintext_does_not_show(make_artifact: Make, tmp_path: Path) -> None:
    data = sealed(make_artifact(data=b"a telling graph"), tmp_path / "m.sealed").read_bytes()
    assert b"telling" not in data and b"model.onnx" not in data and b"accuracy" not in data


def test_any_flipped_bit_is_refused(small: Path) -> None:
    whole = small.read_bytes()

    @MANY
    @given(at=st.integers(0, len(whole) - 1), bit=st.integers(0, 7))
    def flipped(at: int, bit: int) -> None:
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        small.write_bytes(changed)
        header = 13 + int.from_bytes(whole[9:13], "big")
        # In the header a changed byte can make it no header, or one for somebody else; in the body, never.
        with pytest.raises(ModelctlError if at < header else IntegrityError):
            opened(small)

    flipped()


def test_any_truncation_or_addition_is_refused(small: Path) -> None:
    whole = small.read_bytes()

    @MANY
    @given(length=st.integers(0, len(whole) - 1))
    def cut(length: int) -> None:
        small.write_bytes(whole[:length])
        with pytest.raises(IntegrityError if length >= 13 else ArtifactError):
            opened(small)

    cut()
    for more in (b"\0", b"\xff\xff\xff\xff", whole):
        small.write_bytes(whole + more)
        with pytest.raises(IntegrityError):
            opened(small)


def test_segments_moved_dropped_or_spliced_are_refused(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact(data=os.urandom(3 << 20))
    path = sealed(model, tmp_path / "m.sealed")
    one, other = path.read_bytes(), sealed(model, tmp_path / "n.sealed").read_bytes()
    start = 13 + int.from_bytes(one[9:13], "big") + 32 + floe.HEADER_BYTES
    cuts = [*range(start, len(one), 1 << 20), len(one)]
    pieces = [one[a:b] for a, b in itertools.pairwise(cuts)]
    theirs = [other[a:b] for a, b in itertools.pairwise(cuts)]
    for mixed in (
        [pieces[1], pieces[0], *pieces[2:]],
        pieces[1:],
        pieces[:-1],
        [*pieces[:-2], pieces[-1]],
        [pieces[0], pieces[0], *pieces[1:]],
        [pieces[0], theirs[1], *pieces[2:]],
        [*pieces[:-1], theirs[-1]],
        theirs,
    ):
        path.write_bytes(one[:start] + b"".join(mixed))
        with pytest.raises(IntegrityError):
            opened(path)
    path.write_bytes(one[:start] + b"".join(pieces))
    assert opened(path).manifest == model.manifest


def test_changed_bytes_are_told_from_a_wrong_key_where_a_manifest_stands(small: Path) -> None:
    entry = FileEntry(path=small.name, size=small.stat().st_size, sha256=digests.of_file(small))
    outer = manifest.Manifest(name="small", format="sealed", files=(entry,))
    manifest_path(small).write_text(outer.text())
    with pytest.raises(KeyFileError):
        opened(small, AesKey(bytes(32)))
    whole = small.read_bytes()
    for at in (0, 8, 9, 12, 20, 60, 100, len(whole) - 1):
        small.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(IntegrityError):
            opened(small)


def test_sealed_file_exchanged_for_another_sealed_for_us_is_refused(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact()
    path = sealed(model, tmp_path / "m.sealed")
    entry = FileEntry(path=path.name, size=path.stat().st_size, sha256=digests.of_file(path))
    for digest, inside in ((model.digest, "0" * 64), ("0" * 64, model.manifest_sha256)):
        seal = manifest.Encryption(suite=envelope.SUITE, recipients=(AES.id,), manifest=str(inside), digest=digest)
        outer = manifest.Manifest(name="m", format="sealed", files=(entry,), encryption=seal)
        manifest_path(path).write_text(outer.text())
        with pytest.raises(IntegrityError, match="what is inside is not what its manifest says"):
            opened(path)


def test_bytes_that_are_not_the_manifests_are_not_sealed(make_artifact: Make, tmp_path: Path) -> None:
    model = make_artifact(data=bytes(3 << 20))
    changes: list[Callable[[bytearray], Any]] = [
        lambda data: data.__setitem__(2_500_000, 1),
        lambda data: data.append(0),
        lambda data: data.pop(),
    ]
    for change in changes:
        data = bytearray(3 << 20)
        change(data)
        model.path.write_bytes(data)
        with pytest.raises(IntegrityError, match="not the ones that its manifest describes"):
            sealed(model, tmp_path / "m.sealed")


# What a recipient's public key lets anyone make: a header and a body of their own, rightly sealed.


def forged(path: Path, header: Any, body: bytes = b"", content_key: bytes = bytes(32)) -> Path:
    encoded = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    head = envelope.MAGIC + b"\x01" + len(encoded).to_bytes(4, "big") + encoded
    stream = Floe.start(envelope._derived(content_key, "body"), envelope.AAD)
    blocks = [body[start : start + PLAIN_BYTES] for start in range(0, len(body), PLAIN_BYTES)]
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    path.write_bytes(
        head
        + hmac.digest(envelope._derived(content_key, "header"), head, "sha256")
        + stream.header
        + b"".join(floe.encrypt(stream, blocks, 1))
    )
    return path


def stanza_of(**more: Any) -> dict[str, Any]:
    right = msgspec.to_builtins(stanza.wrap(bytes(32), [AES]).stanzas[0], builtin_types=(bytes,))
    return dict(sorted((right | more).items()))


def scrypt_of(log_n: Any) -> dict[str, Any]:
    return {"kid": "passphrase", "log_n": log_n, "salt": bytes(16), "type": "scrypt", "wrapped": bytes(40)}


GOOD = {"created_by": "x", "stanzas": [stanza_of()]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x91" * 60_000,
        b"\x81\xa1" + b"a" * 10,
        [],
        {},
        {"created_by": "x", "stanzas": []},
        {"created_by": "x", "stanzas": [stanza_of()] * 65},
        {"created_by": "x" * 300, "stanzas": [stanza_of()]},
        {"created_by": "x", "other": 1, "stanzas": [stanza_of()]},
        {"stanzas": [stanza_of()], "created_by": "x"},
        {"created_by": b"x", "stanzas": [stanza_of()]},
        {"created_by": "x", "stanzas": {"0": stanza_of()}},
        {"created_by": "x", "stanzas": [stanza_of(more=1)]},
        {"created_by": "x", "stanzas": [stanza_of(type="none")]},
        {"created_by": "x", "stanzas": [stanza_of(kid="A" * 64)]},
        {"created_by": "x", "stanzas": [stanza_of(kid="a" * 64 + "\n")]},
        {"created_by": "x", "stanzas": [stanza_of(wrapped="text")]},
        {"created_by": "x", "stanzas": [stanza_of(wrapped=bytes(3000))]},
        {"created_by": "x", "stanzas": [scrypt_of(17), stanza_of()]},
        {"created_by": "x", "stanzas": [scrypt_of(17), scrypt_of(17)]},
        {"created_by": "x", "stanzas": [scrypt_of(17.0)]},
        {"created_by": "x", "stanzas": [scrypt_of(0)]},
        msgspec.msgpack.encode(GOOD) + b"\0",
        msgspec.msgpack.encode(GOOD).replace(b"\xa1x", b"\xd9\x01x"),  # a longer spelling of the same
        b"\x83" + msgspec.msgpack.encode(GOOD)[1:] + msgspec.msgpack.encode("stanzas") + b"\x90",  # a key twice
    ],
)
def test_header_that_is_not_the_one_encoding_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(ArtifactError, match=r"f\.sealed: header: "):
        opened(forged(tmp_path / "f.sealed", header), AES, Passphrase("word"))


def test_the_forgery_itself_is_sound(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="less than its index lists"):
        opened(forged(tmp_path / "f.sealed", GOOD))


def test_costly_passphrase_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> bytes:
        raise AssertionError("derived")

    monkeypatch.setattr(stanza, "_derived", never)
    for log_n in (21, 40, 63, 2**63):
        with pytest.raises(ArtifactError):
            opened(forged(tmp_path / "f.sealed", {"created_by": "x", "stanzas": [scrypt_of(log_n)]}), Passphrase("x"))


def test_long_header_is_refused_before_it_is_read(small: Path) -> None:
    whole = small.read_bytes()
    for length in (65_537, 2**31, 2**32 - 1):
        small.write_bytes(whole[:9] + length.to_bytes(4, "big") + whole[13:])
        with pytest.raises(ArtifactError, match=f"a header of {length} bytes"):
            opened(small)


def test_other_version_and_other_files_are_refused(small: Path) -> None:
    whole = small.read_bytes()
    small.write_bytes(whole[:8] + b"\x02" + whole[9:])
    with pytest.raises(ArtifactError, match="version 2"):
        opened(small)
    for other in (b"", b"MCTL", os.urandom(500)):
        small.write_bytes(other)
        with pytest.raises(ArtifactError, match="not a sealed file" if other else "is empty"):
            opened(small)


def test_header_whose_mac_or_wrapped_key_is_not_right_is_refused(tmp_path: Path) -> None:
    path = forged(tmp_path / "f.sealed", GOOD, content_key=b"k" * 32)
    with pytest.raises(IntegrityError, match="the header has been changed"):
        opened(path)
    short = {"created_by": "x", "stanzas": [stanza_of(wrapped=bytes(stanza._kwp(AES.secret).seal(bytes(16))))]}
    with pytest.raises(IntegrityError, match="the header has been changed"):
        opened(forged(path, short))
    with pytest.raises(IntegrityError, match="the header has been changed"):
        opened(forged(path, {"created_by": "x", "stanzas": [stanza_of(wrapped=bytes(40))]}))


def entry_of(path: str, data: bytes, size: int | None = None) -> FileEntry:
    return FileEntry(path=path, size=len(data) if size is None else size, sha256=digests.of_bytes(data))


def body_of(*parts: tuple[FileEntry, bytes], index: bytes | None = None) -> bytes:
    encoded = stanza.encode(tuple(entry for entry, _ in parts)) if index is None else index
    return len(encoded).to_bytes(4, "big") + encoded + b"".join(data for _, data in parts)


def described(*entries: FileEntry) -> bytes:
    return manifest.Manifest(name="m", format="onnx", files=entries).text().encode()


def bodies() -> Iterator[tuple[str, bytes]]:
    data = b"graph"
    file = entry_of("m.onnx", data)
    text = described(file)
    side = entry_of("m.onnx.manifest.json", text)
    yield "nothing", b""
    yield "no index", body_of()
    yield "index too long", (2**31).to_bytes(4, "big")
    yield "index cut short", (100).to_bytes(4, "big") + b"\x91"
    yield "index of another type", body_of(index=b"\x80")
    yield "index in another encoding", body_of(index=b"\xdc\x00\x01" + stanza.encode((side,))[1:])
    yield "manifest only", body_of((side, text))
    yield "file missing", body_of((side, text), (file, b""))
    yield "file cut short", body_of((side, text), (file, data[:-1]))
    yield "more than listed", body_of((side, text), (file, data + b"x"))
    yield "file changed", body_of((side, text), (file, b"grape"))
    yield "manifest changed", body_of((side, text.replace(b'"m"', b'"n"')), (file, data))
    yield "file unlisted", body_of((side, text), (file, data), (entry_of("other", b"x"), b"x"))
    yield "another name for the manifest", body_of((entry_of("x", text), text), (file, data))
    yield "file first", body_of((file, data), (side, text))
    yield "larger than the whole", body_of((side, text), (entry_of("m.onnx", data, size=2**62), data))
    yield "file twice", body_of((side, text), (file, data), (file, data))
    bad = described(entry_of("m.onnx", data), entry_of("m.onnx.manifest.json", b"x"))
    yield (
        "sidecar listed as a file",
        body_of(
            (entry_of("m.onnx.manifest.json", bad), bad), (file, data), (entry_of("m.onnx.manifest.json", b"x"), b"x")
        ),
    )
    for path in ("../m.onnx", "/m.onnx", "sub/m.onnx"):
        away = entry_of(path, data)
        told = described(away)
        yield f"path {path}", body_of((entry_of(path + ".manifest.json", told), told), (away, data))
    loose = text.replace(b"{", b'{"unknown": 1,', 1)
    yield "manifest not strict", body_of((entry_of("m.onnx.manifest.json", loose), loose), (file, data))
    yield "manifest no JSON", body_of((entry_of("m.onnx.manifest.json", b"x"), b"x"), (file, data))


@pytest.mark.parametrize(("body"), [pytest.param(body, id=name) for name, body in bodies()])
def test_rightly_sealed_contents_that_are_not_an_artifact_are_refused(tmp_path: Path, body: bytes) -> None:
    with pytest.raises((IntegrityError, ArtifactError), match=r"f\.sealed: "):
        opened(forged(tmp_path / "f.sealed", GOOD, body))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(max_size=200), body=st.binary(max_size=200))
def test_no_bytes_make_it_stumble(tmp_path: Path, header: bytes, body: bytes) -> None:
    for path in (forged(tmp_path / "f.sealed", header), forged(tmp_path / "f.sealed", GOOD, body)):
        with pytest.raises(ModelctlError):
            opened(path)
