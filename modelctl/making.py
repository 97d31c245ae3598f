"""How an artifact is made: its file (or several) and its manifest appear together, through one door, or not at all.

`create` is that door: a step writes into a staging folder, every file is hashed, and files and manifest appear together
when the block ends well. `Origin` says what an artifact is made from; it is what the manifest remembers and what
`is_current` asks after.
"""

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from modelctl import __version__, digests, manifest, record
from modelctl.artifact import Artifact, format_of, left_behind, manifest_path, model_name
from modelctl.chains import TOKENIZER_SUFFIX, Postprocess, Preprocess, Text
from modelctl.errors import ArtifactError, IntegrityError, UsageError
from modelctl.manifest import Encryption, FileEntry, Manifest, Record, Step, TensorSpec
from modelctl.options import StepOptions
from modelctl.staging import refuse_no_file, refuse_no_folder, stage


@dataclass(frozen=True)
class Origin:
    """What an artifact is made from: the step, its options, the parents, and what the step adds to what is remembered.

    `also` joins the remembered options: ids of keys, digests of code; nothing in it may change from run to run.
    `libraries` are the distributions whose versions the bytes depend on.
    """

    step: str
    options: StepOptions
    parents: tuple[Artifact, ...]
    also: Mapping[str, Any] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()

    @cached_property
    def made_by(self) -> Step:
        """The record of the making, as the manifest keeps it; choices aside, which are known only at the end."""
        return Step(
            step=self.step,
            version=__version__,
            # Through JSON, so that it equals what a manifest gives back: a tuple is a list there.
            options=msgspec.json.decode(msgspec.json.encode(record.options(self.options) | dict(self.also))),
            parents=tuple(parent.digest for parent in self.parents),
            seed=getattr(self.options, "seed", None),
            environment=_environment(self.libraries),
        )

    @cached_property
    def lineage(self) -> tuple[Record, ...]:
        """The records of all ancestors, each once, oldest first."""
        found: dict[str, Record] = {}
        for parent in self.parents:
            for ancestor in parent.manifest.history():
                found.setdefault(ancestor.digest, ancestor)
        return tuple(found.values())

    def made(self, standing: Manifest) -> bool:
        """Whether a manifest tells of this very origin: same step, options, parents and lineage, metrics aside."""
        made = standing.made_by
        if made is None or (made.step, made.options) != (self.step, self.made_by.options):
            return False
        if standing.encryption is not None and not made.parents:  # sealed in private: the parents are not told
            return [standing.encryption.digest] == [parent.digest for parent in self.parents]
        return made.parents == self.made_by.parents and _told(standing.lineage) == _told(self.lineage)

    def is_current(self, out: Path) -> bool:
        """Whether `out` stands, whole, as this origin would make it, so that nothing need be done."""
        try:
            standing = Artifact.open(out)
        except ArtifactError:
            return False
        if not self.made(standing.manifest) or standing.manifest.annotations != self.options.annotation_map():
            return False
        return all(
            standing.file(entry).is_file() and digests.of_file(standing.file(entry)) == entry.sha256
            for entry in standing.manifest.files
        )


def _environment(libraries: Sequence[str]) -> dict[str, str]:
    from importlib import metadata  # here, for it takes 10 ms that `--help` need not wait

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in libraries:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _told(records: Sequence[Record]) -> list[tuple[object, ...]]:
    """What of a lineage must be the same for two of them to tell the same."""
    steps = [one.made_by for one in records]
    return [
        (one.format, one.digest, step and (step.step, step.options, step.parents))
        for one, step in zip(records, steps, strict=True)
    ]


