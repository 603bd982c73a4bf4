import random

import numpy as np
import pytest

from certbench.corruptions.severity import BENCHMARK_15
from certbench.errors import CertbenchError
from certbench.metrics import corruption_errors as ce

# Top-1 accuracy of torchvision's ResNet-50 at severities 1 to 5, from RobustBench's table of
# unaggregated ImageNet-C results; RobustBench publishes mCE 76.38 for it.
RESNET50 = """
gaussian_noise 0.602 0.4878 0.3124 0.1422 0.0288
shot_noise 0.5828 0.4486 0.2856 0.1026 0.0352
impulse_noise 0.4854 0.3862 0.2904 0.113 0.0244
defocus_blur 0.5914 0.5154 0.3808 0.2752 0.1824
glass_blur 0.5362 0.3974 0.1708 0.1306 0.1034
motion_blur 0.636 0.5342 0.3754 0.2158 0.1452
zoom_blur 0.5258 0.4302 0.356 0.2844 0.2194
snow 0.5468 0.312 0.3494 0.2344 0.165
frost 0.6106 0.4366 0.3064 0.2864 0.2258
fog 0.6092 0.56 0.4674 0.4024 0.236
brightness 0.736 0.7222 0.6958 0.6496 0.5886
contrast 0.6428 0.5824 0.466 0.2098 0.0542
elastic_transform 0.6684 0.4514 0.5456 0.4122 0.1702
pixelate 0.638 0.6434 0.4598 0.293 0.2088
jpeg_compression 0.6644 0.6234 0.6004 0.4786 0.3254
"""
CE = (77.7, 79.8, 80.7, 74.3, 88.2, 78.6, 80.0, 78.2, 75.4, 66.2, 57.6, 71.3, 84.9, 76.7, 76.1)


@pytest.fixture
def errors():
    rows = [line.split() for line in RESNET50.strip().splitlines()]
    return {name: [1 - float(accuracy) for accuracy in rest] for name, *rest in rows}


def test_resnet50_reproduces_the_published_mce(errors):
    own = ce.mean_corruption_error(errors, "alexnet_robustbench")
    classical = ce.mean_corruption_error(errors, "alexnet_imagenet_c")
    assert own == pytest.approx(76.38, abs=0.01)
    assert classical == pytest.approx(76.37, abs=0.01)


def test_resnet50_reproduces_the_corruption_error_of_each_type(errors):
    ratios = ce.corruption_errors(errors, "alexnet_robustbench")
    assert list(ratios) == list(BENCHMARK_15)
    # One decimal each; glass blur, 88.146, was rounded twice to 88.2.
    assert list(ratios.values()) == pytest.approx(CE, abs=0.055)


def test_resnet50_reproduces_the_relative_mce(errors):
    relative = ce.relative_mean_corruption_error(errors, 0.2328, "alexnet_robustbench")
    assert relative == pytest.approx(107.3, abs=0.05)


def test_mce_is_the_mean_of_ratios_not_the_ratio_of_means(errors):
    reference = ce.reference("alexnet_robustbench")
    ratio = 100 * np.mean(list(errors.values())) / np.mean(list(reference.errors.values()))
    assert ratio == pytest.approx(76.72, abs=0.01)
    assert abs(ce.mean_corruption_error(errors, reference) - ratio) > 0.3


def test_the_order_of_the_corruptions_changes_nothing(errors):
    names = list(errors)
    random.Random(0).shuffle(names)
    permuted = {name: errors[name] for name in names}
    assert names != list(errors)
    for measure in (
        lambda e: ce.mean_corruption_error(e, "alexnet_imagenet_c"),
        lambda e: ce.relative_mean_corruption_error(e, 0.24, "alexnet_imagenet_c"),
        lambda e: ce.summarise(e).mean_error,
    ):
        assert measure(permuted) == measure(errors)


def test_severities_may_be_keyed_in_any_order(errors):
    keyed = {name: dict(reversed(list(enumerate(row, 1)))) for name, row in errors.items()}
    assert ce.summarise(keyed) == ce.summarise(errors)


def test_the_summary_is_that_of_the_published_table(errors):
    summary = ce.summarise(errors)
    assert summary.mean_error == pytest.approx(0.60517, abs=1e-5)
    assert summary.mean_accuracy == pytest.approx(0.39483, abs=1e-5)
    assert summary.worst_type == "impulse_noise"
    assert summary.worst_error == pytest.approx(
        1 - np.mean([0.4854, 0.3862, 0.2904, 0.113, 0.0244])
    )
    columns = np.array(list(errors.values())).mean(axis=0)
    assert list(summary.by_severity) == [1, 2, 3, 4, 5]
    assert list(summary.by_severity.values()) == pytest.approx(columns)
    assert summary.by_type["snow"] == pytest.approx(np.mean(errors["snow"]))


