"""Files appear together or not at all, whatever happens to the process that writes them."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from artifacts import make, names, origin_of, root

from modelctl import integrity
from modelctl.artifact import Artifact
from modelctl.errors import UsageError
from modelctl.making import create
from modelctl.staging import stage

# A step that writes half of its output, says so, and waits to be hit.
SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from artifacts import origin_of
from modelctl.artifact import Artifact
from modelctl.making import create
from modelctl.cli import interrupts
interrupts.install()
folder = Path(sys.argv[1])
with create(folder / "b.onnx", origin_of(Artifact.open(folder / "a.onnx"))) as draft:
    draft.path.write_bytes(b"half")
    draft.path.with_name("b.onnx.data").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def writing(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of making `folder/b.onnx`."""
    code = SLOW.format(tests=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


def drafts(folder: Path) -> set[str]:
    return {name for name in names(folder) if name.startswith(".b.onnx.tmp-")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    root(tmp_path)
    with writing(tmp_path) as process:
        assert len(drafts(tmp_path)) == 1
        process.send_signal(number)
        assert process.wait(30) != 0
    assert names(tmp_path) == {"a.onnx"}


def test_a_killed_run_leaves_no_manifest_and_the_next_run_sweeps(tmp_path: Path) -> None:
    model = root(tmp_path)
    with writing(tmp_path) as process:
        process.kill()
        process.wait(30)
    assert len(drafts(tmp_path)) == 1
    assert {name for name in names(tmp_path) if not name.startswith(".")} == {"a.onnx"}
    make(tmp_path / "b.onnx", origin_of(model))
    assert names(tmp_path) == {"a.onnx", "b.onnx", "b.onnx.manifest.json"}


def test_a_living_run_is_not_swept(tmp_path: Path) -> None:
    model = root(tmp_path)
    with writing(tmp_path):
        before = drafts(tmp_path)
        make(tmp_path / "b.onnx", origin_of(model))
        assert drafts(tmp_path) == before
    integrity.check(Artifact.open(tmp_path / "b.onnx"))


def test_sweeping_takes_only_what_a_run_of_that_name_left(tmp_path: Path) -> None:
    kept = [".b.onnx.tmp-mine", ".c.onnx.tmp-0123456789ab", ".bXonnx.tmp-0123456789ab"]
    for name in [*kept, ".b.onnx.tmp-0123456789ab"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / ".b.onnx.tmp-aaaaaaaaaaaa").symlink_to(tmp_path / ".c.onnx.tmp-0123456789ab")
    with stage(tmp_path, "b.onnx"):
        assert not (tmp_path / ".b.onnx.tmp-0123456789ab").exists()
    assert names(tmp_path) == {*kept, ".b.onnx.tmp-aaaaaaaaaaaa"}
    assert names(tmp_path / ".c.onnx.tmp-0123456789ab") == {"x"}


def test_concurrent_makers_of_one_name_leave_one_whole_artifact(tmp_path: Path) -> None:
    model = root(tmp_path)
    troubles: list[BaseException] = []

    def run(index: int) -> None:
        try:
            for _ in range(5):
                with create(tmp_path / "b.onnx", origin_of(model)) as draft:
                    draft.path.write_bytes(b"%d" % index)
                    draft.path.with_name(f"b.onnx.{index % 3}").write_bytes(b"w")
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, the test tells
            troubles.append(error)

    makers = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert not troubles
    integrity.check(Artifact.open(tmp_path / "b.onnx"))
    assert not drafts(tmp_path)


def test_a_stranger_that_came_in_between_is_not_overwritten(tmp_path: Path) -> None:
    model = root(tmp_path)
    out = tmp_path / "b.onnx"
    with pytest.raises(UsageError, match="stands already"):
        make_while(out, model)
    assert out.read_bytes() == b"a stranger's"
    assert names(tmp_path) == {"a.onnx", "b.onnx"}


def make_while(out: Path, model: Artifact) -> None:
    with create(out, origin_of(model)) as draft:
        draft.path.write_bytes(b"ours")
        out.write_bytes(b"a stranger's")


def test_ctrl_c_between_the_renames_waits_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = root(tmp_path)
    usual = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # old manifest is about to go: the worst moment
        usual(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b.onnx", origin_of(model))
    monkeypatch.undo()
    assert names(tmp_path) == {"a.onnx", "b.onnx", "b.onnx.manifest.json"}
    integrity.check(Artifact.open(tmp_path / "b.onnx"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# RLIMIT_FSIZE is answered as a full disk is, in the middle of a write and without the file's name.
FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from artifacts import origin_of
from modelctl.artifact import Artifact
from modelctl.making import create
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with create(folder / "b.onnx", origin_of(Artifact.open(folder / "a.onnx"))) as draft, draft.path.open("wb") as file:
        while True:
            file.write(b"x" * 4096)
except OSError as error:
    print(error.filename)
"""


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    root(tmp_path)
    code = FULL.format(tests=str(Path(__file__).parent))
    told = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert told.stdout == f"{tmp_path / 'b.onnx'}\n", told.stderr
    assert names(tmp_path) == {"a.onnx"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, which Linux has")
def test_a_folder_that_takes_no_files_is_an_error_that_names_the_file() -> None:
    # /proc/self is read-only for root too.
    with pytest.raises(OSError, match=r"b\.onnx") as caught, stage(Path("/proc/self"), "b.onnx"):
        pass
    assert caught.value.filename == "/proc/self/b.onnx"


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder") as caught, stage(tmp_path / "no", "b.onnx"):
        pass
    assert caught.value.hint == f"mkdir -p {tmp_path / 'no'}"


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, stage(tmp_path, "b.onnx"):
        (tmp_path / "data.npz").read_bytes()
    assert caught.value.filename == str(tmp_path / "data.npz")
    assert names(tmp_path) == set()


def test_waiting_makers_are_told_apart_by_name(tmp_path: Path) -> None:
    with stage(tmp_path, "b.onnx") as one, stage(tmp_path, "c.onnx") as two:
        assert one.folder != two.folder
        assert one.folder.stat().st_mode & 0o777 == 0o700
