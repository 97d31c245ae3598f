"""`log`: where an artifact comes from, the chain down to the trained checkpoint with the figures of each step."""

from pathlib import Path

import msgspec

from modelctl import integrity, lineage
from modelctl.artifact import Artifact
from modelctl.progress import Progress, silent
from modelctl.report import Report


def log(path: Path, progress: Progress = silent) -> Report:  # noqa: ARG001 - as every step
    """The chain that is told in the manifest of the artifact at `path`; a foreign file is a chain of itself alone.

    ArtifactError when there is no artifact; IntegrityError when what is told is no chain. No file's content is looked
    at: that is for `verify`.
    """
    model = Artifact.open(path)
    integrity.check_chain(model.manifest, str(path))
    records = model.manifest.history()
    facts = {
        "path": str(path),
        "digest": model.digest,
        "chain": [msgspec.to_builtins(one) for one in records],  # oldest first
        "roots": [{"name": name, "digest": digest} for digest, name in integrity.roots(model.manifest).items()],
    }
    return Report(subject=str(path), facts=facts, lines=tuple(lineage.tree(model.manifest)))
