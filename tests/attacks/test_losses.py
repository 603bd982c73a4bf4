import pytest
import torch

from certbench.attacks import losses

DLR_CASES = [
    ([5.0, 2.0, 1.0, -1.0, 0.0], 0, 1, -0.75, -0.666667),
    ([1.0, 1.0, 1.0, 1.0, 0.0], 2, 0, 0.0, 0.0),
    ([3.0, 3.0, -2.0, 0.5, 1.5], 1, 0, 0.0, 0.0),
    ([100.0, 40.0, 20.0, 10.0, 5.0], 0, 4, -0.75, -1.117647),
]


@pytest.mark.parametrize(("logits", "y", "t", "dlr", "dlr_t"), DLR_CASES)
def test_dlr_losses_equal_the_reference_values(logits, y, t, dlr, dlr_t):
    z, y, t = torch.tensor([logits]), torch.tensor([y]), torch.tensor([t])
    assert losses.dlr(z, y).item() == pytest.approx(dlr, abs=1e-6)
    assert losses.dlr_targeted(z, y, t).item() == pytest.approx(dlr_t, abs=1e-6)


def test_dlr_is_invariant_to_shift_and_scale_and_positive_exactly_when_wrong():
    torch.manual_seed(0)
    z = torch.randn(200, 7, dtype=torch.float64)
    y = torch.randint(0, 7, (200,))
    value = losses.dlr(z, y)
    assert torch.allclose(losses.dlr(1000 * z + 5, y), value, atol=1e-9)
    wrong = z.argmax(1) != y
    assert torch.equal(value > 0, wrong)
    assert (value[~wrong] >= -1).all()


def test_equal_logits_give_zero_loss_and_zero_gradient():
    z = torch.ones(3, 5, requires_grad=True)
    y = torch.tensor([0, 2, 4])
    value = losses.dlr(z, y).sum()
    (slope,) = torch.autograd.grad(value, z)
    assert value.item() == 0
    # The numerator's gradient survives the guard; the logits' differences do not move it.
    assert torch.isfinite(slope).all()


def test_margin_is_positive_while_correct_and_zero_at_a_tie():
    z = torch.tensor([[3.0, 1.0, 2.0], [1.0, 4.0, 2.0], [2.0, 2.0, 0.0]])
    y = torch.tensor([0, 0, 0])
    assert losses.margin(z, y).tolist() == [1.0, -3.0, 0.0]
    assert losses.negative_margin(z, y).tolist() == [-1.0, 3.0, 0.0]


def test_cross_entropy_rounds_to_zero_behind_a_large_margin_but_dlr_does_not():
    z, y = torch.tensor([[40.0, 0.0, -5.0]]), torch.tensor([0])
    assert losses.cross_entropy(z, y).item() == 0
    assert losses.dlr(z, y).item() == pytest.approx(-40 / 45)


def test_targeted_loss_without_targets_is_refused():
    with pytest.raises(ValueError, match="target"):
        losses.dlr_targeted(torch.zeros(1, 4), torch.tensor([0]))
