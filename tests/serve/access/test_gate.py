"""Who is let in, who is not, and what he is told; asked of a real server."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import servers
from servers import eventually

from modelctl.crypto import api_keys

ROW = [[1.0, 2.0, 3.0, 4.0]]


def sent(port: int, data: bytes, limit: int = 1 << 20) -> bytes:
    """What comes back for bytes, up to the end of the connection or a pause of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(data)
        found = b""
        client.settimeout(10)
        while len(found) < limit:
            with contextlib.suppress(ConnectionResetError):
                piece = client.recv(1 << 16)
                if piece:
                    found += piece
                    continue
            return found
        return found


def test_a_key_opens_by_either_header_and_nothing_else_does(guarded: Any) -> None:
    key = guarded.keys["root"]
    ask = guarded.server.ask
    assert ask("/predict/digits", ROW, Authorization=f"Bearer {key}").status == 200
    assert ask("/predict/digits", ROW, Authorization=f"bearer {key}").status == 200
    assert ask("/predict/digits", ROW, X_Api_Key=key).status == 200
    wrong = api_keys.generate()
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
        {"Authorization": f"Bearer {wrong}"},
        {"X_Api_Key": wrong},
        {"X_Api_Key": ""},
        {"X_Api_Key": key[:-1]},
        {"X_Api_Key": key + "A"},
        {"X_Api_Key": key.swapcase()},
        {"Cookie": f"key={key}"},
    ):
        answer = ask("/predict/digits", ROW, **headers)
        assert (answer.status, "modelctl-model" in answer.headers) == (401, False), headers
        assert answer.headers["www-authenticate"].startswith('Bearer realm="modelctl"')
        assert "mctl_" not in answer.error
    assert ask("/predict/digits?key=" + key, ROW).status == 401
    assert ask("/predict/digits", ROW, Authorization=f"Bearer {key}", X_Api_Key=key).status == 400


def test_the_same_is_said_whether_a_key_is_nearly_right_or_not_at_all(guarded: Any) -> None:
    key = guarded.keys["root"]
    answers = {
        guarded.server.ask("/v2", X_Api_Key=one).body
        for one in (key[:-1] + ("B" if key[-1] == "A" else "A"), api_keys.generate(), "mctl_" + "A" * 43)
    }
    assert len(answers) == 1


def test_a_header_that_is_sent_twice_does_not_count(guarded: Any) -> None:
    key = guarded.keys["root"].encode()
    other = api_keys.generate().encode()
    for first, second in ((key, other), (other, key), (key, key), (key, b""), (b"", key)):
        for name in (b"X-Api-Key: ", b"Authorization: Bearer "):
            lines = b"".join(name + one + b"\r\n" for one in (first, second))
            head = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + lines + b"\r\n"
            assert sent(guarded.server.port, head).startswith(b"HTTP/1.1 401 "), (first, second)


def test_health_is_asked_by_everybody_and_metrics_by_those_who_may(guarded: Any) -> None:
    ask = guarded.server.ask
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert ask(path).status == 200
    for path in (
        "/v2",
        "/metrics",
        "/v2/models/digits",
        "/v2/models/digits/ready",
        "/v2/repository/index",
        "/openapi.json",
        "/no",
    ):
        assert ask(path).status == 401, path
    assert ask("/metrics", X_Api_Key=guarded.keys["root"]).status == 200
    answer = ask("/metrics", X_Api_Key=guarded.keys["alice"])
    assert (answer.status, answer.error) == (403, "alice may not see metrics")
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


