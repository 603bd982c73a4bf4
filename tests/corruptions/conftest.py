"""The golden image, and the package imagecorruptions as shipped, repaired just enough to run."""

import importlib
import importlib.metadata
import sys
import types

import numpy as np
import pytest
from scipy import stats


def formula_image(size):
    """uint8 [size, size, 3]: (7x + 13y + 29c + floor(xy / 5)) mod 256."""
    y, x, c = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
    return ((7 * x + 13 * y + 29 * c + x * y // 5) % 256).astype(np.uint8)


@pytest.fixture(scope="session")
def golden_image():
    """Makes the golden image of a size."""
    return formula_image


@pytest.fixture(scope="session")
def shipped():
    """The function ``corrupt`` of the installed package: an oracle that shares no code with ours.

    Only what stops it from running today is mended: the missing module ``pkg_resources``, the
    renamed keyword of scikit-image's ``gaussian``, and NumPy's removed ``float_``.
    """
    skimage_filters = importlib.import_module("skimage.filters")
    root = importlib.metadata.distribution("imagecorruptions").locate_file("imagecorruptions")
    stub = types.ModuleType("pkg_resources")
    stub.resource_filename = lambda _package, name: f"{root}/{name}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pkg_resources", stub)
        module = importlib.import_module("imagecorruptions")

    def gaussian(image, *args, multichannel=False, **kwargs):
        axis = {"channel_axis": -1} if multichannel else {}
        return skimage_filters.gaussian(image, *args, **kwargs, **axis)

    def corrupt(image, severity, corruption_name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "float_", np.float64, raising=False)
            return module.corrupt(image, severity=severity, corruption_name=corruption_name)

    importlib.import_module("imagecorruptions.corruptions").gaussian = gaussian
    yield corrupt
    for name in [name for name in sys.modules if name.split(".")[0] == "imagecorruptions"]:
        del sys.modules[name]


def normal_law(value, std):
    """Probability of each 8-bit level of trunc(255 clip(v + std N))."""
    edges = stats.norm.cdf((np.arange(1, 256) / 255 - value / 255) / std)
    return np.diff(np.concatenate([[0], edges]), append=1.0)


def poisson_law(value, photons):
    law = np.zeros(256)
    counts = np.arange(0, 4 * int(photons) + 60)
    levels = (np.clip(counts / float(photons), 0, 1) * 255).astype(np.uint8)
    np.add.at(law, levels, stats.poisson.pmf(counts, value / 255 * photons))
    return law / law.sum()


def fits(observed, law):
    """Chi-square p-value; rare levels pooled so that every bin expects at least 10."""
    n = observed.sum()
    order = np.argsort(law)[::-1]
    common = order[law[order] * n >= 10]
    expected = np.append(law[common] * n, n - law[common].sum() * n)
    seen = np.append(observed[common], n - observed[common].sum())
    keep = expected > 1e-6
    assert seen[~keep].sum() == 0
    if keep.sum() == 1:
        return 1.0
    return stats.chisquare(seen[keep], expected[keep] * n / expected[keep].sum()).pvalue


@pytest.fixture(scope="session")
def laws():
    """Laws of 8-bit levels on constant images, and the test against them."""
    return types.SimpleNamespace(normal=normal_law, poisson=poisson_law, fits=fits)
