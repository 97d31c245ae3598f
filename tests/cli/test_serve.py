"""`modelctl serve` as a command: what it prints, and how it ends when it can't begin."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import servers

from modelctl import digests
from modelctl.cli.main import status_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return servers.affine(tmp_path / "digits.onnx")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, for what ends before it serves."""

    def go(*arguments: object) -> tuple[int, str, str]:
        status = status_of(["serve", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return go


def lines_of(words: Sequence[str], count: int) -> tuple[subprocess.Popen[str], str]:
    """A server in the making, and the first lines that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "modelctl", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, "".join(process.stdout.readline() for _ in range(count))


def test_one_line_says_where_it_answers(model: Path) -> None:
    with servers.running([model]) as server:
        assert server.ask("/predict", [[1, 2, 3, 4]]).status == 200
        assert server.ask("/predict/digits", [[1, 2, 3, 4]]).status == 200
        server.process.send_signal(signal.SIGINT)
        out, err = server.process.communicate(timeout=20)
        assert (server.process.returncode, out, err) == (0, "", "")


def test_json_is_one_document(model: Path) -> None:
    process, text = lines_of([str(model), "--port", "0", "--json"], 15)
    process.terminate()
    rest, err = process.communicate(timeout=20)
    document = json.loads(text + rest)
    assert (process.returncode, err) == (0, "")
    assert document["ok"]
    assert document["result"]["url"].startswith("http://127.0.0.1:")
    assert document["result"]["grpc"] == document["result"]["url"].replace("http:", "grpc:")
    assert document["result"]["models"] == [{"name": "digits", "version": "1", "digest": digests.of_file(model)}]


def test_a_port_in_use_is_told_with_a_way_out(model: Path, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = run(model, "--port", port)
    assert (status, out) == (2, "")
    assert err == f"modelctl: error: 127.0.0.1:{port}: the port is in use\nmodelctl: hint: --port 0\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.onnx"], "none.onnx: no such file"),
        (["digits.onnx", "--host", "no.such.host.invalid"], "no.such.host.invalid: no such address"),
        (["digits.onnx", "--host", "192.0.2.1"], "192.0.2.1:0: can't listen there"),
        (["digits.onnx", "digits.onnx", "--name", "x"], "--name is for a single model"),
        (["digits.onnx", "digits.onnx"], "two models would be served as digits version 1"),
        (["digits.onnx", "--require-signature", "none.pem"], "none.pem: no such"),
        (["empty.onnx"], "empty.onnx"),
        (["digits.onnx", "--name", "a/b"], "'a/b': no name to be served under"),
        (["digits.onnx", "--max-batch", "0"], "--max-batch 0: must be at least 1"),
        ([], "missing argument"),
    ],
)
def test_what_can_not_be_served_is_one_line_and_status_2(
    model: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(model.parent)
    (model.parent / "empty.onnx").write_bytes(b"")
    before = sorted(Path().iterdir())
    status, out, err = run(*arguments, "--port", "0")
    assert (status, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) <= 2
    assert sorted(Path().iterdir()) == before


def test_an_unsigned_model_is_refused_with_status_1(model: Path, run: Run, key_folder: Path) -> None:
    status, out, err = run(model, "--port", "0", "--require-signature", key_folder / "ed.pub.pem")
    assert (status, out) == (1, "")
    assert "is not signed" in err


def test_who_listens_to_the_world_is_warned(model: Path) -> None:
    process, text = lines_of([str(model), "--port", "0", "--host", "0.0.0.0"], 1)
    process.terminate()
    _, err = process.communicate(timeout=20)
    _, url, grpc = text.split()
    assert url.startswith("http://0.0.0.0:")
    assert grpc == url.replace("http:", "grpc:")
    assert "modelctl: note: listening on 0.0.0.0, where others can reach it" in err
    assert process.returncode == 0


def test_serve_loads_no_torch(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from modelctl.serve import server, models; "
        "from modelctl.options import ServeOptions; "
        f"models.load_all([{str(model)!r}], ServeOptions()); "
        "print([name for name in ('torch', 'onnx', 'onnxscript', 'Crypto') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
