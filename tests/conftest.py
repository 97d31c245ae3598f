"""What all tests share: how a missing real part is treated, and a quiet, separate home for each run.

A test that needs a part installed apart (a Debian package, a client from PyPI) carries the mark `real_parts` and skips
itself with the install line as its reason. `--require-real-parts` turns such a skip into a failure: CI runs with it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-real-parts", action="store_true", help="a skipped real_parts test is a failure")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and item.get_closest_marker("real_parts") and item.config.getoption("--require-real-parts"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a real part is missing: {report.longrepr[2]}"


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the stores and settings of the person who runs it."""
    home: Path = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    for name in ("MODELCTL_STORE", "MODELCTL_DATA", "MODELCTL_THREADS"):
        monkeypatch.delenv(name, raising=False)
