"""Forms are taken apart as their senders put them together, and what is no form is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.serve.multipart import MOST_PARTS, Part, parts
from modelctl.serve.refusal import Refused

KIND = b"multipart/form-data; boundary=x"


def body(*heads: bytes) -> bytes:
    return b"".join(b"--x\r\n" + head + b"\r\n\r\ncontent\r\n" for head in heads) + b"--x--\r\n"


@pytest.mark.parametrize(
    ("head", "name", "filename"),
    [
        (b'Content-Disposition: form-data; name="a"', "a", None),
        (b'content-disposition:form-data;name=a; filename="b.png"\r\nContent-Type: image/png', "a", "b.png"),
        ('Content-Disposition: form-data; filename="ü;.png"; name="é"'.encode(), "é", "ü;.png"),
        (b'Content-Type: a\r\nContent-Disposition: form-data; name="say \\"a\\""', 'say "a"', None),
        (b'Content-Disposition: form-data; name=""', "", None),
    ],
)
def test_fields(head: bytes, name: str, filename: str | None) -> None:
    assert parts(body(head), KIND) == [Part(name, filename, b"content")]


def test_contents_are_kept_byte_for_byte() -> None:
    content = bytes(range(256)) + b"\r\n--\r\n--y"
    sent = b'preamble\r\n--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + content + b"\r\n--x--\r\nepilogue"
    (found,) = parts(sent, b'Multipart/Form-Data; charset=utf-8; BOUNDARY="x"')
    assert found.content == content


@pytest.mark.parametrize(
    ("sent", "kind", "words"),
    [
        (b"", KIND, "not sound"),
        (body(b'Content-Disposition: form-data; name="a"')[:-6], KIND, "not sound"),
        (body(b'Content-Disposition: form-data; name="a"'), b"multipart/form-data", "names no boundary"),
        (body(b'Content-Disposition: form-data; name="a"'), b"multipart/form-data; boundary=y", "not sound"),
        (body(b'Content-Disposition: attachment; name="a"'), KIND, "a part has no name"),
        (body(b"Content-Disposition: form-data"), KIND, "a part has no name"),
        (body(b"A: " + b"b" * 5000), KIND, "no headers, or too long ones"),
        (b"--x\r\ncontent\r\n--x--", KIND, "no headers"),
        (body(*[b'Content-Disposition: form-data; name="a"'] * (MOST_PARTS + 1)), KIND, "more than 1024 parts"),
    ],
)
def test_what_is_no_form_is_refused(sent: bytes, kind: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words):
        parts(sent, kind)


PIECES = [b"--x", b"\r\n", b"--", b"Content-Disposition: form-data; ", b'name="a"', b"name*0*=", b"name*=utf-8''%ff"]
PIECES += [b"filename*1=", b"filename=", b";", b'"', b"\\", b"\xff", b"=", b"9" * 50, b"'", b"\0", b" "]


@settings(deadline=None, max_examples=400)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=14).map(b"".join), st.booleans())
def test_any_bytes_are_a_form_or_refused(middle: bytes, framed: bool) -> None:
    sent = b"--x\r\nContent-Disposition: form-data; " + middle + b"\r\n\r\nz\r\n--x--" if framed else middle
    try:
        found = parts(sent, KIND)
    except Refused as refused:
        assert "\n" not in refused.message
    else:
        assert all(isinstance(one.name, str) for one in found)
