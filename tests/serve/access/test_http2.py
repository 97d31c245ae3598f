"""HTTP/2 and gRPC ask who asks, as HTTP/1.1 does: with curl and gRPC's own client, over TLS."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import servers
from certificates import Authority
from servers import Running, eventually

from modelctl.options import KeygenOptions, KeyType
from modelctl.steps.keygen import keygen

ROW = [[1.0, 2.0, 3.0, 4.0]]
SERVICE = "/inference.GRPCInferenceService/"


@dataclass
class Secure:
    """A server over TLS that takes keys, and what a client needs."""

    server: Running
    folder: Path
    ca: Path
    key: str

    @property
    def log(self) -> list[dict[str, Any]]:
        """What its log says."""
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, zoo: dict[str, Path]) -> Iterator[Secure]:
    """A server of two models, of which the key opens one."""
    import ssl

    folder = tmp_path_factory.mktemp("secure")
    authority = Authority(folder)
    cert, key = authority.sign("server")
    keygen(folder / "alice.key", KeygenOptions(type=KeyType.API, models=("affine",)))
    flags = ["--api-keys", "keys.toml", "--tls-cert", str(cert), "--tls-key", str(key), "--log-requests", "log.jsonl"]
    flags += ["--cors-origin", "https://app.example"]
    trust = ssl.create_default_context(cafile=authority.certificate)
    with servers.running([zoo["affine"], zoo["log"]], *flags, folder=folder, trust=trust) as server:
        yield Secure(server, folder, authority.certificate, (folder / "alice.key").read_text().strip())
        assert server.stop() == (0, "")


@pytest.mark.real_parts
def test_curl_over_http_2_is_let_in_with_its_key(secure: Secure) -> None:
    if (
        shutil.which("curl") is None
        or "HTTP2" not in subprocess.run(["curl", "-V"], capture_output=True, text=True).stdout
    ):
        pytest.skip("apt-get install curl")

    def curl(*more: str) -> tuple[str, str]:
        url = f"https://localhost:{secure.server.port}/predict/affine"
        command = ["curl", "-s", "-S", "--http2", "--cacert", str(secure.ca), "-w", "\n%{http_version} %{http_code}"]
        done = subprocess.run([*command, url, "-d", json.dumps(ROW), *more], capture_output=True, text=True, check=True)
        body, _, told = done.stdout.rpartition("\n")
        return body, told

    body, told = curl("-H", f"X-Api-Key: {secure.key}")
    assert told == "2 200"
    assert json.loads(body)["model"].startswith("affine@sha256:")
    assert curl()[1] == "2 401"
    assert curl("-H", f"X-Api-Key: {secure.key}", "-H", f"X-Api-Key: {secure.key}")[1] == "2 401"
    assert curl("-H", "X-Api-Key: mctl_" + "A" * 43)[1] == "2 401"
    asked = [
        "-X",
        "OPTIONS",
        "-D",
        "-",
        "-H",
        "Origin: https://app.example",
        "-H",
        "Access-Control-Request-Method: POST",
    ]
    assert "access-control-allow-origin: https://app.example" in curl(*asked)[0]


@pytest.mark.real_parts
def test_grpcs_own_client_is_let_in_with_its_key(secure: Secure) -> None:
    grpc = pytest.importorskip("grpc", reason="pip install grpcio")
    from modelctl.serve.grpc.messages import message

    ask, answer = message("inference.ModelInferRequest"), message("inference.ModelInferResponse")
    stream = message("inference.ModelStreamInferResponse")
    trust = grpc.ssl_channel_credentials(secure.ca.read_bytes())

    def asked(model: str) -> Any:
        made = ask(model_name=model)
        made.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend(ROW[0])
        return made

    with grpc.secure_channel(f"localhost:{secure.server.port}", trust) as channel:
        infer = channel.unary_unary(SERVICE + "ModelInfer", ask.SerializeToString, answer.FromString)
        mine = (("authorization", f"Bearer {secure.key}"),)
        assert infer(asked("affine"), metadata=mine, timeout=10).model_name == "affine"
        for model, metadata, code in (
            ("affine", (), grpc.StatusCode.UNAUTHENTICATED),
            ("affine", (("authorization", "Bearer x"),), grpc.StatusCode.UNAUTHENTICATED),
            ("log", mine, grpc.StatusCode.PERMISSION_DENIED),
            ("absent", mine, grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                infer(asked(model), metadata=metadata, timeout=10)
            assert caught.value.code() is code, (model, metadata)
            assert "takes" not in caught.value.details()
        live = channel.unary_unary(
            SERVICE + "ServerLive", lambda _: b"", message("inference.ServerLiveResponse").FromString
        )
        assert live(None, timeout=10).live
        load = channel.unary_unary(SERVICE + "RepositoryModelLoad", lambda _: b"\x12\x06affine", lambda data: data)
        with pytest.raises(grpc.RpcError) as caught:
            load(None, metadata=mine, timeout=10)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        talk = channel.stream_stream(SERVICE + "ModelStreamInfer", ask.SerializeToString, stream.FromString)
        told = list(talk(iter([asked("affine"), asked("log")]), metadata=mine, timeout=10))
        assert told[0].infer_response.model_name == "affine"
        assert "alice may not ask this model" in told[1].error_message
        with pytest.raises(grpc.RpcError) as caught:
            list(talk(iter([asked("affine")]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    def calls() -> list[tuple[str, int, str]]:
        mine = [one for one in secure.log if one["path"] == SERVICE + "ModelInfer"]
        return [(one["method"], one["status"], one.get("key", "")) for one in mine]

    eventually(lambda: len(calls()) >= 7)
    assert calls()[:2] == [("GRPC", 200, "alice"), ("GRPC", 401, "")]
    first = next(one for one in secure.log if one["path"] == SERVICE + "ModelInfer")
    assert first["model"].startswith("affine@sha256:")
    assert first["compute_ms"] > 0
