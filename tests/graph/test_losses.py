"""Losses: each is its formula, and labels that do not fit are told."""

import numpy as np
import pytest
import torch

from modelctl.data.samples import Array
from modelctl.errors import DataError
from modelctl.graph import losses
from modelctl.options import Loss


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


def test_views_of_a_sample_share_labels_and_have_answers_of_their_own() -> None:
    labels = np.array([0, 1])
    teacher = np.array([[3, 0], [0, 3], [0, 5], [5, 0]], np.float32)
    rows = torch.tensor([2, 1])
    answers = torch.from_numpy(teacher)[rows]
    alone = losses.distillation_loss(teacher, labels, temperature=1, alpha=1)
    assert alone(answers, rows).item() == pytest.approx(0, abs=1e-6)
    once = losses.distillation_loss(teacher[:2], labels, temperature=1, alpha=1)
    assert once(answers, rows).item() > 1
    hard = losses.label_loss(labels)
    assert hard(answers, rows).item() == hard(answers, torch.tensor([0, 1])).item()


def test_losses_of_numbers_are_their_formulas() -> None:
    random = np.random.default_rng(1)
    answers, targets = random.normal(size=(6, 1)).astype(np.float32), random.random(6)
    rows = torch.tensor([4, 0, 5])
    given, wanted = answers[rows, 0].astype(np.float64), targets[rows]
    shares = 1 / (1 + np.exp(-given))
    expected = {
        Loss.MSE: np.mean((given - wanted) ** 2),
        Loss.L1: np.mean(np.abs(given - wanted)),
        Loss.BCE: -np.mean(wanted * np.log(shares) + (1 - wanted) * np.log(1 - shares)),
    }
    for kind, value in expected.items():
        found = losses.target_loss(kind, targets)(torch.from_numpy(answers)[rows], rows)
        assert found.item() == pytest.approx(value, rel=1e-5), kind


@pytest.mark.parametrize(
    ("loss", "labels", "answers", "told"),
    [
        (Loss.CROSS_ENTROPY, np.zeros(4), (8, 3), "learns from classes"),
        (Loss.CROSS_ENTROPY, np.array([0, 3]), (8, 3), "labels run from 0 to 3, but the model answers 3 classes"),
        (Loss.CROSS_ENTROPY, np.array([-1, 2]), (8, 3), "labels run from -1 to 2"),
        (Loss.CROSS_ENTROPY, np.array([0, 0]), (8, 1), "learns from answers"),
        (
            Loss.MSE,
            np.zeros((4, 2)),
            (8, 3),
            r"as many labels as answers, found labels float64\[4, 2\] and answers \[N, 3\]",
        ),
        (Loss.BCE, np.array([0.0, 2.0]), (8, 1), "bce learns from labels from 0 to 1, found 0 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_told(loss: Loss, labels: Array, answers: tuple[int, ...], told: str) -> None:
    with pytest.raises(DataError, match=told):
        losses.check(loss, labels, answers, "data.npz")


def test_auto_is_told_by_the_labels() -> None:
    assert losses.chosen(Loss.AUTO, np.array([1])) is Loss.CROSS_ENTROPY
    assert losses.chosen(Loss.AUTO, np.array([1.0])) is Loss.MSE
    assert losses.chosen(Loss.L1, np.array([1])) is Loss.L1
