"""JWTs, made by hand and read by the server: what opens, and what must not."""

import base64
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwts
import pytest
import servers
from cryptography.hazmat.primitives import serialization
from jwts import Signer, b64, claims
from servers import eventually

from modelctl.errors import KeyFileError
from modelctl.options import May
from modelctl.serve.access import tokens
from modelctl.serve.access.kept import Kept
from modelctl.serve.refusal import Refused

SIGNERS = {alg: Signer(alg, alg) for alg in ("RS256", "ES256", "EdDSA")}


def reader(path: Path, *keys: dict[str, Any]) -> tokens.Tokens:
    """What reads tokens that are signed by these keys."""
    path.write_text(jwts.jwks(*keys))
    return tokens.Tokens(Kept([path], lambda: tokens.read(path)), jwts.ISSUER, jwts.AUDIENCE)


@pytest.fixture
def known(tmp_path: Path) -> tokens.Tokens:
    """Reads what any of the signers has signed."""
    return reader(tmp_path / "jwks.json", *(one.jwk() for one in SIGNERS.values()))


def refused(known: tokens.Tokens, token: str | bytes) -> str:
    """Why a token is refused."""
    with pytest.raises(Refused) as caught:
        known.find(token if isinstance(token, bytes) else token.encode())
    assert caught.value.status == 401
    assert caught.value.headers[0] == (b"www-authenticate", b'Bearer realm="modelctl", error="invalid_token"')
    return caught.value.message


@pytest.mark.parametrize("alg", SIGNERS)
def test_a_token_of_each_kind_of_key_tells_who_asks_and_what_he_may(known: tokens.Tokens, alg: str) -> None:
    caller = known.find(SIGNERS[alg].token().encode())
    assert (caller.name, caller.may, caller.step_s) == ("dora", frozenset(), 0.0)
    assert caller.asks("anything")
    rights = {"models": ["digits*"], "may": ["metrics"], "rate": 4, "burst": 7}
    token = SIGNERS[alg].token(claims(modelctl=rights, scope="openid modelctl:load", aud=["other", jwts.AUDIENCE]))
    caller = known.find(token.encode())
    assert caller.may == {May.LOAD, May.METRICS}
    assert (caller.asks("digits-int8"), caller.asks("other")) == (True, False)
    assert (caller.step_s, caller.burst) == (0.25, 7)
    assert known.find(token.encode()) is caller


def test_no_algorithm_but_that_of_the_key_is_taken(known: tokens.Tokens, tmp_path: Path) -> None:
    signer = SIGNERS["RS256"]
    _, body, signature = signer.token().split(".")
    for alg in ("none", "None", "nOnE", "", None, 7, ["RS256"], "HS256", "ES256", "EdDSA"):
        head = b64(json.dumps({"alg": alg, "kid": "RS256"}).encode())
        for end in ("", signature):
            refused(known, f"{head}.{body}.{end}")
    public = signer.key.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip(), der, b"", json.dumps(signer.jwk()).encode()):
        for alg in ("HS256", "RS256", "none"):
            refused(known, jwts.by_secret(secret, {"alg": alg, "kid": "RS256", "typ": "JWT"}))
    pinned = reader(tmp_path / "pinned.json", signer.jwk(alg="PS256"))
    assert "not that of its key" in refused(pinned, signer.token())


def test_a_key_that_a_token_brings_along_or_points_to_does_not_count(known: tokens.Tokens) -> None:
    other = Signer("RS256", "RS256")
    headers: tuple[dict[str, Any], ...] = (
        {},
        {"jwk": other.jwk()},
        {"jku": "http://127.0.0.1:1/jwks.json"},
        {"x5u": "http://127.0.0.1:1/"},
        {"kid": "../../../../dev/null"},
        {"kid": "absent"},
        {"kid": None},
        {"kid": ["RS256"]},
        {"kid": {"a": 1}},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"typ": "JWE"},
        {"typ": "logout+jwt"},
        {"zip": "DEF", "alg": "dir", "enc": "A256GCM"},
    )
    for header in headers:
        refused(known, other.token(header=header))
    assert known.find(SIGNERS["RS256"].token(header={"typ": "at+jwt"}).encode()).name == "dora"


@dataclass(frozen=True)
class Ago:
    """A time before now."""

    seconds: int


