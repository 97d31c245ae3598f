"""`distill`: a smaller student that learns a teacher's answers, measured against it before it is accepted."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelctl.artifact import Artifact, Payload
from modelctl.data import Data
from modelctl.data.samples import Array
from modelctl.errors import CheckFailed, UnsupportedError, UsageError, missing_extra
from modelctl.formats import onnx as onnx_format
from modelctl.graph import measure, parity, teaching, weights
from modelctl.graph.feeding import data_for
from modelctl.graph.session import Session
from modelctl.making import Draft, Origin, create
from modelctl.options import DistillOptions
from modelctl.progress import Progress, silent

if TYPE_CHECKING:
    from modelctl.formats.program import Traced

LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime")


def origin(model: Artifact, options: DistillOptions) -> Origin:
    """What the student is made from: the teacher, and the samples and code that the options name.

    UnsupportedError for what is not onnx.
    """
    onnx_format.refuse_other(model.manifest, model.path, "distill")
    return Origin("distill", options, (model,), libraries=LIBRARIES)


def distill(model: Artifact, out: Path, options: DistillOptions, progress: Progress = silent) -> Artifact:
    """`out`: a student of `model`, taught on the training part of the data and measured on the test part.

    The teacher's answers are logits [N, classes], or probabilities, whose logarithms serve as well. Without labels the
    teacher's answers are learned alone. CheckFailed when the student is not smaller, or misses a budget;
    UnsupportedError when the teacher is no classifier, the size can't be reached, or torch is missing; UsageError when
    the student answers otherwise than its teacher; ArtifactError when its code fails; DataError for samples that don't
    fit.
    """
    onnx_format.refuse_other_out(out, "distill")
    try:
        from modelctl.graph import training
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise missing_extra(f"{model.path}: distill needs torch", "torch") from error
    threads = options.thread_count()
    with create(out, origin(model, options)) as draft:
        teacher = model.load()
        session = Session(teacher, threads)
        data = data_for(str(options.data), teacher, session, options.seed)
        logits, kind = teaching.logits(session, data.train, "distill", progress)
        draft.choices = {"teacher_answers": kind}
        with training.reproducible(options.seed, threads):
            student = _student(model, session, logits.shape[1], options, draft)
            _refuse_large(student, teacher, out)
            draft.metrics = {"loss": _teach(student, data, logits, options, progress)}
            proven = _write(student, data, draft, options, progress)
        made = onnx_format.written(draft.path)
        taught = Session(made, threads)
        draft.inputs, draft.outputs = taught.inputs, taught.outputs
        facts = measure.compare(teacher, made, measure.trial_on(data, options), progress)
        before = weights.count(onnx_format.parse(teacher)).parameters
        facts |= {"parameters_before": before, "parameter_ratio": round(before / facts["parameters"], 3)}
        draft.metrics |= facts | {"parity": proven}
        measure.judge(out.name, facts, options)
    return Artifact.open(out)


def _student(model: Artifact, session: Session, classes: int, options: DistillOptions, draft: Draft) -> "Traced":
    """The untaught student, called and answering as the teacher is."""
    from modelctl import factory
    from modelctl.formats import program
    from modelctl.graph import students

    chosen: dict[str, Any] = {"student": options.student}
    if options.student is not None:
        module, _ = factory.build(options.student)
        program.check_module(module, options.student)
    else:
        assert options.student_size is not None  # the options hold one of the two
        module, chosen = students.plain(session.inputs, classes, options.student_size)
    name = options.student or f"student of {model.path.name}"
    outputs = (session.outputs[0].name,)
    student = program.Traced(name, module, session.inputs, program.bind(module, session.inputs), outputs)
    _check_answers(student, classes)
    draft.choices |= chosen | {"parameters": students.parameters(module)}
    return student


def _check_answers(student: "Traced", classes: int) -> None:
    """UsageError unless the student answers a batch as the teacher does."""
    student.module.eval()
    feeds = parity.draw(student.inputs, parity.find_sizes(student.run, student.inputs), (0, 0))
    (found,) = student.run(feeds).values()
    wanted = (len(next(iter(feeds.values()))), classes)
    if found.shape != wanted or found.dtype != np.float32:
        told, asked = (
            f"{kind}[{','.join(map(str, shape))}]" for kind, shape in ((found.dtype, found.shape), ("float32", wanted))
        )
        raise UsageError(f"{student.name}: answers {told} where the teacher answers {asked}")


def _refuse_large(student: "Traced", teacher: Payload, out: Path) -> None:
    from modelctl.graph import students

    mine, before = students.parameters(student.module), weights.count(onnx_format.parse(teacher)).parameters
    if mine >= before:
        raise CheckFailed(
            f"{out}: the student has {mine} parameters, and is no smaller than its teacher, which has {before}",
            f"--student-size {max(1, before // 10)}",
        )


def _teach(student: "Traced", data: Data, logits: Array, options: DistillOptions, progress: Progress) -> float:
    import torch

    from modelctl.factory import AuthorsCode
    from modelctl.graph import losses, training

    labels = data.train.labels
    if labels is None:
        progress.note(f"{data.name}: has no labels: the student learns from the teacher alone")
    elif labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UnsupportedError(f"{data.name}: labels are not classes from 0 to {logits.shape[1] - 1}")

    def answer(inputs: Any) -> torch.Tensor:
        args, kwargs = student.call(inputs)
        with AuthorsCode(f"{student.name}: failed in training"):
            found = student.module(*args, **kwargs)
        first = torch.utils._pytree.tree_leaves(found)[0]
        assert isinstance(first, torch.Tensor)
        return first

    loss = losses.distillation_loss(logits, labels, temperature=options.temperature, alpha=options.alpha)
    recipe = training.Recipe(
        epochs=options.epochs, batch_size=options.batch_size, lr=options.lr, optimizer=options.optimizer
    )
    return training.fit(student.module, answer, data.train, loss, recipe, progress).losses[-1]


def _write(student: "Traced", data: Data, draft: Draft, options: DistillOptions, progress: Progress) -> dict[str, Any]:
    """The taught student as ONNX, and the proof that it is the same model."""
    from modelctl.graph import lower

    progress.advance("tracing", 0, 1)
    sizes = parity.find_sizes(student.run, student.inputs, options.seed)
    onnx_format.save(lower.lower(student, sizes, lower.OPSET).model, draft.path)
    candidate = Session(onnx_format.written(draft.path), options.thread_count())
    return parity.check(
        student.run,
        candidate.run,
        student.inputs,
        sizes,
        parity.Tolerance(),
        name=draft.path.name,
        seed=options.seed,
        samples=data.test.inputs,
        progress=progress,
    )
