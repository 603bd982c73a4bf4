"""Patch attacks: exact on a linear model, sound and strong on the exhaustive toy."""

import dataclasses

import numpy as np
import pytest
import torch

from certbench.attacks import patch_pgd
from certbench.attacks.geometry import GeometryError
from certbench.attacks.target import Target
from certbench.certify import double_masking
from certbench.certify.double_masking import CollectParams, DecideParams
from certbench.certify.protocol import SurfaceWork
from certbench.errors import CertbenchError
from certbench.threat import Threat, contains
from patch_tables import Draws, Toy, every_patch, toy_images


def linear_case(seed, n):
    draw = Draws(seed)
    weight = torch.tensor([draw() % 21 - 10 for _ in range(n * n)]).float().view(n, n)
    image = torch.tensor([(draw() % 17) / 16 for _ in range(n * n)]).float().view(n, n)
    return weight, image


@pytest.mark.parametrize(
    ("seed", "n", "side", "clean", "worst", "place", "positions", "negative"),
    [(31, 8, 2, 43.4375, 20.5, (0, 2), 49, 0), (32, 8, 3, -31.0, -73.625, (2, 5), 36, 36)],
)
def test_the_gain_of_a_linear_model_is_exact(
    seed, n, side, clean, worst, place, positions, negative
):
    weight, image = linear_case(seed, n)
    margin = float((weight * image).sum())
    assert margin == clean
    # The loss is the margin's negative, so its gradient is minus the weight.
    gain = patch_pgd.gains(-weight[None, None], image[None, None], side)
    left = margin - gain[0]
    assert left.numel() == positions and float(left.min()) == worst
    first = int(left.flatten().argmin())
    assert divmod(first, left.shape[1]) == place
    assert int((left < 0).sum()) == negative
    if side == 2:
        brute = every_patch(image[None], side, (0.0, 1.0))[:, :, 0]
        least = (brute * weight).sum((2, 3)).amin(1).view(n - 1, n - 1)
        assert torch.equal(least.double(), left)


class TwoClasses(torch.nn.Module):
    """Logits (M + shift, 0) for a linear margin M."""

    def __init__(self, weight, shift):
        super().__init__()
        self.weight, self.shift = weight, shift
        self.eval()

    def forward(self, x):
        lead = (x[:, 0] * self.weight).sum((1, 2)) + self.shift
        return torch.stack([lead, torch.zeros_like(lead)], 1)


@pytest.mark.parametrize(("shift", "breaks"), [(-20.0, False), (-21.0, True)])
def test_a_linear_model_falls_exactly_where_its_worst_margin_is_negative(make_work, shift, breaks):
    weight, image = linear_case(31, 8)
    params = patch_pgd.Params(patch_size=2, steps=20, corners=False, random_positions=0)
    work = make_work(
        params, TwoClasses(weight, shift), image[None, None], torch.tensor([0]), num_classes=2
    )
    made = patch_pgd.attack(work)
    assert (made["status"][0] == "broken") == breaks
    place = (made["patch_row"][0], made["patch_column"][0])
    assert place == ((0, 2) if breaks else (-1, -1))
    assert set(patch_pgd.columns) <= set(made)
    assert made["knowledge"][0] == "gradients" and made["attacked"][0] == "base"


def defended(params, images, labels, make_work, **change):
    network = Toy()
    collect = CollectParams(patch_size=2, masks=3, fill=0.5)
    chosen = double_masking.attack_params(collect, DecideParams(attack_masks=4, attack_pairs=2))
    surface = double_masking.attack_surface(SurfaceWork(network, chosen, 3, 7, "cpu", 64, "exact"))
    work = make_work(
        params, surface.logits, images, labels, judge=surface.judge, num_classes=3, **change
    )
    for name in ("objectives", "attacked", "judged_by", "scores"):
        setattr(work, name, getattr(surface, name))
    return work


BREAKABLE = {1, 4, 5, 6}


def test_the_defended_toy_falls_where_exhaustion_breaks_it_and_nowhere_else(make_work):
    images, labels = toy_images(Toy())
    params = patch_pgd.Params(
        patch_size=2, positions=8, random_positions=8, steps=20, judge_every=5
    )
    work = defended(params, images, labels, make_work)
    made = patch_pgd.attack(work)
    broken = set(np.flatnonzero(made["status"] == "broken").tolist())
    assert broken <= BREAKABLE
    # A gradient attack with few positions need not find all four; it must find most of them.
    assert len(broken) >= 3
    adversarial = torch.from_numpy(made["x_adv"])
    patch_pgd.PatchRegion(2).require(adversarial, images, np.arange(12))
    levels = adversarial[sorted(broken)] * 255
    changed = adversarial[sorted(broken)] != images[sorted(broken)]
    assert torch.allclose(levels[changed], levels[changed].round(), atol=1e-4)
    assert (made["adv_pred"][sorted(broken)] != labels.numpy()[sorted(broken)]).all()
    assert made["attacked"][0] == "coherent" and "double masking" in made["judged_by"][0]
    for row in sorted(broken):
        top, left = made["patch_row"][row], made["patch_column"][row]
        outside = (adversarial[row] != images[row]).clone()
        outside[:, top : top + 2, left : left + 2] = False
        assert not outside.any()