@pytest.mark.parametrize(
    "more",
    [
        {"exp": None},
        {"exp": Ago(31)},
        {"exp": "soon"},
        {"exp": {}},
        {"exp": True},
        {"exp": 10**30},
        {"nbf": Ago(-300)},
        {"nbf": "x"},
        {"iat": Ago(-300)},
        {"iss": None},
        {"iss": "https://issuer.example/"},
        {"iss": [jwts.ISSUER]},
        {"aud": None},
        {"aud": "other"},
        {"aud": ["other"]},
        {"aud": {}},
        {"aud": []},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 200},
        {"sub": "a\nb"},
        {"modelctl": []},
        {"modelctl": {"models": "*"}},
        {"modelctl": {"may": ["everything"]}},
        {"modelctl": {"rate": 0}},
        {"modelctl": {"rates": 1}},
        {"modelctl": {"burst": -1}},
    ],
    ids=str,
)
def test_claims_that_are_not_in_order_are_refused(known: tokens.Tokens, more: dict[str, Any]) -> None:
    now = int(time.time())  # not when tests are collected, which each process does for itself
    given = {name: now - one.seconds if isinstance(one, Ago) else one for name, one in more.items()}
    assert "\n" not in refused(known, SIGNERS["EdDSA"].token(claims(**given)))


def test_clocks_may_differ_a_little(known: tokens.Tokens) -> None:
    now = int(time.time())
    assert known.find(SIGNERS["EdDSA"].token(claims(exp=now - 10, nbf=now + 10, iat=now + 10)).encode())


def test_bombs_and_junk_are_refused_with_one_line(known: tokens.Tokens) -> None:
    signer = SIGNERS["EdDSA"]
    deep = b"[" * 9000 + b"]" * 9000
    head, body, end = signer.token().split(".")
    for token in (
        f"{b64(deep)}.{body}.{end}",
        ".".join((b64(b'{"a":' + deep + b"}"), body, end)),
        signer.token(deep),
        signer.token(b'{"exp":' + b"9" * 5000 + b"}"),
        signer.token(b'{"exp":Infinity,"iss":"https://issuer.example","aud":"modelctl","sub":"x"}'),
        signer.token(b'{"exp":NaN,"iss":"https://issuer.example","aud":"modelctl","sub":"x"}'),
        signer.token(b"\xff\xfe"),
        signer.token(b"null"),
        signer.token(b"[]"),
        signer.token(b'"x"'),
        f"{head}.{body}",
        f"{head}.{body}.{end}.{end}",
        f"{head}.{body}.{end}=",
        f"{head}.{body}.{end[:-1]}",
        f"{head}.{body}.!{end[1:]}",
        f"{head}.{body}. {end}",
        f"{head}.{b64(b'{}')}.{end}",
        f"{base64.b64encode(b'?>?>').decode()}.{body}.{end}",
        "a.b.c",
        "..",
        "",
    ):
        message = refused(known, token)
        assert len(message) < 200
        assert "\n" not in message


def test_a_token_is_remembered_until_the_keys_change_or_it_expires(tmp_path: Path) -> None:
    one, two = Signer("EdDSA", "1"), Signer("EdDSA", "2")
    path = tmp_path / "jwks.json"
    path.write_text(jwts.jwks(one.jwk()))
    kept = Kept([path], lambda: tokens.read(path))
    known = tokens.Tokens(kept, jwts.ISSUER, jwts.AUDIENCE)
    token = one.token().encode()
    assert known.find(token) is known.find(token)
    path.write_text(jwts.jwks(two.jwk()))
    kept.look(at_once=True)
    assert "not known here" in refused(known, token)
    assert known.find(two.token().encode()).name == "dora"
    many = [two.token(claims(sub=f"s{index}")).encode() for index in range(20)]
    before = tokens.REMEMBERED
    tokens.REMEMBERED = 8
    try:
        for each in many:
            known.find(each)
    finally:
        tokens.REMEMBERED = before
    assert len(known._known) <= 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not sound JSON"),
        ("[]", "not a JWKS file"),
        ('{"keys": {}}', "not a JWKS file"),
        ('{"keys": []}', "no key that signs"),
        ('{"keys": [7]}', "not a JWKS file"),
        ("[" * 5000, "nested deeper than 64"),
        (jwts.jwks({"kty": "oct", "k": "c2VjcmV0", "kid": "a"}), "a shared secret"),
        (jwts.jwks(SIGNERS["EdDSA"].jwk(), SIGNERS["EdDSA"].jwk()), "two keys"),
        (jwts.jwks(SIGNERS["EdDSA"].jwk(d="AAAA")), "a private key"),
        (jwts.jwks(SIGNERS["EdDSA"].jwk(crv="Ed448")), "a kind that is not taken"),
        (jwts.jwks(SIGNERS["RS256"].jwk(alg="HS256")), "a kind that is not taken"),
        (jwts.jwks(SIGNERS["RS256"].jwk(alg=["RS256"])), "a kind that is not taken"),
        (jwts.jwks(SIGNERS["RS256"].jwk(n="AQAB")), "key 'RS256'"),
        (jwts.jwks(SIGNERS["ES256"].jwk(x="AAAA")), "key 'ES256'"),
        (jwts.jwks(SIGNERS["EdDSA"].jwk(kid=7)), "a kid that is no text"),
        (jwts.jwks(SIGNERS["EdDSA"].jwk(use="enc")), "no key that signs"),
    ],
)
def test_a_jwks_file_that_is_not_right_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(KeyFileError) as caught:
        tokens.read(tmp_path / "jwks.json")
    assert said in caught.value.message
    assert "jwks.json" in caught.value.message


