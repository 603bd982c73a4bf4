"""Attacks on a GPU and on the CPU see the same noise and agree up to arithmetic."""

import numpy as np
import pytest
import torch

from certbench.attacks import autoattack

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.7)])
def test_gpu_and_cpu_agree_on_the_flags(digits, make_work, norm, epsilon):
    params = autoattack.Params(
        epsilon=epsilon,
        norm=norm,
        suite="custom",
        attacks=("apgd-ce", "apgd-t", "fab-t", "square"),
        targets=3,
        queries=300,
    )
    flags = []
    for device in ("cpu", "cuda"):
        model = digits.model.to(device)
        work = make_work(params, model, digits.x.to(device), digits.y.to(device), device=device)
        flags.append(autoattack.attack(work)["status"])
    digits.model.to("cpu")
    assert np.mean(flags[0] == flags[1]) >= 0.99
