"""How fast push and pull are, beside a plain copy of the same bytes with fsync, in turns.

    python tests/bench/stores.py [--megabytes 256] [--rounds 5] [--folder DIR]

A round does each thing once, on fresh stores; told is the median of the rounds and its ratio to the copy.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from modelctl import digests
from modelctl.artifact import Artifact
from modelctl.making import Origin, create
from modelctl.options import PullOptions, PushOptions, StepOptions
from modelctl.steps.pull import pull
from modelctl.steps.push import push


def copy(source: Path, target: Path) -> None:
    """A copy that is on the disk when it is done."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def one_round(model: Artifact, folder: Path) -> dict[str, float]:
    """Seconds by what was done."""
    found = {"copy, fsync": timed(lambda: copy(model.path, folder / "copy"))}
    found["sha256 only"] = timed(lambda: digests.of_file(model.path))
    for scheme, url in (("sqlite", f"sqlite:///{folder}/models.db"), ("file", f"file://{folder}/models")):
        ref = f"{url}/model:1"
        found[f"push {scheme}"] = timed(lambda ref=ref: push(model, ref, PushOptions()))  # type: ignore[misc]
        found[f"push {scheme}, again"] = timed(lambda ref=ref: push(model, ref, PushOptions()))  # type: ignore[misc]
        out = folder / scheme
        found[f"pull {scheme}"] = timed(lambda ref=ref, out=out: pull(ref, out, PullOptions()))  # type: ignore[misc]
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        with create(Path(place, "model.onnx"), Origin("export", StepOptions(), ())) as draft:
            draft.path.write_bytes(os.urandom(given.megabytes * 10**6))
        model = Artifact.open(Path(place, "model.onnx"))
        for number in range(given.rounds):
            folder = Path(place, str(number))
            folder.mkdir()
            for what, once in one_round(model, folder).items():
                seconds.setdefault(what, []).append(once)
            shutil.rmtree(folder)
    base = statistics.median(seconds["copy, fsync"])
    print(f"{given.megabytes} MB, median of {given.rounds} rounds in turns\n")
    print(f"{'':<20}{'MB/s':>8}{'× copy':>9}{'low':>8}{'high':>8}")
    for what, took in seconds.items():
        rates = [given.megabytes / one for one in took]
        middle = statistics.median(took)
        row = f"{given.megabytes / middle:>8.0f}{base / middle:>9.2f}{min(rates):>8.0f}{max(rates):>8.0f}"
        print(f"{what:<20}{row}")


if __name__ == "__main__":
    main()
