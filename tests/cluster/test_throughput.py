from __future__ import annotations

import pytest

from certbench.cluster import throughput
from certbench.errors import CertbenchError


def test_the_published_rates_come_back_from_the_table():
    # Cohen et al. (2019): 110 s and 15 s for 100,000 samples.
    assert throughput.rate("rtx2080ti", "resnet50", 224).images_per_s == pytest.approx(909.09, 1e-4)
    small = throughput.rate("rtx2080ti", "cifar_resnet110", 32)
    assert small.images_per_s == pytest.approx(6666.7, 1e-4)


def test_rates_scale_with_work_area_and_hardware():
    base = throughput.rate("a100", "resnet50", 224).images_per_s
    assert throughput.rate("a100", "resnet50", 448).images_per_s == pytest.approx(base / 4)
    assert throughput.rate("a100", "resnet101", 224).images_per_s == pytest.approx(
        base * 4.11 / 7.83
    )
    assert throughput.rate("a100", "resnet50", 224, "fast").images_per_s > base
    assert throughput.rate("a100", "a_network_of_mine", 224) is None
    with pytest.raises(CertbenchError, match="a100"):
        throughput.rate("a10", "resnet50", 224)


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx2080ti"),
        ("cpu", "cpu"),
    ],
)
def test_devices_are_known_by_the_names_that_torch_gives_them(device, key):
    assert throughput.hardware_of([device]) == key
