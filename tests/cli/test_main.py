"""The program from outside: exit status, stdout and stderr, whatever happens inside."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from artifacts import names
from cli.odd import admit

from modelctl.cli import main
from modelctl.cli.main import status_of

ODD = [sys.executable, str(Path(__file__).parent / "odd.py")]
PROGRAM = [sys.executable, "-m", "modelctl"]
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")  # line breaks aside


def run(*argv: str, program: list[str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"} | more.pop("env", {})
    return subprocess.run(
        [*(program or PROGRAM), *argv], capture_output=True, text=True, env=env, timeout=60, errors="strict", **more
    )


def odd(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return run("odd", *argv, program=ODD, **more)


def within(capsys: pytest.CaptureFixture[str], *argv: str) -> subprocess.CompletedProcess[str]:
    """As `run`, but in this process, which is faster."""
    status = status_of(list(argv))
    said = capsys.readouterr()
    return subprocess.CompletedProcess(argv, status, said.out, said.err)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one document on stdout."""
    found: dict[str, Any] = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert set(found) == {"command", "ok", "result" if found["ok"] else "error"}
    if not found["ok"]:
        assert set(found["error"]) == {"kind", "message", "hint"}
    return found


def test_help_is_on_stdout_and_names_the_program() -> None:
    for argv in (["--help"], ["-h"]):
        done = run(*argv)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: modelctl [OPTIONS] COMMAND")
    done = run("quantize", "-h")
    assert done.stdout.startswith("Usage: modelctl quantize [OPTIONS] {MODEL}\n")
    assert "__main__" not in done.stdout


def test_no_arguments_are_a_misuse_that_is_answered_with_the_help() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: modelctl [OPTIONS] COMMAND")


