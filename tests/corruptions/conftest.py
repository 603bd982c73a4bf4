"""The golden image, and the package imagecorruptions as shipped, repaired just enough to run."""

import importlib
import importlib.metadata
import sys
import types

import numpy as np
import pytest


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
