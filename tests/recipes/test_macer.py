import numpy as np
import pytest
import torch
from scipy import special, stats

from certbench.recipes import macer


def by_hand(logits, labels, sigma, beta, hinge):
    """Classification and radius loss of Zhai et al., image by image in numpy."""
    copies, count, _ = logits.shape
    classification = radius = 0.0
    for i in range(count):
        soft = np.mean([special.softmax(logits[s, i]) for s in range(copies)], axis=0)
        classification += -np.log(soft[labels[i]] + 1e-10)
        sharp = np.mean([special.softmax(beta * logits[s, i]) for s in range(copies)], axis=0)
        order = np.argsort(sharp)[::-1]
        if order[0] == labels[i]:
            gap = stats.norm.ppf(sharp[order[0]]) - stats.norm.ppf(sharp[order[1]])
            if np.isfinite(gap):
                radius += sigma / 2 * max(0.0, hinge - gap)
    return classification / count, radius / count


@pytest.mark.parametrize("beta, hinge", [(1.0, 8.0), (4.0, 2.0), (16.0, 8.0)])
def test_both_losses_are_those_of_the_paper(beta, hinge):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 40, 5))
    labels = rng.integers(0, 5, 40)
    labels[:20] = logits[:, :20].mean(0).argmax(1)  # enough images that are right
    wanted = by_hand(logits, labels, 0.5, beta, hinge)
    made = torch.tensor(logits), torch.tensor(labels)
    assert float(macer.classification_loss(*made)) == pytest.approx(wanted[0], rel=1e-6)
    assert float(macer.radius_loss(*made, 0.5, beta, hinge)) == pytest.approx(wanted[1], rel=1e-6)
    assert wanted[1] > 0


def test_wrong_images_and_images_beyond_the_hinge_have_no_radius_loss():
    wrong = torch.tensor([[[2.0, 1.0, 0.0]]])
    assert macer.radius_loss(wrong, torch.tensor([1]), 0.5, 1.0, 8.0) == 0
    sure = torch.tensor([[[9.0, 0.0, 0.0]]], dtype=torch.float64)
    assert macer.radius_loss(sure, torch.tensor([0]), 0.5, 1.0, 2.0) == 0
    assert macer.radius_loss(sure, torch.tensor([0]), 0.5, 1.0, 50.0) > 0


def test_certain_predictions_keep_the_gradient_finite():
    logits = torch.tensor([[[200.0, 0.0]], [[300.0, 0.0]]], requires_grad=True)
    loss = macer.radius_loss(logits, torch.tensor([0]), 0.5, 16.0, 8.0)
    (loss + macer.classification_loss(logits, torch.tensor([0]))).backward()
    assert loss == 0 and logits.grad.isfinite().all()


def test_the_radius_loss_pushes_the_right_class_up():
    logits = torch.randn(6, 10, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    logits[:, :, 2] += 0.3
    logits.requires_grad_()
    macer.radius_loss(logits, torch.full((10,), 2), 0.25, 4.0, 8.0).backward()
    assert (logits.grad.sum(0)[:, 2] < 0).all()


def test_a_deferred_radius_has_no_weight_before_its_time(context):
    params = macer.Params(sigma=0.5, noise_samples=2, epochs=10, deferred=0.5, batch_size=8)
    found = []
    for epoch in (4, 5):
        made = context(params)
        from certbench.recipes.loop import Batch

        batch = Batch(
            made.images[:4].float() / 255,
            made.labels[:4],
            epoch,
            torch.Generator().manual_seed(0),
        )
        torch.manual_seed(0)
        loss, logits = macer.batch_loss(made.network.eval(), batch, params)
        plain = macer.classification_loss(logits.view(2, 4, 3), made.labels[:4])
        found.append(float((loss - plain).detach()))
    assert found[0] == 0 and found[1] > 0
