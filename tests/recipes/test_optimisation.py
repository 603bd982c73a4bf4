import pytest
import torch

from certbench.errors import CertbenchError
from certbench.params import build
from certbench.recipes.optimisation import Optimisation, learning_rate


def rates(scheduler_of, steps, lr):
    """Learning rates of one of torch's own schedulers."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = scheduler_of(optimiser)
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("epochs, drops", [(90, (30, 60)), (150, (50, 100)), (3, (1, 2))])
def test_step_falls_at_the_published_epochs(epochs, drops):
    params, batches = Optimisation(epochs=epochs), 7
    made = [learning_rate(params, s, epochs * batches) for s in range(epochs * batches)]
    wanted = rates(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [d * batches for d in drops], 0.1),
        epochs * batches,
        0.1,
    )
    assert made == pytest.approx(wanted, rel=1e-9)


def test_macer_falls_at_epochs_200_and_400():
    from certbench.recipes import macer

    params = macer.Params(sigma=0.25)
    made = [learning_rate(params, epoch * 3, 440 * 3) for epoch in (199, 200, 399, 400)]
    assert made == pytest.approx([0.01, 0.001, 0.001, 0.0001])


def test_cosine_is_torchs_cosine():
    params = Optimisation(schedule="cosine", learning_rate=0.3)
    wanted = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50), 50, 0.3)
    assert [learning_rate(params, s, 50) for s in range(50)] == pytest.approx(wanted, rel=1e-9)


def test_one_cycle_is_torchs_one_cycle():
    steps = 20_000  # torch's peak is one step earlier: with many steps the two agree
    params = Optimisation(schedule="one_cycle", learning_rate=0.3, warmup=0.3)
    wanted = rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.3, steps, pct_start=0.3, div_factor=25, final_div_factor=1e9
        ),
        steps,
        0.3,
    )
    made = [learning_rate(params, s, steps) for s in range(steps)]
    assert made == pytest.approx(wanted, abs=1e-4)


def test_one_cycle_without_warmup_starts_at_the_peak():
    params = Optimisation(schedule="one_cycle", warmup=0.0)
    assert learning_rate(params, 0, 10) == 0.1


def test_constant_is_constant():
    params = Optimisation(schedule="constant", learning_rate=0.02)
    assert {learning_rate(params, s, 10) for s in range(10)} == {0.02}


@pytest.mark.parametrize(
    "values, key",
    [
        ({"epochs": 0}, "epochs"),
        ({"schedule": "cosin"}, "schedule"),
        ({"decay_at": [0.5, 1.0]}, "decay_at"),
        ({"momentum": 1.0}, "momentum"),
        ({"learning_rat": 0.1}, "learning_rat"),
    ],
)
def test_values_out_of_range_name_their_key(values, key):
    with pytest.raises(CertbenchError, match=key):
        build(Optimisation, values, "config: models.m.recipe")
