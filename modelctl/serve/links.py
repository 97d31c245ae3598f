"""An ensemble as it runs: its models loaded and checked against each other, tensors passed on in memory.

It looks like one model: it has inputs, outputs, `run`, and a manifest. The digest of that is one of the ensemble's file
and all its models, its lineage is theirs together, and it declares before and after it what they do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

import modelctl
from modelctl import chains, digests
from modelctl.artifact import Payload
from modelctl.errors import UnsupportedError, UsageError
from modelctl.graph.session import Session, Tensors
from modelctl.manifest import FileEntry, Manifest, Record, Step, TensorSpec
from modelctl.serve.ensembles import Link
from modelctl.serve.sources import Gathered, Opened
from modelctl.serve.tensors import Array

FORMAT = "ensemble"
_TENSORS = ("input", "mask", "types", "output")  # what an entry of a declaration calls tensors by

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class _Joined:
    """A model in its place: of its inputs and outputs, the tensors that they are."""

    session: Session
    takes: Mapping[str, str]
    gives: Mapping[str, str]


class Ensemble:
    """Models in a row; `inputs`, `outputs` and `run` are as those of a `Session`."""

    def __init__(self, source: Gathered, threads: int, provider: str) -> None:
        """UsageError where models don't fit together; what `Session` raises, UnsupportedError for what is no onnx."""
        self.name = str(source.path)
        self._brought: dict[str, TensorSpec] = {}
        self._known: dict[str, TensorSpec] = {}
        self._links: list[_Joined] = []
        for link, member in zip(source.told.model, source.members, strict=True):
            session = Session(onnx_of(member.payload), threads, provider)
            self._links.append(self._join(link, session))
        wanted = source.told.outputs or tuple(self._links[-1].gives.values())
        given = {name for link in self._links for name in link.gives.values()}
        for name in wanted:
            if name not in given:
                raise UsageError(f"{self.name}: no model gives {name!r}; given are {', '.join(sorted(given))}")
        self._wanted = tuple(dict.fromkeys(wanted))
        self.inputs = tuple(self._brought.values())
        self.outputs = tuple(self._known[name] for name in self._wanted)
        self.payload = self._described(source)

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """The outputs by name for inputs by name; DataError when one of the models does not take what it is given."""
        tensors = dict(feeds)
        for link in self._links:
            found = link.session.run({name: tensors[called] for name, called in link.takes.items()})
            tensors.update((called, found[name]) for name, called in link.gives.items())
        return {name: tensors[name] for name in self._wanted}

    def _join(self, link: Link, session: Session) -> _Joined:
        """A model in its place behind those that are there."""
        takes = self._called(link, link.inputs, session.inputs, "input")
        gives = self._called(link, link.outputs, session.outputs, "output")
        sizes: dict[str, int | str] = {}  # what free sizes of this model are called here
        for spec in session.inputs:
            if takes[spec.name] in self._known:
                self._check(link, spec, self._known[takes[spec.name]], sizes)
        for spec in session.inputs:
            called = takes[spec.name]
            if called not in self._known:
                self._brought[called] = self._known[called] = _renamed(spec, called, sizes)
        for spec in session.outputs:
            called = gives[spec.name]
            if called in self._known:
                what = "is read before it is given" if called in self._brought else "is given twice"
                raise UsageError(f"{self.name}: {called!r} {what}, by {link.source}", 'outputs = { y = "other" }')
            self._known[called] = _renamed(spec, called, sizes)
        return _Joined(session, takes, gives)

    def _called(self, link: Link, told: Mapping[str, str], specs: Sequence[TensorSpec], kind: str) -> dict[str, str]:
        there = [spec.name for spec in specs]
        for name in told:
            if name not in there:
                raise UsageError(f"{self.name}: {link.source} has no {kind} {name!r}, but {', '.join(there)}")
        return {name: told.get(name, name) for name in there}

    def _check(self, link: Link, spec: TensorSpec, known: TensorSpec, sizes: dict[str, int | str]) -> None:
        """Note what the sizes of an input are called here; UsageError unless it takes what is known under its name."""
        fits = spec.dtype == known.dtype and len(spec.shape) == len(known.shape)
        if fits:
            for size, other in zip(spec.shape, known.shape, strict=True):
                if isinstance(size, str):
                    sizes.setdefault(size, other)
                fits &= isinstance(size, str) or isinstance(other, str) or size == other
        if not fits:
            raise UsageError(
                f"{self.name}: {link.source} takes {_told(spec)} as {spec.name!r}, and {known.name!r} is {_told(known)}"
            )

    def _described(self, source: Gathered) -> Payload:
        """The manifest, and the files that it needs."""
        file = source.path.name
        members = source.members
        entries = [FileEntry(path=file, size=len(source.text), sha256=digests.of_bytes(source.text))]
        for number, member in enumerate(members, 1):
            described = member.payload.manifest
            size = sum(one.size for one in described.files)
            entries.append(FileEntry(path=f"{number}/{described.files[0].path}", size=size, sha256=described.digest))
        records: dict[str, Record] = {}
        for member in members:
            records |= {one.digest: one for one in member.payload.manifest.history()}
        before, after, beside = self._declared(members, file)
        made_by = Step(
            step=FORMAT, version=modelctl.__version__, parents=tuple(one.payload.manifest.digest for one in members)
        )
        described = Manifest(
            name=source.name,
            format=FORMAT,
            files=tuple(entries),
            inputs=self.inputs,
            outputs=self.outputs,
            preprocess=before,
            postprocess=after,
            made_by=made_by,
            lineage=tuple(records.values()),
        )
        return Payload(described, {file: source.text, **beside})

    def _declared(
        self, members: Sequence[Opened], file: str
    ) -> tuple[tuple[chains.Preprocess, ...], tuple[chains.Postprocess, ...], dict[str, bytes]]:
        """What the models declare of the ensemble's own inputs and outputs, and the tokenizer that it takes.

        Nothing of inputs where a declaration leaves one out, or two texts have different tokenizers.
        """
        before: list[chains.Preprocess] = []
        after: list[chains.Postprocess] = []
        tokenizers: set[bytes] = set()
        made: set[str] = set()
        for link, member in zip(self._links, members, strict=True):
            described = member.payload.manifest
            for entry in described.preprocess:
                named = _tensors(entry, link.takes)
                if named["input"] in self._brought:
                    before.append(msgspec.structs.replace(entry, **named))
                    made |= set(named.values())
                    kept = member.payload.files.get(described.files[0].path + chains.TOKENIZER_SUFFIX)
                    tokenizers |= {kept} if isinstance(entry, chains.Text) and kept is not None else set()
            for one in described.postprocess:
                named = _tensors(one, {**link.takes, **link.gives})
                if named["output"] in self._wanted and named.get("mask", named["output"]) in self._known:
                    after.append(msgspec.structs.replace(one, **named))
        if made != set(self._brought) or len(tokenizers) > 1:
            before = []
        beside = dict.fromkeys([file + chains.TOKENIZER_SUFFIX], tokenizers.pop()) if before and tokenizers else {}
        return tuple(before), tuple(after), beside


def onnx_of(payload: Payload) -> Payload:
    """The same; UnsupportedError unless it is a model that can be run."""
    if payload.manifest.format != "onnx":
        kept = payload.manifest.files[0].path
        hint = f"modelctl export {kept} -o {payload.manifest.name}.onnx"
        raise UnsupportedError(f"{kept}: serve runs onnx, this is {payload.manifest.format}", hint)
    return payload


def _tensors(entry: chains.Preprocess | chains.Postprocess, called: Mapping[str, str]) -> dict[str, str]:
    """What an entry calls tensors by, by its fields, in the ensemble's words."""
    found = {field: getattr(entry, field, None) for field in _TENSORS}
    return {field: called.get(name, name) for field, name in found.items() if name is not None}


def _renamed(spec: TensorSpec, called: str, sizes: Mapping[str, int | str]) -> TensorSpec:
    shape = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape)
    return TensorSpec(name=called, dtype=spec.dtype, shape=shape)


def _told(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{','.join(map(str, spec.shape))}]"