@dataclass
class Draft:
    """An artifact in the making: write `path` (and further files beside it), and say what is known of it."""

    path: Path
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    preprocess: tuple[Preprocess, ...] = ()
    postprocess: tuple[Postprocess, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    encryption: Encryption | None = None
    private: bool = False  # tell neither history, nor signature, nor figures
    known: dict[str, tuple[int, str]] = field(default_factory=dict)  # size and digest of files hashed while written


@contextlib.contextmanager
def create(out: Path, origin: Origin) -> Iterator[Draft]:
    """The one door through which artifacts are written: yields a `Draft`, and commits it when the block ends well.

    The draft begins with the first parent's inputs, outputs and processing. UsageError before any work when `out` can't
    be the name of an artifact or may not be written, see `check_out`.
    """
    made_by = origin.made_by  # now: a file that changes while the step runs is remembered as the step found it
    with stage(out.parent, out.name, lambda: check_out(out, origin)) as staged:
        draft = Draft(staged.folder / out.name)
        if origin.parents:
            first = origin.parents[0].manifest
            draft.inputs, draft.outputs = first.inputs, first.outputs
            draft.preprocess, draft.postprocess = first.preprocess, first.postprocess
        yield draft
        _carry_tokenizer(draft, origin.parents[:1])
        made_by = msgspec.structs.replace(made_by, choices=draft.choices)
        made = _described(out, origin, made_by, draft, _hashed(staged.folder, out.name, draft.known))
        sidecar = staged.folder / (out.name + manifest.SUFFIX)
        sidecar.write_bytes(made.text().encode())
        manifest.parse(sidecar.read_bytes(), str(manifest_path(out)))  # what is written can be read
        names = [entry.path for entry in made.files]
        staged.commit(names, sidecar.name, stale=lambda: _replaced(out, origin, names))


def _carry_tokenizer(draft: Draft, parents: Sequence[Artifact]) -> None:
    """Beside a draft whose texts are cut by a tokenizer, that of its parent, unless the step has put one there.

    Now, as what lies beside a draft while a step works is taken for the model's weights.
    """
    beside = draft.path.with_name(draft.path.name + TOKENIZER_SUFFIX)
    if draft.encryption or beside.exists() or not any(isinstance(one, Text) for one in draft.preprocess):
        return
    for parent in parents:
        known = {entry.path: entry for entry in parent.manifest.files}
        entry = known.get(parent.path.name + TOKENIZER_SUFFIX)
        if entry is None:
            raise ArtifactError(f"{parent.path}: takes texts, but its manifest lists no {TOKENIZER_SUFFIX[1:]}")
        shutil.copyfile(parent.file(entry), beside)
        if digests.of_file(beside) != entry.sha256:
            raise IntegrityError(f"{parent.file(entry)}: the bytes are not the ones that its manifest describes")


def _described(out: Path, origin: Origin, made_by: Step, draft: Draft, files: tuple[FileEntry, ...]) -> Manifest:
    made = Manifest(
        name=model_name(out),
        format=format_of(out),
        files=files,
        made_by=msgspec.structs.replace(made_by, parents=()) if draft.private else made_by,
        annotations=origin.options.annotation_map(),
        encryption=draft.encryption,
    )
    if draft.private:
        return made
    return msgspec.structs.replace(
        made,
        inputs=draft.inputs,
        outputs=draft.outputs,
        preprocess=draft.preprocess,
        postprocess=draft.postprocess,
        metrics=draft.metrics,
        lineage=origin.lineage,
    )


def refuse_folder(out: Path) -> None:
    """UsageError where `out` is to be a file, but a folder stands."""
    if out.is_dir():
        raise UsageError(f"{out}: is a folder, not a file to write", f"-o {shlex.quote(str(out / 'model.onnx'))}")


def check_out(out: Path, origin: Origin) -> None:
    """Refuse, with a UsageError, an `out` that can't be written or that stands and would be lost.

    It must have the suffix of a format, a name that a manifest can keep, and a folder to lie in; it may be no link, no
    folder and no file of a parent; and what stands there must be of this very origin, unless the options `force` it.
    """
    refuse_folder(out)
    format_of(out)
    try:
        manifest.check_path(out.name, str(out))
    except ArtifactError as error:
        raise UsageError(
            f"{out}: no name for an artifact: hidden, or with a character that not every system has"
        ) from error
    refuse_no_folder(out)
    refuse_no_file(out)
    if not out.exists():
        return
    for parent in origin.parents:
        files = [parent.path, *(parent.file(entry) for entry in parent.manifest.files)]
        if any(file.exists() and file.samefile(out) for file in files):
            raise UsageError(
                f"{out}: is the input itself; a step leaves its input alone", "choose another name with -o"
            )
    if origin.options.force:
        return
    with contextlib.suppress(ArtifactError):
        if origin.made(Artifact.open(out).manifest):
            return
    raise UsageError(f"{out}: stands already, and this command would not make the same", "add --force to replace it")


def _replaced(out: Path, origin: Origin, names: Sequence[str]) -> list[str]:
    """`left_behind(out)`, after a last look whether what is to be replaced may be."""
    check_out(out, origin)
    stale = left_behind(out)
    for name in names:
        beside = out.with_name(name)
        if name != out.name and name not in stale and os.path.lexists(beside) and not origin.options.force:
            raise UsageError(f"{beside}: stands already, and is no file of {out.name}", "add --force to replace it")
    return stale


def _hashed(folder: Path, primary: str, known: Mapping[str, tuple[int, str]]) -> tuple[FileEntry, ...]:
    entries = []
    for name in sorted((file.name for file in folder.iterdir()), key=lambda name: (name != primary, name)):
        size, sha256 = known.get(name) or ((folder / name).stat().st_size, digests.of_file(folder / name))
        entries.append(FileEntry(path=name, size=size, sha256=sha256))
    if not entries or entries[0].path != primary:
        raise RuntimeError(f"a step ended well without having written {primary}")
    return tuple(entries)
