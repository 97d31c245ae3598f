"""Ctrl-C is raised where it can be borne: after an import, after a finalizer, and at once when it comes twice."""

import subprocess
import sys
from pathlib import Path

import pytest

PRESSED = "signal.raise_signal(signal.SIGINT)"
START = "import signal, time; from modelctl.cli import interrupts; interrupts.install()\n"
WAIT = "    [time.sleep(0.01) for _ in range(1000)]; print('lost')\n"


def said(program: str, folder: Path) -> tuple[str, str]:
    """What a program says on stdout and stderr."""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def test_an_interrupt_in_an_import_waits_for_its_end(tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text(f"import signal\n{PRESSED}\nprint('whole')\n")
    program = START + "try:\n    import slowly\n" + WAIT + "except KeyboardInterrupt:\n    print('stopped')\n"
    assert said(program, tmp_path) == ("whole\nstopped", "")


def test_a_second_interrupt_in_an_import_does_not_wait(tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text(f"import signal\n{PRESSED}\n{PRESSED}\nprint('whole')\n")
    program = START + "try:\n    import slowly\n" + WAIT + "except KeyboardInterrupt:\n    print('stopped')\n"
    assert said(program, tmp_path) == ("stopped", "")


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_in_a_finalizer_is_raised_after_it(tmp_path: Path, times: int) -> None:
    finalizer = f"class Odd:\n    def __del__(self):\n        {PRESSED}\n"
    program = (
        START
        + finalizer
        + "try:\n"
        + "    Odd()\n" * times
        + WAIT
        + "except KeyboardInterrupt:\n    print('stopped')\n"
    )
    assert said(program, tmp_path) == ("stopped", "")