def test_without_pyjwt_it_is_said_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['jwt'] = None; from modelctl.cli.main import status_of; "
    code += "sys.exit(status_of(sys.argv[1:]))"
    (tmp_path / "jwks.json").write_text(jwts.jwks(SIGNERS["EdDSA"].jwk()))
    flags = ["--jwt-keys", "jwks.json", "--jwt-issuer", "x", "--jwt-audience", "y", "--port", "0"]
    command = [sys.executable, "-c", code, "serve", "absent.onnx", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "JWTs are read by PyJWT, which is not installed" in done.stderr
    assert "pip install 'modelctl[jwt]'" in done.stderr


def test_a_single_key_needs_no_name(tmp_path: Path) -> None:
    signer = Signer("ES256", None)
    assert reader(tmp_path / "jwks.json", signer.jwk()).find(signer.token().encode()).name == "dora"


def test_a_server_lets_in_by_token_and_tells_of_others_nothing(guarded: Any) -> None:
    def ask(token: str, path: str = "/predict/digits") -> servers.Answer:
        found: servers.Answer = guarded.server.ask(path, [[1, 2, 3, 4]], Authorization=f"Bearer {token}")
        return found

    signer = guarded.signer
    assert ask(signer.token()).status == 200
    assert ask(signer.token(claims(modelctl={"models": ["affine"]}))).status == 403
    assert ask(signer.token(claims(modelctl={"models": ["affine"]})), "/predict/affine").status == 200
    answer = ask(signer.token(claims(exp=int(time.time()) - 100)))
    assert (answer.status, answer.error) == (401, "the token has expired")
    assert ask(Signer("RS256").token()).status == 401
    assert ask("x." * 30_000).status == 401
    slow = signer.token(claims(sub="slow-one", modelctl={"rate": 0.001, "burst": 2}))
    again = signer.token(claims(sub="slow-one", modelctl={"rate": 0.001, "burst": 2}, jti="another"))
    assert [ask(one).status for one in (slow, again, slow, again)] == [200, 200, 429, 429]


def test_a_server_reads_new_signing_keys_without_a_restart(tmp_path: Path, zoo: dict[str, Path]) -> None:
    one, two = Signer("EdDSA", "1"), Signer("EdDSA", "2")
    (tmp_path / "jwks.json").write_text(jwts.jwks(one.jwk()))
    flags = ["--jwt-keys", "jwks.json", "--jwt-issuer", jwts.ISSUER, "--jwt-audience", jwts.AUDIENCE]
    with servers.running([zoo["affine"]], *flags, folder=tmp_path) as server:

        def status(signer: Signer) -> int:
            return server.ask("/v2", Authorization=f"Bearer {signer.token()}").status

        assert (status(one), status(two)) == (200, 401)
        (tmp_path / "jwks.json").write_text(jwts.jwks(one.jwk(), two.jwk()))
        eventually(lambda: status(two) == 200)
        (tmp_path / "jwks.json").write_text("{")
        server.process.send_signal(1)
        assert (status(one), status(two)) == (200, 200)
        (tmp_path / "jwks.json").write_text(jwts.jwks(two.jwk()))
        server.process.send_signal(1)
        eventually(lambda: status(one) == 401)
        assert status(two) == 200
        code, err = server.stop()
    assert (code, "what was read before stays" in err) == (0, True)