def test_the_reference_itself_has_mce_100():
    for reference in ce.REFERENCES.values():
        own = {name: [error] * 5 for name, error in reference.errors.items()}
        assert ce.mean_corruption_error(own, reference) == pytest.approx(100)
        relative = ce.relative_mean_corruption_error(own, reference.clean_error, reference)
        assert relative == pytest.approx(100)


def test_the_constants_have_their_published_mean():
    assert np.mean(list(ce.reference("alexnet_imagenet_c").errors.values())) == pytest.approx(
        0.788993, abs=1e-6
    )
    for reference in ce.REFERENCES.values():
        assert set(reference.errors) == set(reference.over.types)


def test_a_model_that_ignores_its_image_has_relative_mce_zero():
    blind = {name: [0.9] * 5 for name in BENCHMARK_15}
    assert ce.relative_mean_corruption_error(blind, 0.9, "alexnet_imagenet_c") == 0


def test_a_reference_that_a_type_costs_nothing_is_refused_for_relative_errors(errors):
    blind = ce.reference_from("blind", {name: [0.9] * 5 for name in BENCHMARK_15}, 0.9)
    with pytest.raises(CertbenchError, match="costs reference 'blind' nothing"):
        ce.relative_mean_corruption_error(errors, 0.24, blind)
    assert ce.mean_corruption_error(errors, blind) > 0


def test_a_reference_without_errors_is_refused(errors):
    perfect = ce.reference_from("perfect", {name: [0.0] * 5 for name in BENCHMARK_15}, 0.0)
    with pytest.raises(CertbenchError, match="'perfect' makes no error on 'gaussian_noise'"):
        ce.mean_corruption_error(errors, perfect)


def test_a_missing_type_raises_and_is_named(errors):
    del errors["glass_blur"]
    for measure in (
        lambda: ce.mean_corruption_error(errors, "alexnet_imagenet_c"),
        lambda: ce.relative_mean_corruption_error(errors, 0.24, "alexnet_imagenet_c"),
        lambda: ce.summarise(errors),
        lambda: ce.mean_performance_under_corruption(errors),
        lambda: ce.reference_from("mine", errors, 0.2),
    ):
        with pytest.raises(CertbenchError, match="no values for glass_blur"):
            measure()


def test_a_missing_severity_raises(errors):
    with pytest.raises(CertbenchError, match=r"glass_blur: 4 values"):
        ce.summarise({**errors, "glass_blur": [0.1] * 4})
    with pytest.raises(CertbenchError, match=r"glass_blur: no value at severity 2, 5"):
        ce.summarise({**errors, "glass_blur": {1: 0.1, 3: 0.1, 4: 0.1}})


@pytest.mark.parametrize("value", [-0.1, 1.1, 60.5, float("nan")])
def test_values_that_are_no_fractions_raise(errors, value):
    with pytest.raises(CertbenchError, match=r"snow: is .*not in \[0, 1\]"):
        ce.summarise({**errors, "snow": [0.1, 0.2, value, 0.4, 0.5]})


def test_an_unknown_reference_is_told_with_the_nearest_name(errors):
    with pytest.raises(CertbenchError, match="did you mean 'alexnet_robustbench'"):
        ce.mean_corruption_error(errors, "alexnet_robustbeach")


def test_extra_types_do_not_enter_the_mean(errors):
    more = {**errors, "speckle_noise": [1.0] * 5, "saturate": [1.0] * 5}
    assert ce.summarise(more) == ce.summarise(errors)


def test_the_two_elastic_recipes_are_never_mixed(errors):
    other = {**errors, "elastic_transform_imagenet_c": [0.9] * 5}
    elastic = "elastic_transform_imagenet_c"
    assert ce.summarise(other) == ce.summarise(errors)
    ratios = ce.corruption_errors(other, "alexnet_imagenet_c", elastic=elastic)
    assert ratios[elastic] == pytest.approx(100 * 0.9 / 0.646056)
    assert "elastic_transform" not in ratios and len(ratios) == 15
    del other["elastic_transform"]
    with pytest.raises(CertbenchError, match=f"pass elastic='{elastic}'"):
        ce.summarise(other)
    with pytest.raises(CertbenchError, match="unknown elastic recipe"):
        ce.summarise(errors, elastic="elastic")


