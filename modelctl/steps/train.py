"""`train`: an ONNX file, taught further on samples, and accepted only when it is the same model, and as good as asked.

A step in three parts: what is learned (`learner`, `losses`), how (`training`), and whether the file that is written is
what was trained (`parity`) and good (`measure`).
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from modelctl import digests
from modelctl.artifact import Artifact
from modelctl.data import Data, Samples
from modelctl.data.samples import Array
from modelctl.errors import DataError, UnsupportedError, UsageError, missing_extra
from modelctl.formats import onnx as onnx_format
from modelctl.graph import measure, parity, teaching
from modelctl.graph.feeding import data_for
from modelctl.graph.session import Session
from modelctl.making import Draft, Origin, create
from modelctl.options import Device, Loss, Precision, TrainOptions
from modelctl.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from modelctl.graph.checkpoints import Checkpoint
    from modelctl.graph.learner import Learner
    from modelctl.graph.losses import Objective
    from modelctl.graph.trainable import TrainableGraph
    from modelctl.graph.training import Recipe

LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")
PROBED = 8  # samples that a graph is asked first, to see what it answers
# What says no at the end, and changes nothing of what is learned.
GATES = frozenset({"max_drop", "min_agreement", "min_speedup", "allow_regression"})


def origin(model: Artifact, options: TrainOptions) -> Origin:
    """What the result is made from: the model, the samples, and the teacher where there is one.

    UnsupportedError for what is not onnx.
    """
    onnx_format.refuse_other(model.manifest, model.path, "train")
    parents = [model]
    if options.teacher is not None:
        parents.append(Artifact.open(options.teacher))
        onnx_format.refuse_other(parents[1].manifest, parents[1].path, "train")
    return Origin("train", options, tuple(parents), libraries=LIBRARIES)


def train(model: Artifact, out: Path, options: TrainOptions, progress: Progress = silent) -> Artifact:
    """`out`: the same graph, its weights taught on the training part of the data, measured on its test part.

    CheckFailed when the loss is not a number any more, a budget is missed, or the file does not compute what was
    trained; UnsupportedError for an operator that can't be trained, for nothing that could learn, and when torch is
    missing; DataError for samples and labels that don't fit; UsageError for an output or initializers that are not
    there, and for a checkpoint of another training.
    """
    onnx_format.refuse_other_out(out, "train")
    try:
        from modelctl.graph import checkpoints, trainable, training
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise missing_extra(f"{model.path}: train needs torch", "torch") from error
    made_from = origin(model, options)
    threads = options.thread_count()
    with create(out, made_from) as draft:
        payload = model.load()
        session = Session(payload, threads)
        data = data_for(str(options.data), payload, session, options.seed)
        with training.reproducible(options.seed, threads):
            graph = trainable.TrainableGraph.of(payload, str(model.path))
            work = _Work(made_from, options, graph, session, _Parts.of(data, options), progress)
            kept = None
            if options.checkpoint is not None:
                kept = checkpoints.Checkpoint(options.checkpoint, work.fingerprint(), anew=options.force)
            draft.metrics = work.teach(draft, kept) | {"parity": work.write(draft)}
        draft.inputs, draft.outputs = draft.inputs or session.inputs, draft.outputs or session.outputs
        trial = replace(measure.trial_on(data, options), samples=work.parts.test, output=options.output)
        draft.metrics |= measure.compare(payload, onnx_format.written(draft.path), trial, progress)
        measure.judge(str(out), draft.metrics, options, same_graph=True)
    if kept is not None:
        kept.remove()
    return Artifact.open(out)


@dataclass(frozen=True)
class _Parts:
    """The samples to learn from, to watch and to report on, their labels as the loss takes them."""

    name: str
    loss: Loss
    train: Samples
    validation: Samples
    test: Samples

    @classmethod
    def of(cls, data: Data, options: TrainOptions) -> "_Parts":
        """The parts of `data`; DataError when there are no labels and no teacher either."""
        from modelctl.graph import losses

        labels = data.train.labels
        if labels is None and options.teacher is None:
            raise DataError(f"{data.name}: has no labels 'y' to learn from", "add --teacher model.onnx")
        loss = Loss.CROSS_ENTROPY if labels is None else losses.chosen(options.loss, labels)
        if options.teacher is not None and loss is not Loss.CROSS_ENTROPY:
            raise UnsupportedError(f"{data.name}: a teacher's answers are learned as classes, not by {loss}")
        return cls(data.name, loss, *(_with_targets(one, loss) for one in (data.train, data.validation, data.test)))

    def check(self, answers: tuple[int, ...]) -> None:
        """DataError unless all labels fit answers of that shape."""
        from modelctl.graph import losses

        for part in (self.train, self.validation, self.test):
            if part.labels is not None:
                losses.check(self.loss, part.labels, answers, self.name)


def _with_targets(samples: Samples, loss: Loss) -> Samples:
    """The samples, their labels as numbers where the loss takes no classes."""
    if samples.labels is None or loss is Loss.CROSS_ENTROPY:
        return samples
    return replace(samples, labels=samples.labels.astype(np.float64))


@dataclass(frozen=True)
class _Work:
    """A graph that is to be taught, and what is needed for it."""

    origin: Origin
    options: TrainOptions
    graph: "TrainableGraph"
    session: Session
    parts: _Parts
    progress: Progress

    def fingerprint(self) -> str:
        """What tells whether a checkpoint is one of this very training."""
        made_by = self.origin.made_by
        options = {name: value for name, value in made_by.options.items() if name not in GATES}
        told = [made_by.version, options, made_by.parents, made_by.environment, self.options.thread_count()]
        return digests.of_bytes(msgspec.json.encode([*told, self.device.type], order="deterministic"))

    def teach(self, draft: Draft, kept: "Checkpoint | None") -> dict[str, Any]:
        """Train the graph, in place: the losses by epoch, and how much has learned."""
        from modelctl.graph import augmentation, training
        from modelctl.graph.learner import learner_of

        learned = self._choose()
        few = self.parts.train.pick(np.arange(self.batch or PROBED) % len(self.parts.train))
        learner = learner_of(self.graph, few, self.parts.loss, self.options.output)
        self.parts.check(learner.shape)
        recipe = self._recipe()
        draft.choices = {"loss": str(self.parts.loss), "taught": learner.value, "device": recipe.device.type}
        samples = self.parts.train
        flips = augmentation.flips(samples, self.graph.name) if self.options.flip else None
        loss, watched = self._loss(samples, learner, flip=self.options.flip), self._loss(self.parts.validation, learner)
        self.graph.to(recipe.device)
        history = training.fit(
            self.graph,
            learner.answer,
            samples,
            loss,
            recipe,
            self.progress,
            augment=flips,
            validate=lambda: training.mean_loss(learner.answer, self.parts.validation, watched, recipe),
            checkpoint=kept,
        )
        self.graph.to("cpu")
        return {
            "loss": [round(one, 6) for one in history.losses],
            "validation_loss": [round(one, 6) if math.isfinite(one) else None for one in history.validation],
            "kept_epoch": history.kept,
            "learned": learned,
        }

    def write(self, draft: Draft) -> dict[str, Any]:
        """The taught graph as ONNX, and the proof that onnxruntime computes what torch did."""
        import torch

        from modelctl.graph.tensors import array_of, tensor_of

        self.graph.save(draft.path)
        candidate = Session(onnx_format.written(draft.path), self.options.thread_count())

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            with torch.no_grad():
                found = self.graph(*(tensor_of(feeds[name]) for name in self.graph.input_names))
            return {name: array_of(one) for name, one in zip(self.graph.output_names, found, strict=True)}

        return parity.check(
            run,
            candidate.run,
            self.session.inputs,
            parity.find_sizes(run, self.session.inputs, self.options.seed),
            parity.Tolerance(allow_vacuous=True),  # what it was before, it may stay
            name=draft.path.name,
            seed=self.options.seed,
            samples=self.parts.test.inputs,
            progress=self.progress,
        )

    @property
    def batch(self) -> int | None:
        """How many samples the model takes at a time, where that is fixed."""
        size = self.session.inputs[0].shape[0]
        return size if isinstance(size, int) else None

    @cached_property
    def device(self) -> "torch.device":
        """Where to compute; UnsupportedError when there is no such device."""
        import torch

        if self.options.device is Device.CPU or not torch.cuda.is_available():
            if self.options.device is Device.CUDA:
                raise UnsupportedError("--device cuda: torch finds no CUDA device here", "--device cpu")
            return torch.device("cpu")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, sums come in any order
        return torch.device("cuda")

    def _recipe(self) -> "Recipe":
        from modelctl.graph.training import Recipe

        options, count = self.options, len(self.parts.train)
        if self.batch is not None and count < self.batch:
            raise DataError(
                f"{self.parts.name}: holds {count} samples to learn from, and the model takes {self.batch} at a time"
            )
        return Recipe(
            epochs=options.epochs,
            batch_size=self.batch or options.batch_size,
            whole_batches=self.batch is not None,
            lr=options.rate,
            optimizer=options.optimizer,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            schedule=options.schedule,
            warmup=options.warmup,
            clip=options.clip,
            bfloat16=options.precision is Precision.BFLOAT16,
            patience=options.patience,
            device=self.device,
        )

    def _loss(self, samples: Samples, learner: "Learner", flip: bool = False) -> "Objective":
        """What is made small on these samples, and on their flipped views too."""
        from modelctl.graph import augmentation, losses

        options, kind, labels = self.options, self.parts.loss, samples.labels
        if options.teacher is None:
            assert labels is not None  # else there were no parts
            smoothing = options.label_smoothing
            return (
                losses.label_loss(labels, smoothing) if kind is Loss.CROSS_ENTROPY else losses.target_loss(kind, labels)
            )
        teacher = Session(self.origin.parents[1].load(), options.thread_count())
        _refuse_other_inputs(teacher, self.session)
        views = [samples, *([augmentation.flipped(samples, self.graph.name)] if flip else [])]
        logits = np.concatenate([teaching.logits(teacher, one, "train", self.progress)[0] for one in views])
        if logits.shape[1:] != learner.shape[1:]:
            told = f"{logits.shape[1]} classes, and {self.graph.name} {list(learner.shape[1:])}"
            raise DataError(f"{teacher.name}: answers {told}")
        return losses.distillation_loss(
            logits, labels, temperature=options.temperature, alpha=options.alpha, smoothing=options.label_smoothing
        )

    def _choose(self) -> int:
        """Let only those weights learn that are to; how many numbers they are."""
        names = self.graph.parameter_names
        for flag, patterns in (("--freeze", self.options.freezes), ("--only", self.options.onlys)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names.values()):
                    some = ", ".join(list(names.values())[:5])
                    raise UsageError(f"{flag} {pattern}: {self.graph.name} learns no weight of that name", f"as {some}")
        count = 0
        for key, name in names.items():
            wanted = not self.options.onlys or any(fnmatchcase(name, one) for one in self.options.onlys)
            learns = wanted and not any(fnmatchcase(name, one) for one in self.options.freezes)
            weight = self.graph.get_parameter(key).requires_grad_(learns)
            count += weight.numel() if learns else 0
        if not count:
            quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in self.graph.nodes)
            hint = "train the float model that it was made from" if quantized else None
            left = "no weight is left that learns" if names else "holds no float weights that could learn"
            raise UnsupportedError(f"{self.graph.name}: {left}", hint)
        return count


def _refuse_other_inputs(teacher: Session, student: Session) -> None:
    theirs, mine = ([(one.name, one.dtype) for one in side.inputs] for side in (teacher, student))
    if theirs != mine:
        told = ", ".join(f"{name} ({dtype})" for name, dtype in theirs)
        raise DataError(f"{teacher.name}: takes other inputs than {student.name}, so it can't teach it: {told}")
