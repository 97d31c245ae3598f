"""Training: what is learned, that the same seed learns the same, and that nothing global is left changed."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from modelctl.data import Samples
from modelctl.data.samples import Array
from modelctl.errors import CheckFailed, UnsupportedError
from modelctl.graph import losses, students, training
from modelctl.graph.training import Recipe
from modelctl.manifest import TensorSpec
from modelctl.options import Optimizer

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


def test_distillation_loss_is_its_formula() -> None:
    random = np.random.default_rng(0)
    teacher, student = (random.normal(0, 2, (5, 4)).astype(np.float32) for _ in range(2))
    labels = np.array([0, 1, 2, 3, 0])
    temperature, alpha = 3.0, 0.7

    def softmax(logits: Array) -> Array:
        powers: Array = np.exp(logits)
        return np.asarray(powers / powers.sum(1, keepdims=True))

    soft, mine = softmax(teacher / temperature), softmax(student / temperature)
    divergence = (soft * np.log(soft / mine)).sum(1).mean()
    hard = -np.log(softmax(student)[np.arange(5), labels]).mean()
    rows = torch.arange(5)
    loss = losses.distillation_loss(teacher, labels, temperature=temperature, alpha=alpha)
    expected = alpha * temperature**2 * divergence + (1 - alpha) * hard
    assert loss(torch.from_numpy(student), rows).item() == pytest.approx(expected, rel=1e-5)
    alone = losses.distillation_loss(teacher, None, temperature=temperature, alpha=alpha)
    assert alone(torch.from_numpy(student), rows).item() == pytest.approx(temperature**2 * divergence, rel=1e-5)
    assert alone(torch.from_numpy(teacher), rows).item() == pytest.approx(0, abs=1e-5)


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