def test_version() -> None:
    assert re.fullmatch(r"modelctl \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (
            ["quantise", "a b.onnx", "-o", "c.onnx"],
            "no such command: quantise",
            "modelctl quantize 'a b.onnx' -o c.onnx",
        ),
        (["frobnicate"], "no such command: frobnicate", "modelctl --help"),
        (["quantize", "a.onnx", "--sampels=3"], "no such option: --sampels", "modelctl quantize a.onnx --samples=3"),
        (["quantize", "a.onnx", "--frob"], "no such option: --frob", "modelctl quantize --help"),
        (["quantize", "a.onnx", "-x"], "no such option: -x", "modelctl quantize --help"),
        (["-q", "quantize", "a"], "-q: stands before the command", "modelctl quantize a -q"),
        (["quantize"], "missing argument 'MODEL'", "modelctl quantize --help"),
        (["quantize", "a.onnx"], "missing option '-o' / '--out'", "modelctl quantize --help"),
        (["quantize", "a", "b", "-o", "c"], "got unexpected extra argument(s) (b)", "modelctl quantize --help"),
        (["quantize", "a", "-o"], "option '-o' requires an argument", "modelctl quantize --help"),
        (["quantize", "a", "-o", "b", "--bits", "x"], "--bits: should be a valid integer", "modelctl quantize --help"),
        (["quantize", "a", "-o", "b", "--bits", "99"], "--bits 99: must be 2 to 16", None),
        (["quantize", "a", "-o", "b", "--max-drop", "nan"], "--max-drop nan: must be a finite number", None),
        (["quantize", "a", "-o", "b", "--method", "x"], "--method: 'x' is not one of", "modelctl quantize --help"),
        (["quantize", "no.onnx", "-o", "b.onnx"], "no.onnx: no such file", None),
        (["quantize", "\x1b[2J.onnx", "-o", "b.onnx"], "[2J.onnx: no such file", None),
    ],
)
def test_bad_input_is_one_clear_line_and_a_line_to_type(
    tmp_path: Path,
    argv: list[str],
    message: str,
    hint: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = within(capsys, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    error, *hints = done.stderr.splitlines()
    assert error.startswith(f"modelctl: error: {message}")
    assert hints == ([f"modelctl: hint: {hint}"] if hint else [])
    assert not STEERING.search(done.stderr)
    assert names(tmp_path) == set()

    done = within(capsys, *argv, "--json")
    assert done.returncode == 2
    if argv[-1] == "-o":  # takes `--json` for its value
        return
    told = document(done)
    assert told["error"]["message"].startswith(message)
    assert told["command"] == next(word for word in argv if word[0] != "-")
    assert done.stderr == ""
    assert names(tmp_path) == set()


def test_a_wrong_value_of_the_environment_is_told_to_be_one() -> None:
    done = odd("options", env={"MODELCTL_BITS": "x"})
    assert done.returncode == 2
    assert done.stderr.endswith("modelctl: hint: unset MODELCTL_BITS\n")


def test_the_environment_lies_between_flag_and_default() -> None:
    env = {
        "MODELCTL_SAMPLES": "7",
        "MODELCTL_SEED": "1",
        "MODELCTL_FORCE": "1",
        "MODELCTL_OP_TYPE": "Conv Gemm",
        "MODELCTL_PER_CHANNEL": "0",
        "MODELCTL_NO_SUCH_THING": "1",
    }
    told = document(odd("options", "--json", "--seed", "2", env=env))["result"]
    assert told == {
        "bits": None, "samples": 7, "seed": 2, "force": True, "op_types": ["Conv", "Gemm"], "per_channel": False
    }  # fmt: skip
    assert document(odd("options", "--json", env={"MODELCTL_SAMPLES": ""}))["result"]["samples"] == 512


@pytest.mark.parametrize(
    ("what", "status", "kind", "message"),
    [
        ("no", 1, "CheckFailed", "a [2J b 31m .onnx: accuracy 0.4 is below 0.5"),
        ("store", 2, "StoreError", "s3://x: unreachable"),
        ("socket", 2, "BrokenPipeError", "broken pipe"),
        ("no-name", 2, "OSError", "OSError"),
        ("text-only", 2, "OSError", "The Store said No"),
        ("bug", 70, "Bug", "ValueError: a [2J b 31m .onnx"),
        ("eof", 70, "Bug", "EOFError: a short file"),
    ],
)
def test_what_went_wrong_is_told_on_stderr_or_as_one_document(
    what: str, status: int, kind: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "COMMANDS", main.COMMANDS)
    admit()
    done = within(capsys, "odd", what)
    assert (done.returncode, done.stdout) == (status, "")
    assert not STEERING.search(done.stderr)
    if status == 70:
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("modelctl: this is a bug in modelctl; please report it with the lines above\n")
    else:
        assert done.stderr.startswith(f"modelctl: error: {message}\n")
        assert "Traceback" not in done.stderr
        assert "Traceback" in within(capsys, "odd", what, "-v").stderr

    done = within(capsys, "odd", what, "--json")
    assert done.returncode == status
    told = document(done)
    assert (told["command"], told["ok"], told["error"]["kind"]) == ("odd", False, kind)
    assert told["error"]["message"] == message
    assert not STEERING.search(done.stdout)


def test_results_are_all_that_stdout_gets() -> None:
    done = odd("chatter")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a  1\n", "chatter of a library\n")
    assert document(odd("chatter", "--json"))["result"] == {"a": 1}


def test_json_is_one_document_also_when_there_is_nothing_to_say() -> None:
    assert odd("nothing").stdout == ""
    assert document(odd("nothing", "--json")) == {"command": "odd", "ok": True, "result": None}


def test_json_is_json_whatever_the_numbers_and_names() -> None:
    done = odd("numbers", "--json", env={"PYTHONIOENCODING": "ascii"})
    told = document(done)["result"]
    assert (told["nan"], told["inf"], told["p"]) == (None, [None], ".")
    assert told["é"].startswith("a\x1b[2J")
    assert done.stdout.isascii()
    plain = odd("numbers", env={"PYTHONIOENCODING": "ascii"})
    assert plain.returncode == 0
    assert not STEERING.search(plain.stdout)


@pytest.mark.parametrize(("number", "status", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_stopped_run_says_so_and_leaves_nothing(
    tmp_path: Path, number: int, status: int, word: str, as_json: bool
) -> None:
    argv = [*ODD, "odd", str(tmp_path), *(["--json"] if as_json else [])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "modelctl: note: writing\n"
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == status
    assert err == f"modelctl: {word}\n"
    if as_json:
        assert json.loads(out)["error"] == {"kind": word.capitalize(), "message": word, "hint": None}
    else:
        assert out == ""
    assert names(tmp_path) == {"a.onnx"}


def test_a_closed_terminal_ends_a_run_unless_it_was_told_to_stay(tmp_path: Path) -> None:
    with subprocess.Popen([*ODD, "odd", str(tmp_path)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 129
    assert names(tmp_path) == {"a.onnx"}


def reads_one_line(argv: list[str]) -> tuple[int, str]:
    """Exit status and stderr of a program whose reader leaves after one line."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out: IO[bytes] | None = process.stdout
        assert out is not None
        out.readline()
        out.close()
        assert process.stderr is not None
        err = process.stderr.read().decode()
        return process.wait(60), err


def test_a_reader_that_leaves_is_no_error() -> None:
    assert reads_one_line([*ODD, "odd", "much"]) == (141, "")
    status, err = reads_one_line([*PROGRAM, "--help"])
    assert (status in (0, 1, 141), err) == (True, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_behind_stdout_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*ODD, "odd", "much"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (2, "modelctl: error: standard output: no space left on device\n")
        assert subprocess.run([*ODD, "odd", "store"], stdout=full, stderr=full, timeout=60).returncode == 2


def test_notes_go_to_stderr_unless_quiet_and_there_is_no_bar_in_a_pipe() -> None:
    done = odd("progress")
    assert done.stdout == "done  True\n"
    assert done.stderr.splitlines() == [
        "modelctl: note: a note about a [2J b 31m .onnx",
        "modelctl: note: another note",
    ]
    assert odd("progress", "-q").stderr == ""


def on_terminal(*argv: str, **env: str) -> str:
    """What a person at a terminal sees on stderr."""
    ours, theirs = pty.openpty()
    plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CI", "FORCE_COLOR")}
    with subprocess.Popen(
        [*ODD, "odd", *argv], stdout=subprocess.PIPE, stderr=theirs, env={**plain, "TERM": "xterm-256color", **env}
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not chunk:
                break
            seen += chunk
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read() == b"done  True\n"
        assert process.wait(60) == 0
    return seen.decode()


def test_a_terminal_gets_a_bar_in_color_unless_told_not_to() -> None:
    seen = on_terminal("progress")
    assert "[red]working[/x]" in seen
    assert "of 3 samples" in seen
    assert "\x1b[3" in seen
    assert "another note" in seen
    assert "\x1b[2J" not in seen
    colors = re.findall(r"\x1b\[[0-9;]*[34]\d(?:;[0-9;]*)?m", on_terminal("progress", NO_COLOR="1"))
    assert colors == []
    assert "\x1b[" not in on_terminal("progress", "--no-progress")
    assert on_terminal("progress", "-q") == ""


def test_names_beyond_ascii_are_no_trouble(tmp_path: Path) -> None:
    for name in ("modèle 漢.onnx", "-dash.onnx", "a  b.onnx", "$(x).onnx"):
        argv = ["quantize", "-o", f"out {name}", "--dry-run", "--", name]
        done = run(*argv, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
        assert done.returncode == 2, done.stderr
        assert "no such file" in done.stderr
    raw = subprocess.run([*PROGRAM, "quantize", b"\xff.onnx", "-o", "b.onnx"], capture_output=True, cwd=tmp_path)
    assert raw.returncode == 2
    assert raw.stderr.startswith(b"modelctl: error: ")
    assert raw.stderr.count(b"\n") <= 2


def test_the_shell_completes_commands_and_flags() -> None:
    for words, wanted in (("modelctl quan", "quantize"), ("modelctl quantize --samp", "--samples")):
        env = {"_MODELCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert wanted in run(env=env).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_completion_script_is_one() -> None:
    script = run(env={"_MODELCTL_COMPLETE": "source_bash"}).stdout
    assert "_MODELCTL_COMPLETE=complete_bash" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, timeout=60).returncode == 0
