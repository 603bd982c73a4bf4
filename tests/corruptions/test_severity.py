import numpy as np
import pytest

from certbench.corruptions import severity
from certbench.errors import CertbenchError


def test_every_table_has_five_entries_for_every_name():
    assert len(severity.NAMES) == 20 and len(set(severity.NAMES)) == 20
    for table in severity.SEVERITY_TABLES:
        assert set(severity.TABLES[table]) == set(severity.NAMES)
        for name, entries in severity.TABLES[table].items():
            assert len(entries) == 5, (table, name)


def test_the_fifteen_types_of_the_benchmark_stand_in_the_order_of_the_paper():
    groups = severity.GROUPS
    joined = (*groups["noise"], *groups["blur"], *groups["weather"], *groups["digital"])
    assert joined == severity.BENCHMARK_15
    assert severity.BENCHMARK_15[:3] == ("gaussian_noise", "shot_noise", "impulse_noise")
    assert severity.NAMES[15:19] == groups["extra"]


@pytest.mark.parametrize(
    ("table", "counts"),
    [("imagenet", [12, 16, 11, 13, 11]), ("cifar32", [7, 12, 16, 21, 26])],
)
def test_zoom_factors_are_as_many_as_in_the_published_scripts(table, counts):
    entries = [severity.entry("zoom_blur", s, table) for s in severity.SEVERITIES]
    assert [len(np.arange(1, *entry)) for entry in entries] == counts


def test_entries_are_those_of_the_published_scripts():
    assert severity.entry("gaussian_noise", 5, "imagenet") == 0.38
    assert severity.entry("shot_noise", 1, "cifar32") == 500
    assert severity.entry("glass_blur", 4, "imagenet299") == (1.2, 4, 2)
    assert severity.entry("defocus_blur", 4, "tiny64") == (2.5, 0.01)
    assert severity.entry("spatter", 2, "imagenet299") == (0.65, 0.3, 3.5, 0.68, 0.9, 0)
    alpha, sigma, affine = severity.entry("elastic_transform_imagenet_c", 2, "imagenet")
    assert (alpha, sigma, affine) == pytest.approx((488, 19.52, 48.8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("snwo", 1, "imagenet"), "did you mean 'snow'"),
        (("snow", 0, "imagenet"), "from 1 to 5"),
        (("snow", 6, "imagenet"), "from 1 to 5"),
        (("snow", 1.5, "imagenet"), "from 1 to 5"),
        (("snow", True, "imagenet"), "from 1 to 5"),
        (("snow", 1, "cifar"), "did you mean 'cifar32'"),
        (("snow", 1, None), "unknown severity table None"),
    ],
)
def test_unknown_names_and_severities_are_refused_with_the_remedy(arguments, message):
    with pytest.raises(CertbenchError, match=message):
        severity.entry(*arguments)
