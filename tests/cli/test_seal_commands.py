"""encrypt, decrypt, keygen, sign, verify as typed: exit status, stdout, stderr, and what is on disk afterwards."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelctl.artifact import Artifact
from modelctl.cli.main import status_of

Make = Callable[..., Artifact]
HEAVY = ("numpy", "onnx", "onnxruntime", "torch")


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line and gives exit status, stdout and stderr."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = status_of([str(word) for word in argv])
        return status, *capsys.readouterr()

    return run


def document(answer: tuple[int, str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer[1])
    assert found["ok"] == (answer[0] == 0)
    return found


Typed = Callable[..., tuple[int, str, str]]


def test_the_whole_way_as_typed(make_artifact: Make, tmp_path: Path, key_folder: Path, typed: Typed) -> None:
    model, out = make_artifact().path, tmp_path / "out"
    sealed = tmp_path / "model.onnx.sealed"
    out.mkdir()
    status, shown, said = typed("sign", model, "--key", key_folder / "ed.pem")
    assert (status, said) == (0, "") and shown.startswith(f"{model}.dsse.json  signed by ")
    status, shown, said = typed("encrypt", model, "-o", sealed, "--recipient", key_folder / "rsa.pub.pem")
    assert (status, said) == (0, "") and shown.startswith(f"{sealed}  ")
    status, shown, said = typed("decrypt", sealed, "-o", out, "--identity", key_folder / "rsa.pem")
    assert (status, said) == (0, "") and shown.startswith(f"{out / 'model.onnx'}  5 bytes")
    answer = typed(
        "verify", out / "model.onnx", "--key", key_folder / "ed.pub.pem", "--root", tmp_path / "root.pt", "--json"
    )
    result = document(answer)["result"]
    assert result["chain"] == ["root", "export"] and result["signatures"][0]["verified_by"]


def test_wrong_key_is_two_and_changed_bytes_are_one(
    make_artifact: Make, tmp_path: Path, key_folder: Path, typed: Typed
) -> None:
    sealed, out = tmp_path / "m.sealed", tmp_path / "out"
    out.mkdir()
    typed("encrypt", make_artifact().path, "-o", sealed, "--recipient", key_folder / "rsa.pub.pem")
    for flags, kind, status in (
        ((), "UsageError", 2),
        (("--identity", key_folder / "rsa2.pem"), "KeyFileError", 2),
        (("--key-file", tmp_path / "absent"), "KeyFileError", 2),
        (("--passphrase", "hunter2"), "UsageError", 2),
    ):
        answer = typed("decrypt", sealed, "-o", out, *flags, "--json")
        assert (answer[0], document(answer)["error"]["kind"]) == (status, kind)
        assert "hunter2" not in answer[1] + answer[2]
    sealed.write_bytes(sealed.read_bytes()[:-1])
    answer = typed("decrypt", sealed, "-o", out, "--identity", key_folder / "rsa.pem", "--json")
    assert (answer[0], document(answer)["error"]["kind"]) == (1, "IntegrityError")
    status, shown, said = typed("verify", sealed)
    assert (status, shown) == (1, "") and said.startswith(f"modelctl: error: {sealed}: the bytes are not the ones")
    assert list(out.iterdir()) == []


def test_encrypt_names_who_may_open_or_refuses(make_artifact: Make, tmp_path: Path, typed: Typed) -> None:
    model = make_artifact().path
    before = sorted(tmp_path.iterdir())
    for flags in ((), ("--passphrase", "prompt", "--key-file", "k"), ("--recipient", tmp_path / "absent.pem")):
        status, shown, said = typed("encrypt", model, "-o", tmp_path / "m.sealed", *flags)
        assert (status, shown) == (2, "") and said.startswith("modelctl: error: ") and "Traceback" not in said
    status, _, said = typed("encrypt", tmp_path / "root.pt", "-o", tmp_path / "m.sealed", "--key-file", "k")
    assert status == 2 and said.endswith(f"modelctl: hint: modelctl export {tmp_path / 'root.pt'} -o model.onnx\n")
    assert sorted(tmp_path.iterdir()) == before


def test_dry_run_asks_for_no_passphrase_and_writes_nothing(make_artifact: Make, tmp_path: Path, typed: Typed) -> None:
    model = make_artifact().path
    before = sorted(tmp_path.iterdir())
    answer = typed("encrypt", model, "-o", tmp_path / "m.sealed", "--passphrase", "prompt", "--dry-run", "--json")
    assert document(answer)["result"]["options"]["passphrase"] is True
    assert sorted(tmp_path.iterdir()) == before


def test_verify_of_what_is_not_there_or_has_no_manifest_is_two(
    make_artifact: Make, tmp_path: Path, typed: Typed
) -> None:
    make_artifact()
    for path in (tmp_path / "absent.onnx", tmp_path, tmp_path / "root.pt"):
        assert typed("verify", path)[0] == 2
    _, _, said = typed("verify", tmp_path / "root.pt")
    assert "hint: modelctl export" in said


def test_keys_come_from_the_environment_and_stay_there(
    make_artifact: Make, tmp_path: Path, key_folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = (key_folder / "rsa.pem").read_text()
    monkeypatch.setenv("OURS", secret)
    model, sealed, out = make_artifact().path, tmp_path / "m.sealed", tmp_path / "out"
    out.mkdir()
    shown = "".join(
        answer[1] + answer[2]
        for answer in (
            typed("sign", model, "--key", "env:OURS", "-v"),
            typed("encrypt", model, "-o", sealed, "--recipient", "env:OURS", "-v"),  # a private key: refused
            typed("encrypt", model, "-o", sealed, "--recipient", key_folder / "rsa.pub.pem", "-v"),
            typed("decrypt", sealed, "-o", out, "--identity", "env:OURS", "-v"),
            typed("verify", out / "model.onnx", "--key", key_folder / "rsa.pub.pem", "-v"),
        )
    )
    assert (out / "model.onnx").is_file() and "env:OURS: a private key where the public one is wanted" in shown
    lines = secret.splitlines()[1:-1]
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert not any(line in shown or line in written for line in lines)


def test_no_tensor_library_is_needed(make_artifact: Make, tmp_path: Path, key_folder: Path) -> None:
    model, sealed = make_artifact().path, tmp_path / "m.sealed"
    lines: list[list[str | Path]] = [
        ["keygen", "-o", tmp_path / "k.pem"],
        ["sign", model, "--key", tmp_path / "k.pem"],
        ["encrypt", model, "-o", sealed, "--key-file", key_folder / "aes.key"],
        ["decrypt", sealed, "-o", tmp_path, "--key-file", key_folder / "aes.key"],
        ["verify", model, "--key", tmp_path / "k.pub.pem"],
    ]
    program = (
        "import json, sys\nfrom modelctl.cli.main import status_of\n"
        "found = [status_of(argv) for argv in json.loads(sys.argv[1])]\n"
        f"print(found, [name for name in {HEAVY} if name in sys.modules])"
    )
    argv = json.dumps([[str(word) for word in line] for line in lines])
    done = subprocess.run([sys.executable, "-c", program, argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0] []", done.stderr
