"""What takes long to make, and is the same whoever makes it: made once in a run, by whichever worker is first."""

import tempfile
from collections.abc import Callable
from pathlib import Path

folder: Path | None = None  # of this run, which all workers see


def once(name: str, make: Callable[[], bytes]) -> bytes:
    """What was kept under `name`, or what `make` gives, which is kept."""
    if folder is None:
        return make()
    place = folder / name
    if not place.is_file():
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as written:
            written.write(make())
        Path(written.name).replace(place)  # whole at once: another worker may be making the same
    return place.read_bytes()