def test_rows_do_not_depend_on_company_or_order(make_work):
    images, labels = toy_images(Toy())
    params = patch_pgd.Params(
        patch_size=2, positions=3, random_positions=2, steps=10, judge_every=5
    )
    items = np.arange(12)
    whole = patch_pgd.attack(defended(params, images, labels, make_work, item_index=items))
    order = np.array([5, 4, 6, 1, 0, 11])
    some = patch_pgd.attack(
        defended(params, images[order], labels[order], make_work, item_index=order, batch_size=2)
    )
    for name in ("status", "patch_row", "patch_column", "n_forward", "n_backward", "restart"):
        assert whole[name][order].tolist() == some[name].tolist(), name
    assert np.array_equal(whole["x_adv"][order], some["x_adv"])


def test_passes_are_counted_per_image(make_work):
    images, labels = toy_images(Toy())
    params = patch_pgd.Params(
        patch_size=2,
        positions=1,
        random_positions=0,
        corners=False,
        steps=4,
        judge_every=2,
        restarts=1,
    )
    work = defended(params, images, labels, make_work)
    made = patch_pgd.attack(work)
    survived = made["status"] == "survived"
    assert survived.sum() >= 8
    # Gradients: all 9 views while screening and at the checks 0 and 2, 4 drawn views between.
    backward = 9 + 9 + 4 + 9 + 4
    assert (made["n_backward"][survived] == backward).all()
    # Besides: clean scores (expectation: 4 views + 2 pairs) and judge, three checks (9 views each,
    # judged by the rule, which takes 9 passes where round one is unanimous and more elsewhere).
    least = backward + 3 * 9 + 3 * 9
    assert (made["n_forward"][survived] >= least).all()


def test_points_outside_one_square_are_errors():
    region = patch_pgd.PatchRegion(2)
    x = torch.full((4, 1, 6, 6), 0.5)
    points = x.clone()
    points[0, 0, 2:4, 3:5] = 1.0
    points[1, 0, 0, 0] = points[1, 0, 0, 2] = 1.0
    points[2, 0, 5, 5] = 1.5
    assert region.inside(points, x).tolist() == [True, False, False, True]
    with pytest.raises(GeometryError, match="item 11, 12"):
        region.require(points, x, np.arange(10, 14))


def test_positions_cover_corners_and_keep_apart(make_work):
    gain = torch.zeros(1, 9, 9)
    gain[0, 4, 4], gain[0, 4, 5], gain[0, 8, 0] = 3.0, 2.9, 1.0
    params = patch_pgd.Params(patch_size=4, positions=2, random_positions=3)
    chosen = patch_pgd.choose(gain, params, np.array([5]))[0].tolist()
    assert chosen[:6] == [[4, 4], [8, 0], [0, 0], [0, 8], [8, 0], [8, 8]]
    assert all(0 <= a <= 8 and 0 <= b <= 8 for a, b in chosen[6:]) and len(chosen) == 9
    with pytest.raises(CertbenchError, match="does not fit"):
        images, labels = toy_images(Toy())
        patch_pgd.attack(
            make_work(
                dataclasses.replace(params, patch_size=9), Toy(), images, labels, num_classes=3
            )
        )


def test_its_threat_model_meets_that_of_double_masking():
    promise = double_masking.threat(CollectParams(patch_size=5), DecideParams()).sized(5.0)
    for side, inside in ((4, True), (5, True), (6, False)):
        attack = Threat(**patch_pgd.threat(patch_pgd.Params(patch_size=side)))
        assert contains(promise, attack) is inside


def test_a_target_keeps_no_gradient_of_the_screen(make_work):
    images, labels = toy_images(Toy())
    target = Target(Toy())
    outcome = patch_pgd.run(
        target,
        images,
        labels,
        patch_pgd.Params(patch_size=8, steps=20, corners=False),
        np.arange(12),
    )
    # A patch of the whole image always wins.
    assert outcome.broken.all()
