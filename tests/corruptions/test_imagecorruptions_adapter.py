import importlib
import importlib.metadata
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from certbench.corruptions import imagecorruptions_adapter as adapter
from certbench.errors import CertbenchError


def fresh_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_runs_without_pkg_resources_and_leaves_no_trace_in_shared_modules():
    out = fresh_python(
        """
        import sys
        sys.modules["pkg_resources"] = None          # any import of it fails
        import numpy as np
        before = np.random.get_state()[1].copy()
        from certbench.corruptions import NAMES, corrupt
        image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        for name in NAMES:
            corrupt(image, name, 3, "imagenet", 1)
        assert sys.modules["pkg_resources"] is None
        assert not any(name.startswith("imagecorruptions") for name in sys.modules)
        assert not hasattr(np, "float_")
        assert (np.random.get_state()[1] == before).all()
        """
    )
    assert out == ""


def test_a_stub_of_pkg_resources_that_others_made_is_neither_used_nor_replaced():
    fresh_python(
        """
        import sys, types
        sys.modules["pkg_resources"] = mine = types.ModuleType("pkg_resources")
        from certbench.corruptions.imagecorruptions_adapter import package
        assert callable(package().frost)
        assert sys.modules["pkg_resources"] is mine
        """
    )


def test_a_second_application_finds_the_instance_made():
    first = adapter.package()
    functions = dict(vars(first))
    assert adapter.package() is first
    assert vars(first) == functions


def test_the_package_itself_stays_as_installed(shipped):
    import imagecorruptions.corruptions as installed

    private = adapter.package()
    assert private is not installed
    assert private.gaussian_noise is not installed.gaussian_noise
    assert installed.np is np
    assert vars(installed)["__builtins__"]["print"] is print


def test_functions_draw_from_the_generator_given(golden_image):
    expected = np.random.RandomState(3).normal(size=(32, 32, 3), scale=0.18)
    x = golden_image(32)
    made = adapter.package(np.random.RandomState(3)).gaussian_noise(x, 3)
    assert np.array_equal(made, np.clip(x / 255.0 + expected, 0, 1) * 255)


def test_a_drawing_function_without_a_generator_fails_instead_of_using_the_global_state():
    with pytest.raises(RuntimeError, match="no generator"):
        adapter.package().gaussian_noise(np.zeros((32, 32, 3), np.uint8), 1)


def test_gaussian_equals_that_of_scikit_image():
    from skimage.filters import gaussian

    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32):
        color = rng.random((33, 40, 3)).astype(dtype)
        ours = adapter.gaussian(color, 1.3, multichannel=True)
        assert np.array_equal(ours, gaussian(color, 1.3, channel_axis=-1))
        grey = color[..., 0]
        ours = adapter.gaussian(grey, (0.4, 2.0), mode="reflect", truncate=3)
        assert np.array_equal(ours, gaussian(grey, (0.4, 2.0), mode="reflect", truncate=3))


@pytest.fixture
def installed_as(tmp_path, monkeypatch):
    """Puts metadata of another distribution in front of the installed ones."""

    def pretend(name, version):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    adapter.source_file.cache_clear()
    yield pretend
    adapter.source_file.cache_clear()


def test_the_pinned_version_is_found(installed_as):
    assert adapter.source_file().name == "corruptions.py"
    assert all(path.is_file() for path in adapter.frost_photographs())


def test_another_version_is_refused(installed_as):
    installed_as("imagecorruptions", "1.1.3")
    with pytest.raises(
        CertbenchError, match=r"need 'imagecorruptions' 1\.1\.2, but version 1\.1\.3"
    ):
        adapter.source_file()


def test_the_fork_is_refused_by_the_name_of_its_distribution(installed_as):
    installed_as("imagecorruptions-imaug", "1.1.5")
    with pytest.raises(CertbenchError, match="six photographs"):
        adapter.source_file()


def test_a_missing_package_is_told(installed_as, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(CertbenchError, match="it is not installed"):
        adapter.source_file()


def test_the_fallbacks_of_the_package_print_nothing(capfd, monkeypatch):
    # A zoomed layer smaller than the image sends the package's zoom blur into its printing branch.
    module = adapter.package()
    small = np.zeros((40, 40, 3), np.float32)
    monkeypatch.setattr(module, "clipped_zoom", lambda image, factor: small[:38, :38])
    module.zoom_blur(np.zeros((40, 40, 3), np.uint8), 1)
    assert capfd.readouterr().out == ""
