import numpy as np
import pytest
import torch
from scipy import special, stats

from certbench.recipes import consistency


@pytest.fixture
def logits():
    return torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_regularisation_is_that_of_the_paper(logits):
    values = special.softmax(logits.numpy(), axis=2)
    average = values.mean(0)
    kl = np.mean([[stats.entropy(average[i], p[i]) for i in range(7)] for p in values], axis=0)
    wanted = np.mean(20 * kl + 0.5 * stats.entropy(average, axis=1))
    assert float(consistency.regularisation(logits, 20, 0.5)) == pytest.approx(wanted, rel=1e-9)


def test_predictions_that_agree_have_no_divergence(logits):
    same = logits[:1].repeat(4, 1, 1)
    assert float(consistency.regularisation(same, 10, 0.0)) == pytest.approx(0, abs=1e-12)
    assert float(consistency.regularisation(logits, 10, 0.0)) > 0.1


def test_equal_weights_give_the_cross_entropy_to_the_average(logits):
    # Jeong and Shin: divergence plus entropy is the mean cross-entropy.
    average = logits.softmax(2).mean(0)
    cross = -(average * logits.log_softmax(2)).sum(2).mean()
    assert float(consistency.regularisation(logits, 3, 3)) == pytest.approx(3 * float(cross))


def test_certain_predictions_keep_the_gradient_finite():
    logits = torch.tensor([[[500.0, 0.0]], [[0.0, 500.0]]], requires_grad=True)
    consistency.regularisation(logits, 10, 0.5).backward()
    assert logits.grad.isfinite().all()


def test_the_gradient_flows_through_the_average(logits):
    logits = logits.requires_grad_()
    (made,) = torch.autograd.grad(consistency.regularisation(logits, 5, 0.5), logits)
    step = 1e-6
    moved = logits.detach().clone()
    moved[1, 2, 3] += step
    numeric = (
        consistency.regularisation(moved, 5, 0.5)
        - consistency.regularisation(logits.detach(), 5, 0.5)
    ) / step
    assert float(made[1, 2, 3]) == pytest.approx(float(numeric), rel=1e-4)
