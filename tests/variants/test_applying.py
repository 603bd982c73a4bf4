"""Steps after the view: order, types, shapes, and images that an attack left."""

from types import SimpleNamespace

import numpy as np
import pytest

from certbench.errors import CertbenchError
from certbench.params import build
from certbench.plugins import load
from certbench.variants import adversarial, applying, corruption_3d


def step(name, **params):
    return {"name": name, "version": 1, "params": params}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def apply(steps, images, **extra):
    ids = [f"test/{i}" for i in range(len(images))]
    return applying.apply_steps(steps, images, ids, 0, "digits", load, **extra)


def test_no_steps_are_the_images_themselves(images):
    assert apply([], images) is images


def test_steps_are_applied_in_order(images):
    dark = step("corruption", corruption="contrast", severity=5, severity_table="cifar32")
    light = step("corruption", corruption="brightness", severity=5, severity_table="cifar32")
    one, other = apply([dark, light], images), apply([light, dark], images)
    assert (one == apply([light], apply([dark], images))).all()
    assert (one != other).any()


def test_an_items_corruption_does_not_depend_on_its_company(images):
    noise = step("corruption", corruption="gaussian_noise", severity=3, severity_table="cifar32")
    together = apply([noise], images)
    ids = ["test/2", "test/0"]
    alone = applying.apply_steps([noise], images[[2, 0]], ids, 0, "digits", load)
    assert (alone == together[[2, 0]]).all()


def test_a_step_that_needs_levels_gets_rounded_images(images):
    dark = step("corruption", corruption="contrast", severity=1, severity_table="cifar32")
    floats = (images / 255).astype(np.float32)
    assert (apply([dark], floats) == apply([dark], images)).all()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda x: x[:, ::2], "changed the shape"),
        (lambda x: x.astype(np.float32), r"outside \[0, 1\]"),
        (lambda x: np.full(x.shape, np.nan, np.float32), r"outside \[0, 1\]"),
    ],
)
def test_a_step_may_neither_change_the_shape_nor_leave_the_range(images, made, words):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Params:
        pass

    module = SimpleNamespace(Params=Params, apply=lambda params, x, *rest: made(x))
    with pytest.raises(CertbenchError, match=words):
        applying.apply_steps([step("s")], images, ["a"] * 4, 0, "d", lambda kind, name: module)


def test_network_input_is_pixels_over_255_in_channel_order(images):
    made = applying.to_tensor(images)
    assert made.shape == (4, 3, 32, 32) and made.dtype.is_floating_point
    assert float(made[1, 2, 3, 4]) == pytest.approx(images[1, 3, 4, 2] / 255, abs=1e-7)


def test_adversarial_images_come_back_by_item_and_losslessly(images, tmp_path):
    rng = np.random.default_rng(1)
    made = rng.random((4, 3, 32, 32)).astype(np.float32)
    for name, part in (("a", [2, 0]), ("b", [1, 3])):
        items = np.array(part, np.uint32) + 10
        np.savez(tmp_path / f"{name}.npz", x_adv=made[part], item_index=items, label=items)
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    adv = step("adversarial", model="m", attack="pgd")
    order = np.array([13, 10, 12, 11], np.uint32)
    found = apply([adv], images, item_index=order, attack_images=files)
    assert found.dtype == np.float32
    assert (applying.to_tensor(found).numpy() == made[[3, 0, 2, 1]]).all()
    with pytest.raises(CertbenchError, match=r"item 'test/0' was not attacked by 'pgd'"):
        apply([adv], images, item_index=np.array([9, 10, 11, 12], np.uint32), attack_images=files)


def test_adversarial_variants_name_their_model_and_attack():
    params = build(adversarial.Params, {"model": "m", "attack": "pgd"}, "variants.adv")
    assert adversarial.slug(params) == "adv-m-none-pgd"


def test_the_lists_of_3d_types_are_those_of_the_corruptions():
    from certbench.corruptions import three_d

    assert set(corruption_3d.WITH_DEPTH) == set(three_d.NEEDS_DEPTH)
    assert {*corruption_3d.WITH_DEPTH, *corruption_3d.WITHOUT_DEPTH} == set(three_d.CORRUPTIONS)


def test_3d_types_without_depth_run_on_any_image_and_belong_to_the_item(images):
    for name in ("low_light", "iso_noise", "color_quant"):
        made = apply([step("corruption_3d", corruption=name, severity=3)], images)
        assert made.dtype == np.uint8 and (made != images).any()
        again = applying.apply_steps(
            [step("corruption_3d", corruption=name, severity=3)],
            images[[3]],
            ["test/3"],
            0,
            "digits",
            load,
        )
        assert (again[0] == made[3]).all()


def test_3d_types_with_depth_ask_for_the_folder_and_use_it(images, tmp_path):
    from PIL import Image

    with pytest.raises(CertbenchError, match=r"variants\.fog\.depth_root.*needs depth"):
        build(corruption_3d.Params, {"corruption": "fog_3d", "severity": 3}, "variants.fog")
    (tmp_path / "test").mkdir()
    for i in range(4):
        far = np.full((32, 32), 7_000, np.uint16)
        far[:, :16] = 400
        Image.fromarray(far).save(tmp_path / "test" / f"{i}.png")
    fog = step("corruption_3d", corruption="fog_3d", severity=3, depth_root=str(tmp_path))
    made = apply([fog], images).astype(float)
    contrast = [made[:, :, half].std() for half in (slice(0, 16), slice(16, 32))]
    assert contrast[1] < 0.8 * contrast[0]