def test_a_model_that_is_not_among_ones_own_is_not_asked_whichever_way_it_is_named(guarded: Any) -> None:
    mine = guarded.bearer("alice")
    ask = guarded.server.ask
    tensor = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW[0]}]}
    assert ask("/predict/digits", ROW, **mine).status == 200
    assert ask("/predict?model=digits", ROW, **mine).status == 200
    assert ask("/v2/models/digits/infer", tensor, **mine).status == 200
    assert ask("/v1/models/digits:predict", {"instances": ROW}, **mine).status == 200
    for path, body in (
        ("/predict/affine", ROW),
        ("/predict/%61ffine", ROW),
        ("/predict?model=affine", ROW),
        ("/predict?model=digits&model=affine", ROW),
        ("/v2/models/affine/infer", tensor),
        ("/v2/models/affine/versions/1/infer", tensor),
        ("/predict?model=affine", [["what does it take?"]]),
        ("/predict?model=absent", ROW),
        ("/v2/models/affine/infer", {"inputs": []}),
        ("/v2/models/absent/infer", tensor),
        ("/v2/models/affine", None),
        ("/v2/models/affine/ready", None),
        ("/v1/models/affine:predict", {"instances": ROW}),
        ("/v1/models/affine/versions/1:predict", {"instances": ROW}),
        ("/v1/models/affine", None),
        ("/v1/models/affine/metadata", None),
    ):
        answer = ask(path, body, **mine)
        assert answer.status == 403, (path, answer.body)
        assert answer.error == "alice may not ask this model, or there is none"


def test_who_may_not_know_all_models_is_not_told_which_there_are(guarded: Any) -> None:
    mine, ask = guarded.bearer("alice"), guarded.server.ask
    absent = ask("/v2/models/absent", **mine)
    assert (absent.status, absent.body) == (403, ask("/v2/models/affine", **mine).body)
    assert [one["name"] for one in ask("/v2/repository/index", {}, **mine).json] == ["digits"]
    assert len(ask("/v2/repository/index", {}, **guarded.bearer("root")).json) == 2
    for path in ("/v2/models/dignity", "/nothing"):
        answer = ask(path, **mine)
        assert answer.status == 404
        assert "affine" not in answer.error
    assert "affine" in ask("/v2/models/absent", **guarded.bearer("root")).error


def test_only_who_may_loads_and_unloads(guarded: Any) -> None:
    ask = guarded.server.ask
    for kind in ("load", "unload"):
        answer = ask(f"/v2/repository/models/digits/{kind}", {}, **guarded.bearer("alice"))
        assert (answer.status, answer.error) == (403, "alice may not load and unload models")
        assert ask(f"/v2/repository/models/digits/{kind}", {}).status == 401
    assert ask("/v2/repository/models/digits/load", {}, **guarded.bearer("root")).status == 200


def test_a_page_of_another_origin_can_not_load_with_a_simple_request(zoo: dict[str, Path]) -> None:
    with servers.running([zoo["affine"]]) as server:
        path, plain = "/v2/repository/models/affine/load", {"Content_Type": "text/plain"}
        assert server.ask(path, b"{}", Origin="https://evil.example", **plain).status == 403
        assert server.ask(path, b"{}", Origin="null", **plain).status == 403
        assert server.ask(path, b"{}", Origin=server.url, **plain).status == 200
        assert server.ask(path, b"{}").status == 200


def test_a_key_that_has_expired_is_told_so(guarded: Any) -> None:
    answer = guarded.server.ask("/v2", **guarded.bearer("late"))
    assert (answer.status, answer.error) == (401, "the key or token has expired")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_more_than_the_rate_is_told_when_to_come_again(guarded: Any) -> None:
    answers = [guarded.server.ask("/v2", **guarded.bearer("slow")) for _ in range(5)]
    assert [one.status for one in answers] == [200, 200, 200, 429, 429]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 1000
    assert answers[-1].error == "more than 0.001 requests a second"
    assert guarded.server.ask("/v2", **guarded.bearer("root")).status == 200
    text = guarded.server.ask("/metrics", **guarded.bearer("root")).body.decode()
    assert 'modelctl_request_errors_total{model="",version="",digest="",kind="rate"} 2' in text


