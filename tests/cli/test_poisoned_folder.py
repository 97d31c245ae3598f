"""Modules that lie in the folder where modelctl is started are not imported: it may be anybody's download."""

import subprocess
import sys
from pathlib import Path

import pytest
from artifacts import exported

POISON = ("typer", "numpy", "onnx", "onnxruntime", "orjson", "uvicorn", "msgspec", "json", "hashlib", "Crypto", "rich")


@pytest.mark.parametrize("start", [["-m", "modelctl"], [str(Path(sys.executable).with_name("modelctl"))]])
@pytest.mark.parametrize("command", [["verify", "a.onnx"], ["serve", "a.onnx"]])
def test_a_module_in_the_current_folder_is_not_run(start: list[str], command: list[str], tmp_path: Path) -> None:
    exported(tmp_path / "a.onnx")
    for name in POISON:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('ran {name}')\n")
    done = subprocess.run(
        [sys.executable, *start, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "ran " not in done.stderr
    assert done.returncode == (0 if command[0] == "verify" else 2)
