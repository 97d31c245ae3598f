"""TLS, and clients that show certificates: real ones, over real sockets, also with curl."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from certificates import Authority
from servers import Running, eventually

from modelctl.errors import KeyFileError
from modelctl.options import KeygenOptions, KeyType
from modelctl.serve.access import tls
from modelctl.steps.keygen import keygen

ROW = [[1.0, 2.0, 3.0, 4.0]]


def trusting(authority: Authority, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """What a client trusts, and the certificate that it shows."""
    made = ssl.create_default_context(cafile=authority.certificate)
    if client is not None:
        made.load_cert_chain(*client)
    return made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs for the server."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(authority: Authority, zoo: dict[str, Path]) -> Iterator[Running]:
    """A server over TLS that asks nobody who he is."""
    cert, key = authority.sign("server")
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--timeout-s", "5"]
    with servers.running([zoo["affine"], zoo["slow"]], *flags, trust=trusting(authority)) as found:
        yield found
        assert found.stop() == (0, "")


def test_all_is_answered_over_tls(secure: Running) -> None:
    assert secure.url.startswith("https://")
    assert secure.ask("/predict/affine", ROW).status == 200
    assert secure.ask("/predict/slow", [[0.5] * 256]).status == 200
    with contextlib.closing(secure.connect()) as connection:
        for _ in range(20):
            assert servers.ask(connection, "/predict/affine", ROW).status == 200
    long = [[1.0, 2.0, 3.0, 4.0]] * 20_000
    assert len(secure.ask("/predict/affine", long).json["outputs"]["y"]) == 20_000


def test_a_client_that_says_no_more_after_its_request_is_answered_and_nobody_hears_of_it(secure: Running) -> None:
    assert secure.trust is not None
    for path in (b"affine", b"slow"):
        plain = socket.create_connection(("127.0.0.1", secure.port), timeout=10)
        with secure.trust.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"POST /predict/" + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]")
            with contextlib.suppress(OSError):
                client.unwrap()


@pytest.mark.parametrize(
    ("limits", "works"),
    [
        ((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2), True),
        ((ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3), True),
        ((ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1), False),
    ],
    ids=["1.2", "1.3", "1.1"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_is_1_2_or_newer(secure: Running, authority: Authority, limits: Any, works: bool) -> None:
    context = trusting(authority)
    context.minimum_version, context.maximum_version = limits
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # or the client itself would not speak the old ones
    plain = socket.create_connection(("127.0.0.1", secure.port), timeout=10)
    with contextlib.closing(plain):
        if not works:
            with pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(plain, server_hostname="localhost")
            return
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            assert client.version() == f"TLSv1.{limits[0].value - 0x301}"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "h2"), (["http/1.1", "h2"], "h2"), (["spdy/3"], None)],
)
def test_alpn_chooses_http_2_where_the_client_speaks_it(
    secure: Running, authority: Authority, offered: list[str], chosen: str | None
) -> None:
    context = trusting(authority)
    context.set_alpn_protocols(offered)
    plain = socket.create_connection(("127.0.0.1", secure.port), timeout=10)
    with context.wrap_socket(plain, server_hostname="localhost") as client:
        assert client.selected_alpn_protocol() == chosen


def test_a_connection_that_a_client_keeps_in_store_does_not_keep_the_server(
    authority: Authority, zoo: dict[str, Path]
) -> None:
    cert, key = authority.sign("server5")
    flags = ["--tls-cert", str(cert), "--tls-key", str(key)]
    with servers.running([zoo["affine"]], *flags, trust=trusting(authority)) as server:
        with contextlib.closing(server.connect()) as connection:
            assert servers.ask(connection, "/v2").status == 200
            server.process.send_signal(15)
            server.process.wait(15)  # the loop's own patience with such a client is 30 seconds
        assert server.ended() == (0, "")


def test_who_speaks_no_tls_or_stops_in_the_middle_harms_nobody(secure: Running) -> None:
    for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 100, b""):
        with socket.create_connection(("127.0.0.1", secure.port), timeout=10) as client:
            client.sendall(data)
            if data and data[0] != 0x16:
                client.settimeout(10)
                with contextlib.suppress(ConnectionResetError):
                    assert b"HTTP/1.1 200" not in client.recv(1 << 16)
    assert secure.ask("/v2").status == 200


def test_certificates_are_read_anew_when_they_change_and_a_broken_one_is_refused(
    authority: Authority, zoo: dict[str, Path], tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(name: str) -> None:
        first, second = authority.sign(name)
        shutil.copy(first, cert)
        shutil.copy(second, key)
        key.chmod(0o600)

    put("one")
    flags = ["--tls-cert", str(cert), "--tls-key", str(key)]
    with servers.running([zoo["affine"]], *flags, trust=trusting(authority)) as server:

        def shown() -> str:
            assert server.trust is not None
            plain = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            with server.trust.wrap_socket(plain, server_hostname="localhost") as client:
                found: Any = client.getpeercert()
                return str(dict(part[0] for part in found["subject"])["commonName"])

        with contextlib.closing(server.connect()) as old:
            assert servers.ask(old, "/v2").status == 200
            assert shown() == "one"
            put("two")
            eventually(lambda: shown() == "two")
            assert servers.ask(old, "/v2").status == 200
            key.write_text("no key")
            server.process.send_signal(1)
            assert shown() == "two"
            put("three")
            server.process.send_signal(1)
            eventually(lambda: shown() == "three")
        status, err = server.stop()
    assert status == 0
    assert "what was read before stays" in err


def test_with_a_client_ca_only_those_are_let_in_whom_it_has_signed(
    authority: Authority, zoo: dict[str, Path], tmp_path: Path
) -> None:
    cert, key = authority.sign("server2")
    clients = Authority(tmp_path, "clients")
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(clients.certificate)]
    mine = trusting(authority, clients.sign("carol"))
    with servers.running([zoo["affine"]], *flags, trust=mine) as server:
        assert server.ask("/predict/affine", ROW).status == 200
        assert server.ask("/metrics").status == 200
        for other in (
            trusting(authority),
            trusting(authority, authority.sign("mallory")),
            trusting(authority, clients.sign("late", days=-1)),
        ):
            stranger = Running(server.process, server.url, other)
            with pytest.raises(OSError, match=r"(?i)certificate|alert|reset|EOF|closed"):
                stranger.ask("/v2")
        assert server.stop() == (0, "")


def test_a_certificates_name_is_bound_to_the_rights_of_a_key(
    authority: Authority, zoo: dict[str, Path], tmp_path: Path
) -> None:
    cert, key = authority.sign("server3")
    clients = Authority(tmp_path, "clients")
    keygen(tmp_path / "root.key", KeygenOptions(type=KeyType.API))
    text = (tmp_path / "keys.toml").read_text()
    text += '[keys.carol]\ncertificate = "CN=carol"\nmodels = ["affine"]\n'
    text += '[keys.robot]\ncertificate = "URI:spiffe://example/robot"\nmodels = ["pair"]\nmay = ["metrics"]\n'
    (tmp_path / "keys.toml").write_text(text)
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(clients.certificate)]
    flags += ["--api-keys", str(tmp_path / "keys.toml")]
    carol = trusting(authority, clients.sign("carol"))
    with servers.running([zoo["affine"], zoo["pair"]], *flags, trust=carol) as server:
        assert server.ask("/predict/affine", ROW).status == 200
        answer = server.ask("/predict/pair", {})
        assert (answer.status, answer.error) == (403, "carol may not ask this model, or there is none")
        assert server.ask("/metrics").status == 403
        robot = Running(
            server.process, server.url, trusting(authority, clients.sign("carol2", "spiffe://example/robot"))
        )
        assert robot.ask("/metrics").status == 200
        assert robot.ask("/predict/affine", ROW).status == 403
        nobody = Running(server.process, server.url, trusting(authority, clients.sign("dave")))
        assert nobody.ask("/v2").status == 401
        assert nobody.ask("/v2/health/live").status == 200
        assert nobody.ask("/v2", X_Api_Key=(tmp_path / "root.key").read_text().strip()).status == 200
        assert server.ask("/v2", X_Api_Key="mctl_" + "A" * 43).status == 401  # a wrong key is no certificate's matter
        assert server.stop() == (0, "")


def test_files_that_are_not_right_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.sign("fine")
    _, other = authority.sign("other")
    locked = tmp_path / "locked.key"
    subprocess.run(["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:word", "-out", locked], check=True)
    (tmp_path / "junk.pem").write_text("junk")
    for files, said in (
        ((tmp_path / "no.pem", key, None), "no.pem: no such file"),
        ((cert, tmp_path, None), "is a folder"),
        ((cert, other, None), "not the certificate that"),
        ((tmp_path / "junk.pem", key, None), "junk.pem: not the certificate that"),
        ((cert, locked, None), "is locked with a passphrase"),
        ((cert, key, tmp_path / "junk.pem"), "not certificates in PEM"),
    ):
        with pytest.raises(KeyFileError, match=said):
            tls.context(*files)


@pytest.mark.real_parts
def test_curl_speaks_tls_with_us_and_shows_its_certificate(
    authority: Authority, zoo: dict[str, Path], tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("apt-get install curl")
    cert, key = authority.sign("server4")
    clients = Authority(tmp_path, "clients")
    mine, secret = clients.sign("carol")
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(clients.certificate)]
    with servers.running([zoo["affine"]], *flags, "--workers", "2", trust=trusting(authority)) as server:
        url = f"https://localhost:{server.port}/predict/affine"
        command = ["curl", "-s", "-S", "--http1.1", "--cacert", str(authority.certificate), url, "-d", json.dumps(ROW)]
        done = subprocess.run(
            [*command, "--cert", str(mine), "--key", str(secret)], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["model"].startswith("affine@sha256:")
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0
        assert server.stop() == (0, "")