def test_a_model_of_ones_own_can_be_the_reference(errors):
    mine = ce.reference_from("resnet50", errors, 0.2328)
    assert ce.mean_corruption_error(errors, mine) == pytest.approx(100)
    halved = {name: [value / 2 for value in row] for name, row in errors.items()}
    assert ce.mean_corruption_error(halved, mine) == pytest.approx(50)


def test_performance_under_corruption_of_the_published_detectors():
    # Faster R-CNN R50-FPN: PASCAL VOC AP50 80.5 clean, 48.6 corrupted; COCO AP 36.3 and 18.2.
    for clean, corrupted, percent in ((80.5, 48.6, 60.4), (36.3, 18.2, 50.2), (36.4, 12.2, 33.4)):
        scores = {name: [corrupted] * 5 for name in BENCHMARK_15}
        mpc = ce.mean_performance_under_corruption(scores, maximum=100)
        assert mpc == pytest.approx(corrupted)
        rpc = ce.relative_performance_under_corruption(mpc, clean)
        # The published ratios were formed of unrounded scores.
        assert 100 * rpc == pytest.approx(percent, abs=0.2)


def test_performance_is_the_mean_over_types_and_severities(errors):
    mpc = ce.mean_performance_under_corruption(errors)
    assert mpc == pytest.approx(np.mean(list(errors.values())))
    with pytest.raises(CertbenchError, match="rPC is undefined"):
        ce.relative_performance_under_corruption(mpc, 0.0)


def test_corruption_degradation_compares_lost_scores():
    assert ce.corruption_degradation([0.5] * 5, [0.0] * 5) == pytest.approx(50)
    value = ce.corruption_degradation([0.7, 0.6, 0.5, 0.4, 0.3], [0.6, 0.5, 0.4, 0.3, 0.2])
    assert value == pytest.approx(100 * 2.5 / 3.0)
    with pytest.raises(CertbenchError, match="CD is undefined"):
        ce.corruption_degradation([0.5] * 5, [1.0] * 5)


# Mean error of torchvision's ResNet-50 on ImageNet-3DCC, from RobustBench's table of unaggregated
# results; it publishes mCE 73.16 and accuracy 47.12.
RESNET50_3D = {
    "bit_error": 0.5316,
    "color_quant": 0.4364,
    "far_focus": 0.4502,
    "flash": 0.6212,
    "fog_3d": 0.5722,
    "h265_abr": 0.3830,
    "h265_crf": 0.3234,
    "iso_noise": 0.7328,
    "low_light": 0.5560,
    "near_focus": 0.4064,
    "xy_motion_blur": 0.6780,
    "z_motion_blur": 0.6546,
}


def test_resnet50_reproduces_the_published_mce_of_the_twelve_3d_types():
    errors = {name: [error] * 5 for name, error in RESNET50_3D.items()}
    assert ce.mean_corruption_error(errors, "alexnet_3dcc") == pytest.approx(73.16, abs=0.01)
    summary = ce.summarise(errors, over=ce.IMAGENET_3DCC)
    assert 100 * summary.mean_accuracy == pytest.approx(47.12, abs=0.01)
    assert summary.worst_type == "iso_noise"


def test_a_set_of_ones_own_takes_its_types_and_severities_only(errors):
    own = ce.TypeSet("own", ("fog", "snow"), (1, 3))
    keyed = {name: dict(enumerate(row, 1)) for name, row in errors.items()}
    other = {name: dict.fromkeys(own.severities, 0.8) for name in own.types}
    reference = ce.reference_from("flat", other, 0.5, over=own)
    mean = np.mean([keyed[name][s] for name in own.types for s in own.severities])
    assert ce.mean_corruption_error(keyed, reference) == pytest.approx(100 * mean / 0.8)
    assert ce.summarise(keyed, over=own).by_severity[3] == pytest.approx(
        (keyed["fog"][3] + keyed["snow"][3]) / 2
    )


def test_what_a_set_lacks_is_said_in_words(errors):
    keyed = {name: dict(enumerate(row, 1)) for name, row in errors.items()}
    elastic = ce.ELASTIC[0]
    assert ce.missing_from(keyed, ce.IMAGENET_C, elastic) == ""
    del keyed["fog"]
    assert ce.missing_from(keyed, ce.IMAGENET_C, elastic) == "fog of 15 types"
    del keyed["snow"][2]
    assert ce.missing_from(keyed, ce.IMAGENET_C, elastic).endswith(" and severity 2")
    assert "elastic_transform_imagenet_c" in ce.missing_from(keyed, ce.IMAGENET_C, ce.ELASTIC[1])
