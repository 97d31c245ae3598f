"""Training: what is learned, that the same seed learns the same, and that nothing global is left changed."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modelctl.data import Samples
from modelctl.data.rows import Held, Rows
from modelctl.errors import CheckFailed, UnsupportedError
from modelctl.graph import augmentation, losses, students, training
from modelctl.graph.checkpoints import Checkpoint
from modelctl.graph.training import History, Recipe
from modelctl.manifest import TensorSpec
from modelctl.options import Optimizer, Schedule

RECIPE = Recipe(epochs=6, batch_size=16, lr=0.02)


def blobs(count: int = 120) -> Samples:
    """Three well separated classes in the plane."""
    labels = np.arange(count) % 3
    noise = np.random.default_rng(0).normal(0, 0.3, (count, 2))
    centres = np.array([[0, 2], [2, -1], [-2, -1]])
    return Samples({"x": (centres[labels] + noise).astype(np.float32)}, labels.astype(np.int64))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def taught(samples: Samples, recipe: Recipe = RECIPE, seed: int = 0) -> nn.Sequential:
    assert samples.labels is not None
    with training.reproducible(seed, 1):
        module = net()
        training.fit(module, lambda inputs: module(*inputs), samples, losses.label_loss(samples.labels), recipe)
    return module


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_classes_are_learned(optimizer: Optimizer) -> None:
    samples = blobs()
    module = taught(samples, Recipe(epochs=6, batch_size=16, lr=0.05, optimizer=optimizer))
    assert not module.training
    found = module(torch.from_numpy(samples.inputs["x"])).argmax(1).numpy()
    assert (found == samples.labels).mean() > 0.95


def test_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    first, second, other = (taught(blobs(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_samples_that_are_not_held_teach_the_same() -> None:
    samples = blobs()
    read = Samples(Rows({"x": Held(samples.inputs["x"])}), samples.labels)
    assert not read.is_held
    held, found = taught(samples), taught(read)
    assert all(torch.equal(one, found.state_dict()[name]) for name, one in held.state_dict().items())
    pictures = Samples(Rows({"x": Held(np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4))}))
    flipped = augmentation.flipped(pictures, "m")
    assert not flipped.is_held
    assert flipped.inputs["x"][0, 0].tolist() == [[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8]]


def test_nothing_global_is_left_changed() -> None:
    before = torch.random.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError), training.reproducible(3, 7):
        assert torch.get_num_threads() == 7
        torch.rand(5)
        raise ZeroDivisionError
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[1:]


def test_last_sample_alone_sits_out() -> None:
    taught(blobs(33))  # batch norm refuses a batch of one


def test_divergence_is_told() -> None:
    samples = blobs()
    module = net()
    with pytest.raises(CheckFailed, match="training diverged in epoch 1: the loss is nan"):
        training.fit(
            module, lambda inputs: module(*inputs), samples, lambda answers, rows: answers.sum() * math.nan, RECIPE
        )


def first_of(module: nn.Module) -> torch.Tensor:
    """The first weights of a net."""
    return next(iter(module.parameters()))


class Stopped(Exception):  # noqa: N818 - no error: what a killed process is to a training
    pass


class Stopper:
    """Stops a training after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> None:
        self.left -= 1
        if not self.left:
            raise Stopped


def dropping() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))


def learned(folder: Path, recipe: Recipe, steps: int = -1, every_s: float = 60.0) -> tuple[nn.Module, History]:
    """A net after training with a checkpoint in `folder`, or Stopped after so many steps."""
    samples = blobs()
    assert samples.labels is not None
    loss = losses.label_loss(samples.labels)
    with training.reproducible(0, 1):
        module = dropping()
        kept = Checkpoint(folder, "this one", every_s=every_s)

        def answer(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
            found: torch.Tensor = module(*inputs)
            return found

        history = training.fit(
            module,
            answer,
            samples,
            loss,
            recipe,
            after_step=Stopper(steps),
            validate=lambda: training.mean_loss(answer, samples, loss, recipe),
            checkpoint=kept,
        )
    return module, history


@pytest.mark.parametrize("stops", [[1], [7], [8], [9], [13, 3, 11]])
@pytest.mark.parametrize(
    "recipe",
    [RECIPE, replace(RECIPE, optimizer=Optimizer.SGD, schedule=Schedule.COSINE, warmup=0.2, patience=2, clip=0.5)],
)
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, stops: list[int], recipe: Recipe) -> None:
    whole, told = learned(tmp_path / "whole", recipe)
    for steps in stops:
        with pytest.raises(Stopped):
            learned(tmp_path / "stopped", recipe, steps, every_s=0)
    again, told_again = learned(tmp_path / "stopped", recipe, every_s=0)
    assert told_again == told
    wanted, found = whole.state_dict(), again.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_the_best_epoch_is_kept_when_patience_ends() -> None:
    samples = blobs()
    assert samples.labels is not None
    said = iter([3.0, 1.0, math.nan, 1.0, 0.5])
    weights: list[torch.Tensor] = []

    def validate() -> float:
        assert not module.training
        weights.append(first_of(module).detach().clone())
        return next(said)

    with training.reproducible(0, 1):
        module = net()
        history = training.fit(
            module,
            lambda inputs: module(*inputs),
            samples,
            losses.label_loss(samples.labels),
            replace(RECIPE, patience=2),
            validate=validate,
        )
    assert history.kept == 2
    assert history.validation == [3.0, 1.0, math.inf, 1.0]
    assert torch.equal(first_of(module), weights[1])
    assert not torch.equal(first_of(module), weights[3])


