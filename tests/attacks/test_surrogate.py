"""Transfer from a surrogate: planned as an input of the attack, shown as check C10."""

import copy

import pytest

from certbench import plan
from certbench.errors import CertbenchError


def _refusal(config) -> str:
    with pytest.raises(CertbenchError) as caught:
        plan.make(config)
    return str(caught.value)


def test_a_surrogate_is_attacked_first_and_its_images_are_an_input(tiny):
    tiny["models"]["other"] = copy.deepcopy(tiny["models"]["plain"])
    tiny["attacks"]["pgd"] |= {"checks": 5, "surrogate": "other"}
    made = plan.make(tiny)
    jobs = {key: job for (rule, key), job in made.jobs.items() if rule == "attack"}
    by_model = {(key[2], key[3]): job for key, job in jobs.items()}
    source = by_model["other", "none"]
    for pair in (("plain", "none"), ("plain", "smoothing")):
        assert by_model[pair].inputs["surrogate_images"] == [source.outputs["images"]]
        assert by_model[pair].work["surrogate"] == "other"
    # The surrogate itself has no surrogate, also where an experiment attacks it too.
    assert "surrogate" not in source.work and "surrogate_images" not in source.inputs
    assert [job.key[2] for job in made.experiments["clean"]["attack"]] == ["plain", "plain"]
    tiny["experiments"][0]["models"] = ["plain", "other"]
    assert len(plan.make(tiny).experiments["clean"]["attack"]) == 4
    tiny["attacks"]["pgd"] |= {"checks": 0}
    assert "attacks.pgd.surrogate: is used by check C10" in _refusal(tiny)
    tiny["attacks"]["pgd"] |= {"checks": 5, "surrogate": "othr"}
    assert "did you mean 'other'" in _refusal(tiny)
