"""Sealing and opening, beside age and beside the bare cipher: `python tests/bench/sealed.py [--mib 512] [--rounds 5]`.

All ways are timed in turns, and the median is shown, in GB (10^9 bytes) of plaintext a second. `encrypt` and `decrypt`
are the whole steps, synced to disk; `seal` and `open` are the same without syncing, as age (apt install age) does it.
Peak memory is that of a process of its own, for a small and a large model.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelctl.artifact import Artifact
from modelctl.crypto import aead, envelope, keys, signing
from modelctl.digests import of_bytes
from modelctl.making import Origin, create
from modelctl.options import DecryptOptions, EncryptOptions, KeygenOptions, KeyType, StepOptions, granted_threads
from modelctl.steps.decrypt import decrypt
from modelctl.steps.encrypt import encrypt
from modelctl.steps.keygen import keygen

THREADS = granted_threads()
MIB = 1 << 20


def model_of(folder: Path, mib: int) -> Artifact:
    """An artifact of random bytes."""
    root = folder / "root.pt"
    root.write_bytes(b"weights")
    out = folder / f"model{mib}.onnx"
    with create(out, Origin("export", StepOptions(), (Artifact.open(root),))) as draft, draft.path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    return Artifact.open(out)


def bare(mib: int, threads: int, work: Callable[[], object]) -> Callable[[], object]:
    """The same piece of work for each MiB, on so many threads."""

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: work(), range(mib)))

    return run


def gcm() -> None:
    """One MiB through the cipher alone."""
    aead.seal(bytes(32), bytes(12), PIECE, b"", memoryview(bytearray(MIB + aead.TAG_BYTES)))


PIECE = os.urandom(MIB)


def ways(folder: Path, model: Artifact, mib: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    keygen(folder / "k.pem", KeygenOptions(type=KeyType.RSA))
    for_key = EncryptOptions(recipients=(str(folder / "k.pub.pem"),), force=True)
    by_key = DecryptOptions(identities=(str(folder / "k.pem"),), force=True)
    recipients, identities = keys.recipients(for_key), keys.opening(by_key)
    sealed, loose, out = folder / "m.sealed", folder / "loose.sealed", folder / "out"
    out.mkdir()
    encrypt(model, sealed, for_key)

    def seal() -> None:
        loose.unlink(missing_ok=True)
        envelope.seal(model, loose, recipients, sidecars=signing.sidecars(model), threads=THREADS)

    def open_to_disk() -> None:
        with (out / "loose").open("wb") as file:
            envelope.unseal(Artifact.open(sealed), identities, lambda *_: file, threads=THREADS)

    found: dict[str, Callable[[], object]] = {
        f"AES-GCM alone ({aead.name}), 1 thread": bare(mib, 1, gcm),
        f"AES-GCM alone ({aead.name}), {THREADS} threads": bare(mib, THREADS, gcm),
        "SHA-256 alone, 1 thread": bare(mib, 1, lambda: of_bytes(PIECE)),
        "seal": seal,
        "encrypt": lambda: encrypt(model, sealed, for_key),
        "open": open_to_disk,
        "open in memory": lambda: envelope.open_sealed(sealed, identities),
        "decrypt": lambda: decrypt(Artifact.open(sealed), out, by_key),
    }
    if shutil.which("age"):
        age = folder / "age.key"
        subprocess.run(["age-keygen", "-o", age], capture_output=True, check=True)
        public = subprocess.run(["age-keygen", "-y", age], capture_output=True, text=True, check=True).stdout.strip()
        lock = ["age", "-r", public, "-o", str(folder / "m.age"), str(model.path)]
        found["age -e"] = lambda: subprocess.run(lock, check=True)
        unlock = ["age", "-d", "-i", str(age), "-o", str(out / "age.onnx"), str(folder / "m.age")]
        found["age -d"] = lambda: subprocess.run(unlock, check=True)
    else:
        print("age is not installed: apt install age", file=sys.stderr)
    return found


def peak_mib(*argv: str | Path) -> float:
    """The peak resident memory of a modelctl command, in MiB."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'modelctl', *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    argv_text = [sys.executable, "-c", code, *map(str, argv)]
    return int(subprocess.run(argv_text, capture_output=True, text=True, check=True).stdout) / 1024


def memory(folder: Path, mib: int) -> None:
    """Print the peak memory for a model of 64 MiB and one of `mib`."""
    print(f"\n{'peak memory, MiB':<40} {'64 MiB':>10} {f'{mib} MiB':>10}")
    peaks: dict[str, list[float]] = {"encrypt": [], "decrypt": []}
    for size in (64, mib):
        model = folder / f"model{size}.onnx"
        if not model.exists():
            model_of(folder, size)
        sealed = folder / f"peak{size}.sealed"
        peaks["encrypt"].append(peak_mib("encrypt", model, "-o", sealed, "--recipient", folder / "k.pub.pem"))
        back = folder / f"back{size}"
        back.mkdir()
        peaks["decrypt"].append(peak_mib("decrypt", sealed, "-o", back, "--identity", folder / "k.pem"))
    for name, (small, large) in peaks.items():
        print(f"{name:<40} {small:>10.1f} {large:>10.1f}")


def main() -> None:
    """Time all ways in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place)
        timed = ways(folder, model_of(folder, given.mib), given.mib)
        times: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(given.rounds):
            for name, work in timed.items():
                begun = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - begun)
        print(f"{f'{given.mib} MiB, {THREADS} threads':<40} {'GB/s':>10} {'lowest':>10} {'highest':>10}")
        for name, seconds in times.items():
            rates = [given.mib * MIB / 1e9 / one for one in seconds]
            print(f"{name:<40} {statistics.median(rates):>10.2f} {min(rates):>10.2f} {max(rates):>10.2f}")
        memory(folder, given.mib)


if __name__ == "__main__":
    main()