def test_who_is_not_let_in_is_told_so_before_he_sends_his_body(guarded: Any) -> None:
    head = b"POST /predict/digits HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    with socket.create_connection(("127.0.0.1", guarded.server.port), timeout=10) as client:
        client.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 401 ")
    with socket.create_connection(("127.0.0.1", guarded.server.port), timeout=10) as client:
        client.sendall(head + b"\r\n[")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 401 ")  # and what he sends is read over
        client.sendall(b" " * 999_999 + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_what_is_smuggled_behind_a_request_that_was_refused_is_asked_for_its_key_too(guarded: Any) -> None:
    key = guarded.keys["root"].encode()
    inner = b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + key + b"\r\nConnection: close\r\n\r\n"
    body = b"POST /predict/digits HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
    after = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    found = sent(guarded.server.port, body + after)
    assert found.count(b"HTTP/1.1 401 ") == found.count(b"HTTP/1.1 ") == 2
    both = b"POST /v2 HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + key
    both += b"\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner
    found = sent(guarded.server.port, both)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1 ") == 1


def test_huge_and_odd_credentials_are_refused_and_the_server_goes_on(guarded: Any) -> None:
    for value in (
        b"Bearer " + b"A" * 60_000,
        b"Bearer " + b"a." * 20_000,
        b"Bearer a.b.c",
        b"Bearer ....",
        b"Bearer \xff\xfe.\xff.\xff",
        b"Bearer mctl_" + b"\xc3\xa9" * 20,
        b"Bearer\t" + guarded.keys["root"].encode(),
        b"\x01",
    ):
        head = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + value + b"\r\n\r\n"
        found = sent(guarded.server.port, head)
        assert found.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ")), value[:40]
        assert b"Traceback" not in found
    assert guarded.server.ask("/v2", **guarded.bearer("root")).status == 200


def test_pages_of_named_origins_may_ask(guarded: Any) -> None:
    ask, mine = guarded.server.ask, {"Origin": "https://app.example"}
    wanted = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    may = ask("/predict/digits", method="OPTIONS", **mine, **wanted)
    assert may.status == 200
    assert may.headers["access-control-allow-origin"] == "https://app.example"
    allowed = may.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "x-api-key", "content-type", "x-grpc-web", "inference-header-content-length"} <= {*allowed}
    assert "POST" in may.headers["access-control-allow-methods"]
    answer = ask("/predict/digits", ROW, **mine, **guarded.bearer("root"))
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    seen = answer.headers["access-control-expose-headers"].split(", ")
    assert {"modelctl-model", "retry-after", "server-timing", "grpc-status", "grpc-message"} <= {*seen}
    assert answer.headers["vary"] == "origin"
    refused = ask("/predict/digits", ROW, **mine)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    for origin in ("https://evil.example", "https://app.example.evil", "http://app.example", "null", "*"):
        assert ask("/predict/digits", method="OPTIONS", Origin=origin, **wanted).status == 403
        answer = ask("/predict/digits", ROW, Origin=origin, **guarded.bearer("root"))
        assert "access-control-allow-origin" not in answer.headers
    assert ask("/predict/digits", method="OPTIONS").status == 401
    assert "access-control-allow-credentials" not in may.headers


def test_no_page_may_ask_unless_origins_are_named(server: Any) -> None:
    answer = server.ask("/v2", Origin="https://app.example")
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_keys_are_read_anew_when_their_file_changes_and_a_broken_one_is_refused(
    tmp_path: Path, pair_of_models: list[Path]
) -> None:
    from modelctl.options import KeygenOptions, KeyType
    from modelctl.steps.keygen import keygen

    def made(name: str) -> str:
        keygen(tmp_path / f"{name}.key", KeygenOptions(type=KeyType.API))
        return (tmp_path / f"{name}.key").read_text().strip()

    first = made("first")
    with servers.running(pair_of_models, "--api-keys", "keys.toml", "--workers", "2", folder=tmp_path) as server:

        def all_say(key: str, status: int) -> bool:
            return {server.ask("/v2", X_Api_Key=key).status for _ in range(12)} == {status}

        assert all_say(first, 200)
        second = made("second")
        eventually(lambda: all_say(second, 200))
        assert all_say(first, 200)
        (tmp_path / "keys.toml").write_text("[keys.nobody]\nmodels = 7\n")
        server.process.send_signal(1)
        assert all_say(first, 200)
        (tmp_path / "keys.toml").write_text("")
        server.process.send_signal(1)
        eventually(lambda: all_say(first, 401))
        assert all_say(second, 401)
        place = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        before = place.read_text().split()
        os.kill(int(before[0]), signal.SIGKILL)
        eventually(lambda: len(set(place.read_text().split()) - set(before)) == 1, 20)
        eventually(lambda: server.ask("/v2/health/ready").status == 200)
        assert all_say(first, 401)  # nor does the one that takes its place know what was known at the start
        status, err = server.stop()
    assert status == 0
    assert "keys.nobody" in err
    assert "what was read before stays" in err