def test_what_is_held_after_each_step_stays() -> None:
    samples = blobs()
    assert samples.labels is not None
    module = net()
    mask = (torch.arange(32) % 2).reshape(16, 2)

    def hold() -> None:
        with torch.no_grad():
            first_of(module).mul_(mask)

    hold()
    loss = losses.label_loss(samples.labels)
    training.fit(module, lambda inputs: module(*inputs), samples, loss, RECIPE, after_step=hold)
    assert torch.count_nonzero(first_of(module)) == 16


def test_a_flipped_picture_is_judged_by_its_own_target() -> None:
    pictures = np.random.default_rng(0).normal(size=(10, 1, 2, 3)).astype(np.float32)
    samples = Samples({"x": pictures})
    both = np.concatenate([pictures, augmentation.flipped(samples, "m").inputs["x"]])
    seen = []

    def loss(answers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        assert torch.equal(answers.detach(), torch.from_numpy(both)[rows])
        seen.extend(rows.tolist())
        return answers.sum()

    module = nn.PReLU(init=0)
    recipe = Recipe(epochs=9, batch_size=4, lr=0.1)
    flips = augmentation.flips(samples, "m")
    training.fit(module, lambda inputs: inputs[0] + 0 * first_of(module), samples, loss, recipe, augment=flips)
    assert set(seen) == set(range(20))
    with pytest.raises(UnsupportedError, match="m: only pictures"):
        augmentation.flips(blobs(), "m")


def test_bfloat16_learns_and_leaves_weights_as_they_are() -> None:
    module = taught(blobs(), replace(RECIPE, bfloat16=True))
    assert first_of(module).dtype == torch.float32
    samples = blobs()
    assert (module(torch.from_numpy(samples.inputs["x"])).argmax(1).numpy() == samples.labels).mean() > 0.95


def test_copies_in_float32_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    samples = blobs()
    assert samples.labels is not None
    loss = losses.label_loss(samples.labels)

    def learned(folder: Path, steps: int) -> torch.Tensor:
        with training.reproducible(0, 1):
            module = nn.Linear(2, 3, dtype=torch.bfloat16)
            training.fit(
                module,
                lambda inputs: module(inputs[0].bfloat16()),
                samples,
                loss,
                replace(RECIPE, lr=1e-4),
                after_step=Stopper(steps),
                checkpoint=Checkpoint(folder, "half", every_s=0),
            )
        return module.weight

    whole = learned(tmp_path / "whole", -1)
    with pytest.raises(Stopped):
        learned(tmp_path / "stopped", 20)
    assert torch.equal(learned(tmp_path / "stopped", -1), whole)
    assert whole.dtype == torch.bfloat16


def test_whole_batches_leave_out_what_fills_none() -> None:
    sizes = set()

    def answer(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        sizes.add(len(inputs[0]))
        found: torch.Tensor = module(*inputs)
        return found

    samples = blobs(50)
    assert samples.labels is not None
    module, loss = net(), losses.label_loss(samples.labels)
    recipe = replace(RECIPE, whole_batches=True)
    training.fit(module, answer, samples, loss, recipe)
    training.mean_loss(answer, samples, loss, recipe)
    assert sizes == {16}


def spec(*shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=("batch", *shape))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 28, 28), "cnn"),
        ((3, 32, 20), "cnn"),
        ((1, 8, 8), "cnn"),
        ((2, 2, 3), "cnn"),
        ((17,), "mlp"),
        ((5, 4), "mlp"),
    ],
)
@pytest.mark.parametrize("size", [2_000, 47_000])
def test_plain_student_is_as_large_as_it_may_be(shape: tuple[int, ...], kind: str, size: int) -> None:
    module, chosen = students.plain((spec(*shape),), 10, size)
    assert chosen["student"] == kind
    assert size / 2 < chosen["parameters"] <= size
    assert module(torch.zeros(3, *shape)).shape == (3, 10)


def test_smallest_possible_student_is_told_where_less_is_asked_for() -> None:
    with pytest.raises(UnsupportedError, match=r"at least \d+ parameters, 10 were asked for") as caught:
        students.plain((spec(1, 28, 28),), 10, 10)
    smallest = int(str(caught.value.hint).split()[-1])
    assert students.plain((spec(1, 28, 28),), 10, smallest)[1]["parameters"] == smallest


@pytest.mark.parametrize("inputs", [(spec("h", "w"),), (spec(4, dtype="int64"),), (spec(),), (spec(4), spec(4))])
def test_teacher_that_no_plain_student_can_follow_is_refused(inputs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(UnsupportedError, match="a plain student takes"):
        students.plain(inputs, 10, 10_000)
