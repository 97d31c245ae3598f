"""Signals are raised where they can be borne: after an import, after a finalizer, and at once when they come twice."""

import subprocess
import sys
from pathlib import Path

import pytest

START = "import signal, time; from modelctl.cli import interrupts; interrupts.install()\n"
SENT = [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "SystemExit"), ("SIGHUP", "SystemExit")]
WAIT = "    [time.sleep(0.01) for _ in range(1000)]; print('lost')\n"


def sent(name: str) -> str:
    """The line of a program that sends itself a signal."""
    return f"signal.raise_signal(signal.{name})"


def said(program: str, folder: Path) -> tuple[str, str]:
    """What a program says on stdout and stderr."""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(("name", "error"), SENT)
def test_a_signal_in_an_import_waits_for_its_end(tmp_path: Path, name: str, error: str) -> None:
    (tmp_path / "slowly.py").write_text(f"import signal\n{sent(name)}\nprint('whole')\n")
    program = START + "try:\n    import slowly\n" + WAIT + f"except {error}:\n    print('stopped')\n"
    assert said(program, tmp_path) == ("whole\nstopped", "")


@pytest.mark.parametrize(("name", "error"), SENT)
def test_a_second_signal_in_an_import_does_not_wait(tmp_path: Path, name: str, error: str) -> None:
    (tmp_path / "slowly.py").write_text(f"import signal\n{sent(name)}\n{sent(name)}\nprint('whole')\n")
    program = START + "try:\n    import slowly\n" + WAIT + f"except {error}:\n    print('stopped')\n"
    assert said(program, tmp_path) == ("stopped", "")


@pytest.mark.parametrize(("name", "error"), SENT)
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_in_a_finalizer_is_raised_after_it(tmp_path: Path, times: int, name: str, error: str) -> None:
    finalizer = f"class Odd:\n    def __del__(self):\n        {sent(name)}\n"
    end = f"except {error}:\n    interrupts.over()\n    print('stopped')\n"
    program = START + finalizer + "try:\n" + "    Odd()\n" * times + WAIT + end
    assert said(program, tmp_path) == ("stopped", "")


@pytest.mark.parametrize("name", [name for name, _ in SENT])
def test_a_signal_that_was_ignored_stays_so(tmp_path: Path, name: str) -> None:
    program = f"import signal\nsignal.signal(signal.{name}, signal.SIG_IGN)\n{START}{sent(name)}\nprint('on')\n"
    assert said(program, tmp_path) == ("on", "")