def test_the_server_does_not_start_with_a_file_of_keys_that_is_not_right(tmp_path: Path, zoo: dict[str, Path]) -> None:
    (tmp_path / "keys.toml").write_text("[keys.a]\nmodels = []\n")
    for flags, said in (
        (["--api-keys", "keys.toml"], "keys.a has neither hash nor certificate"),
        (["--api-keys", "absent.toml"], "absent.toml: no such file"),
        (["--jwt-keys", "keys.toml"], "go together"),
        (["--tls-cert", "keys.toml"], "go together"),
        (["--tls-client-ca", "keys.toml"], "needs TLS"),
        (["--cors-origin", "app.example/x"], "not scheme://host"),
        (["--log-payloads", "5"], "needs a log"),
        (["--log-requests", "no/log.jsonl"], "no such file or directory"),
        (["--otlp", "host:4318"], "not an http URL"),
    ):
        with pytest.raises(AssertionError) as caught, servers.running([zoo["affine"]], *flags, folder=tmp_path):
            pass
        assert f"modelctl: error: {flags[0]}" in str(caught.value) or "modelctl: error: " in str(caught.value)
        assert said in str(caught.value)


def test_a_file_of_keys_that_others_can_read_or_write_is_warned_of(tmp_path: Path, zoo: dict[str, Path]) -> None:
    from modelctl.options import KeygenOptions, KeyType
    from modelctl.steps.keygen import keygen

    keygen(tmp_path / "a.key", KeygenOptions(type=KeyType.API))
    for mode, said in ((0o644, "other users may read"), (0o666, "other users may write"), (0o600, None)):
        (tmp_path / "keys.toml").chmod(mode)
        with servers.running([zoo["affine"]], "--api-keys", "keys.toml", folder=tmp_path) as server:
            status, err = server.stop()
        assert status == 0
        assert (err == "") if said is None else (said in err), err


@pytest.mark.parametrize(("guard", "tls"), [(False, False), (True, False)])
def test_an_address_that_others_reach_is_warned_of_unless_it_is_guarded(
    tmp_path: Path, zoo: dict[str, Path], guard: bool, tls: bool
) -> None:
    from modelctl.options import ServeOptions
    from modelctl.serve import sockets

    more = {"api_keys": tmp_path / "keys.toml"} if guard else {}
    options = ServeOptions(host="0.0.0.0", port=0, **more)  # type: ignore[arg-type]
    with contextlib.closing(sockets.bound(options)) as listener:
        said = sockets.warning(listener, options)
        assert said is not None
        assert ("keys are sent" in said) == guard
        both = ServeOptions(**more, tls_cert=Path("c"), tls_key=Path("k"))  # type: ignore[arg-type]
        assert (sockets.warning(listener, both) is None) == guard


@pytest.mark.real_parts
def test_curl_is_let_in_with_its_key(guarded: Any) -> None:
    if shutil.which("curl") is None:
        pytest.skip("apt-get install curl")
    command = [
        "curl",
        "-s",
        "-S",
        "-w",
        "\n%{http_code}",
        f"{guarded.server.url}/predict/digits",
        "-d",
        json.dumps(ROW),
    ]
    key = guarded.folder / "root.key"
    header = f"Authorization: Bearer {key.read_text().strip()}"
    done = subprocess.run([*command, "-H", header], capture_output=True, text=True, check=True)
    answer, _, status = done.stdout.rpartition("\n")
    assert status == "200"
    assert json.loads(answer)["model"].startswith("digits@sha256:")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n401")


def test_without_options_nothing_of_this_is_imported(zoo: dict[str, Path]) -> None:
    code = (
        "import sys; from modelctl.serve import workers, server; from modelctl.options import ServeOptions;"
        "from modelctl.progress import silent; assert workers._visits(ServeOptions(), silent) is None;"
        "print([one for one in sys.modules if one.startswith(('modelctl.serve.access', 'modelctl.serve.visits',"
        " 'modelctl.serve.otlp', 'modelctl.serve.request_log', 'jwt', 'cryptography'))])"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
