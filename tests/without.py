"""modelctl where modules are not installed: command lines, one after the other in one process without them."""

import json
import subprocess
import sys
from collections.abc import Sequence

# One process, for its start is what takes time: each command line's exit status, and what it said on stderr.
CODE = """
import contextlib, io, json, sys
modules, lines = json.load(sys.stdin)
sys.modules.update(dict.fromkeys(modules))
from modelctl.cli.main import status_of
told = []
for line in lines:
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        status = status_of(line.split())
    told.append((status, said.getvalue()))
print(json.dumps(told))
"""


def said(modules: Sequence[str], lines: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Exit status and stderr of each command line, run in the current folder where none of `modules` is there."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps([modules, lines]), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(tuple, json.loads(done.stdout)), strict=True))
