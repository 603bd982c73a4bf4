"""The plan: configuration in, every job out, nothing heavy imported."""

import copy
import subprocess
import sys

import pytest

from certbench import plan
from certbench.errors import CertbenchError


def refusal(config) -> str:
    with pytest.raises(CertbenchError) as caught:
        plan.make(config)
    return str(caught.value)


def test_planning_imports_no_torch_no_pandas_and_no_snakemake(tmp_path):
    code = (
        "import sys\n"
        "from certbench import config, plan\n"
        "made = plan.make(config.load())\n"
        "assert made.jobs\n"
        "heavy = ('torch', 'torchvision', 'timm', 'pandas', 'matplotlib', 'sklearn', 'cv2',\n"
        "         'skimage', 'snakemake')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_jobs_are_known_in_advance_and_named_by_their_ranges(tiny):
    made = plan.make(tiny)
    assert made.counts() == {
        "prepare": 2,
        "train": 1,
        "predict": 2,
        "collect": 2,
        "decide": 1,
        "attack": 2,
        "audit": 2,
        "table": 2,
        "figure": 1,
        "report": 1,
    }
    stats = [job.outputs["rows"] for (rule, _), job in made.jobs.items() if rule == "collect"]
    folder = "results/stats/digits-test-squash32/clean/plain/smoothing"
    assert sorted(stats) == [
        f"{folder}/i0000000-0000020_s000000000-000000100.parquet",
        f"{folder}/i0000000-0000020_s000000100-000000200.parquet",
    ]


def test_every_input_is_the_output_of_another_job(tiny):
    made = plan.make(tiny)
    outputs = {path for job in made.jobs.values() for path in job.outputs.values()}
    needed = {path for job in made.jobs.values() for paths in job.inputs.values() for path in paths}
    assert needed <= outputs


def test_two_jobs_never_write_the_same_file(tiny):
    made = plan.make(tiny)
    outputs = [path for job in made.jobs.values() for path in job.outputs.values()]
    assert len(outputs) == len(set(outputs))


def test_more_samples_add_ranges_and_keep_the_jobs_that_are_there(tiny):
    before = plan.make(tiny).jobs
    tiny["defenses"]["smoothing"]["n"] = 300
    after = plan.make(tiny).jobs
    old = {key for key in before if key[0] == "collect"}
    new = {key for key in after if key[0] == "collect"}
    assert old < new and len(new) == 3
    assert all(before[key].work_text == after[key].work_text for key in old)


def test_more_items_add_ranges_and_keep_the_jobs_that_are_there(tiny):
    before = plan.make(tiny).jobs
    tiny["experiments"][0]["datasets"][0]["limit"] = 40
    after = plan.make(tiny).jobs
    for key in (key for key in before if key[0] in ("predict", "collect", "attack", "prepare")):
        assert before[key].work_text == after[key].work_text


def test_another_alpha_changes_no_job_that_calls_a_model(tiny):
    tiny["experiments"][0]["exclude"] = []
    before = plan.make(tiny).jobs
    tiny["defenses"]["smoothing"]["alpha"] = 0.05
    after = plan.make(tiny).jobs
    changed = {key[0] for key in before if before[key].work_text != after[key].work_text}
    assert changed == {"decide", "report"}


def test_another_sigma_changes_the_shards_of_that_defence_alone(tiny):
    tiny["defenses"]["other"] = {**tiny["defenses"]["smoothing"], "sigma": 0.5}
    tiny["experiments"][0]["defenses"].append("other")
    before = plan.make(tiny).jobs
    tiny["defenses"]["other"]["sigma"] = 0.75
    after = plan.make(tiny).jobs
    changed = [key for key in before if before[key].work_text != after[key].work_text]
    assert {key[1][3] for key in changed if key[0] == "collect"} == {"other"}
    assert {key[0] for key in changed} == {"collect", "decide", "attack", "report"}


def test_a_defence_of_too_many_jobs_is_refused_before_they_are_made(tiny):
    tiny["defenses"]["smoothing"]["n"] = 2**31
    with pytest.raises(CertbenchError, match="more than 100,000 jobs") as caught:
        plan.make(tiny)
    assert "shards.samples" in str(caught.value)


def test_the_batch_size_is_no_part_of_any_work(tiny):
    before = plan.make(tiny).jobs
    tiny["batch_size"] = 7
    after = plan.make(tiny).jobs
    changed = {key[0] for key in before if before[key].work_text != after[key].work_text}
    assert changed <= {"report"}


def test_an_overlay_plans_no_job_of_the_demo(tiny):
    from certbench import config

    demo = config.load_yaml(config.project_root() / "config" / "config.yaml")
    overlay = {
        "models": {"mine": tiny["models"]["plain"]},
        "experiments": [
            {
                "name": "mine",
                "datasets": [{"name": "digits", "view": "squash32", "limit": 10}],
                "models": ["mine"],
            }
        ],
    }
    made = plan.make(config.merge(demo, overlay))
    assert {key[1][0] for key in made.jobs if key[0] == "train"} == {"mine"}
    assert {key[1][2] for key in made.jobs if key[0] == "predict"} == {"mine"}
    assert not [key for key in made.jobs if key[0] in ("collect", "decide", "attack")]


def test_an_exclude_rule_leaves_out_what_matches_all_its_keys(tiny):
    tiny["experiments"][0]["exclude"] = [{"defense": "smoothing", "attack": "pgd"}]
    made = plan.make(tiny)
    attacked = {key[1][3] for key in made.jobs if key[0] == "attack"}
    assert attacked == {"none"}
    assert [key for key in made.jobs if key[0] == "collect"]


def test_a_list_for_a_scalar_parameter_is_a_sweep(tiny):
    tiny["variants"]["dark"]["severity"] = [1, 3, 5]
    tiny["variants"]["dark"]["corruption"] = ["contrast", "fog"]
    made = plan.make(tiny)
    variants = {key[1][1] for key in made.jobs if key[0] == "predict"} - {"clean"}
    assert len(variants) == 6
    assert {name.rsplit("-", 1)[0] for name in variants} == {
        f"{kind}-{severity}-cifar32" for kind in ("contrast", "fog") for severity in (1, 3, 5)
    }


def test_equal_variants_under_two_names_share_their_jobs(tiny):
    tiny["variants"]["again"] = copy.deepcopy(tiny["variants"]["dark"])
    tiny["experiments"][1]["variants"] = ["dark", "again"]
    assert plan.make(tiny).counts()["predict"] == 2


def test_one_decide_job_serves_all_variants_of_an_experiment(tiny):
    tiny["experiments"][1]["defenses"] = ["none", "smoothing"]
    tiny["variants"]["dark"]["severity"] = [1, 2, 3, 4, 5]
    made = plan.make(tiny)
    assert made.counts()["decide"] == 2
    assert made.counts()["collect"] == 2 * 6


def test_a_defence_says_which_split_an_attack_is_fitted_on(tiny):
    made = plan.make(tiny)
    assert {key[1] for key in made.jobs if key[0] == "prepare"} == {
        ("digits", "train"),
        ("digits", "test"),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(sede=1), ["unknown key 'sede'", "did you mean 'seed'?"]),
        (lambda c: c.update(numerics="exakt"), ["config: numerics", "did you mean 'exact'?"]),
        (
            lambda c: c["defenses"]["smoothing"].update(type="randomised_smoothing"),
            ["config: defenses.smoothing.type", "did you mean 'randomized_smoothing'?"],
        ),
        (
            lambda c: c["defenses"]["smoothing"].update(sigma=0),
            ["config: defenses.smoothing.sigma", "is 0", "> 0"],
        ),
        (
            lambda c: c["defenses"]["smoothing"].update(sigma=-0.25),
            ["config: defenses.smoothing.sigma", "is -0.25"],
        ),
        (
            lambda c: c["defenses"]["smoothing"].update(n=5, alpha=0.001),
            ["config: defenses.smoothing.n", "can never certify", "n >= 10"],
        ),
        (
            lambda c: c["defenses"]["smoothing"].update(sigmaa=1),
            ["config: defenses.smoothing", "unknown key 'sigmaa'", "did you mean 'sigma'?"],
        ),
        (
            lambda c: c["experiments"][0].update(models=["plian"]),
            ["config: experiments[0].models[0]", "did you mean 'plain'?"],
        ),
        (
            lambda c: c["experiments"][0]["datasets"][0].update(name="digit"),
            ["'digit' is not defined under datasets", "did you mean 'digits'?"],
        ),
        (
            lambda c: c["experiments"][0]["datasets"][0].update(split="tset"),
            ["no split 'tset'", "did you mean 'test'?"],
        ),
        (
            lambda c: c["experiments"][0]["datasets"][0].update(view="square32"),
            ["square32"],
        ),
        (
            lambda c: c["experiments"][0]["datasets"][0].update(limit=5000),
            ["asks for 5000 items", "has 500"],
        ),
        (
            lambda c: c["variants"]["dark"].update(severity=6),
            ["config: variants.dark.severity", "is 6", "<= 5"],
        ),
        (
            lambda c: c["variants"]["dark"].pop("severity_table"),
            ["config: variants.dark.severity_table", "is required"],
        ),
        (
            lambda c: c["variants"]["dark"].update(corruption="frog"),
            ["unknown value 'frog'", "did you mean 'fog'?"],
        ),
        (
            lambda c: c["attacks"]["pgd"].update(norm="linf", epsilon=8),
            ["config: attacks.pgd", "255"],
        ),
        (
            lambda c: c["experiments"][0].update(exclude=[{"model": "plane"}]),
            ["config: experiments[0].exclude[0].model", "did you mean 'plain'?"],
        ),
        (lambda c: c["experiments"][1].update(name="clean"), ["two experiments", "'clean'"]),
        (lambda c: c["experiments"][0].update(name="Clean!"), ["no valid id"]),
        (
            lambda c: c["models"]["plain"].update(source={"type": "file", "path": "x"}),
            ["config: models.plain", "exactly one of recipe and source"],
        ),
        (
            lambda c: c["models"]["plain"]["recipe"].update(type="standrad"),
            ["config: models.plain.recipe.type", "did you mean 'standard'?"],
        ),
        (lambda c: c.update(plugins=["nowhere.module"]), ["no plug-in module 'nowhere.module'"]),
        (
            lambda c: c["figures"].update(curves={"type": "certified_curve", "experiments": ["x"]}),
            ["config: figures.curves.experiments[0]", "no experiment 'x'"],
        ),
    ],
)
def test_a_mistake_is_refused_with_its_key_and_the_remedy(tiny, change, words):
    change(tiny)
    message = refusal(tiny)
    for word in words:
        assert word in message, message


def test_an_unused_definition_is_not_checked(tiny):
    tiny["defenses"]["broken"] = {"type": "no_such_method"}
    assert plan.make(tiny).counts()["collect"] == 2


def test_a_target_that_is_not_planned_is_refused_with_the_nearest(tiny):
    made = plan.make(tiny)

    class Wildcards:
        experiment = "claen"

    with pytest.raises(CertbenchError, match="did you mean 'clean'"):
        made.job("table", Wildcards)


def test_a_list_of_epsilons_is_one_attack_for_each(tiny):
    tiny["attacks"]["pgd"]["epsilon"] = [0.25, 0.5]
    made = plan.make(tiny)
    attacked = {key[1][4] for key in made.jobs if key[0] == "attack"}
    assert attacked == {"pgd-epsilon-0p25", "pgd-epsilon-0p5"}
    tiny["experiments"][0]["exclude"] = [{"attack": "pgd", "defense": "smoothing"}]
    made = plan.make(tiny)
    assert {key[1][3] for key in made.jobs if key[0] == "attack"} == {"none"}


def test_an_adversarial_variant_waits_for_its_attack(tiny):
    tiny["variants"]["adv"] = {"type": "adversarial", "model": "plain", "attack": "pgd"}
    tiny["experiments"][1].update(variants=["adv"], defenses=["none", "smoothing"])
    made = plan.make(tiny)
    (predict,) = [
        job for (rule, key), job in made.jobs.items() if rule == "predict" and "adv-" in key[1]
    ]
    folder = "results/attacks/digits-test-squash32/clean/plain/none/pgd"
    assert predict.inputs["attack_images"] == [f"{folder}/i0000000-0000020.npz"]
    outputs = {path for job in made.jobs.values() for path in job.outputs.values()}
    assert set(predict.inputs["attack_images"]) <= outputs


def test_an_adversarial_step_comes_first(tiny):
    tiny["variants"]["adv"] = [
        tiny["variants"]["dark"],
        {"type": "adversarial", "model": "plain", "attack": "pgd"},
    ]
    tiny["experiments"][1]["variants"] = ["adv"]
    assert "make the adversarial step the first" in refusal(tiny)


def test_every_configuration_that_ships_can_be_planned():
    from certbench import config

    folder = config.project_root() / "config"
    files = [*folder.glob("*.yaml"), *folder.glob("reproductions/*.yaml")]
    for path in files:
        if path.name not in ("schema.yaml", "config.yaml"):
            assert plan.make(config.load([path])).jobs, path


def test_the_study_in_the_readme_can_be_planned():
    import re

    import yaml

    from certbench import config

    root = config.project_root()
    text = (root / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    study = yaml.safe_load(example)
    study["models"]["mine"]["source"]["sha256"] = "a" * 64
    demo = config.load_yaml(root / "config" / "config.yaml")
    counts = plan.make(config.merge(demo, study)).counts()
    assert counts["fetch"] == 1 and counts["attack"] == 6 * 2


def variant_jobs(config, rule="predict"):
    jobs = plan.make(config).jobs
    return {key: job for (r, key), job in jobs.items() if r == rule and key[1] != "clean"}


def test_storing_a_variant_changes_neither_ids_nor_work_and_adds_its_jobs(tiny):
    tiny["experiments"][1].update(defenses=["none", "smoothing"], attacks=["pgd"])
    before = plan.make(tiny)
    tiny["variants"]["dark"]["materialise"] = True
    after = plan.make(tiny)
    made = {key for key in after.jobs if key[0] == "materialise"}
    assert set(after.jobs) == set(before.jobs) | made and len(made) == 1
    for key, job in before.jobs.items():
        if key[0] != "report":
            assert after.jobs[key].work_text == job.work_text
            assert after.jobs[key].outputs == job.outputs
    (stored,) = (after.jobs[key].outputs["images"] for key in made)
    readers = {key[0] for key, job in after.jobs.items() if job.inputs.get("stored") == [stored]}
    assert readers == {"predict", "collect", "attack"}
    assert all("dark" not in key[1][1] for key in made), "the path holds what is done, not a name"


def test_each_range_of_a_stored_variant_is_a_job_of_its_own(tiny):
    tiny["variants"]["dark"].update(materialise=True, severity=[1, 2])
    tiny["experiments"][1]["datasets"][0]["limit"] = 50
    made = variant_jobs(tiny, "materialise")
    assert len(made) == 2 * 3
    for key, job in variant_jobs(tiny).items():
        assert job.inputs["stored"] == [f"results/variants/{key[0]}/{key[1]}/{key[3]}.parquet"]


def test_a_variant_is_a_step_a_list_of_steps_or_a_mapping_with_steps(tiny):
    dark = tiny["variants"]["dark"]
    ids = {}
    for name, entry in {
        "step": dark,
        "list": [dark],
        "mapping": {"steps": [dark], "materialise": True},
        "beside": {**dark, "materialise": True, "encoding": "png"},
    }.items():
        tiny["variants"]["dark"] = entry
        ids[name] = {key[1] for key in variant_jobs(tiny)}
    assert len(set(map(frozenset, ids.values()))) == 1
    tiny["variants"]["dark"] = {"steps": [dark], "encoding": "jpeg85"}
    ((_, coded, _, _),) = variant_jobs(tiny)
    (lossless,) = ids["step"]
    assert coded.startswith("contrast-3-cifar32-jpeg85-") and coded != lossless


def test_the_images_of_a_stored_adversarial_variant_wait_for_the_attack(tiny):
    tiny["variants"]["adv"] = {
        "steps": [
            {"type": "adversarial", "model": "plain", "attack": "pgd"},
            tiny["variants"]["dark"],
        ],
        "materialise": True,
    }
    tiny["experiments"][1].update(variants=["adv"])
    (stored,) = variant_jobs(tiny, "materialise").values()
    assert stored.inputs["attack_images"] and stored.inputs["index"]
    for job in variant_jobs(tiny).values():
        assert "attack_images" not in job.inputs
        assert job.inputs["stored"] == [stored.outputs["images"]]


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"materialise": True}, ["config: variants.dark.type", "is required", "steps"]),
        ({"steps": [], "materialise": True}, ["config: variants.dark.steps"]),
        (
            {"steps": [{"type": "corruption"}], "materialize": True},
            ["config: variants.dark", "did you mean 'materialise'?"],
        ),
        (
            {"steps": [{"type": "corruption"}], "encoding": "jpg85"},
            ["config: variants.dark.encoding", "did you mean 'jpeg85'?"],
        ),
        (
            {"steps": [{"type": "corruption"}], "materialise": "yes"},
            ["config: variants.dark.materialise"],
        ),
        ([], ["config: variants.dark"]),
    ],
)
def test_a_mistake_in_how_a_variant_is_written_is_refused(tiny, variant, words):
    tiny["variants"]["dark"] = variant
    message = refusal(tiny)
    for word in words:
        assert word in message, message


def test_definitions_that_share_an_anchor_are_filled_apart(tiny):
    dark = tiny["variants"]["dark"]
    tiny["variants"]["twice"] = [dark, dark]
    tiny["experiments"][1]["variants"] = ["dark", "twice"]
    assert len({key[1] for key in variant_jobs(tiny)}) == 2


def test_published_sets_sweep_as_corruptions_do(tiny):
    tiny["variants"]["dark"] = {
        "type": "cifar10_c",
        "root": "somewhere/CIFAR-10-C",
        "corruption": ["fog", "snow", "gaussian_noise"],
        "severity": [1, 5],
    }
    ids = {key[1].rsplit("-", 1)[0] for key in variant_jobs(tiny)}
    assert ids == {
        f"{name}-{severity}-cifar10_c"
        for name in ("fog", "snow", "gaussian_noise")
        for severity in (1, 5)
    }


@pytest.mark.parametrize("name", ["cifar10_c", "imagenet_c", "imagenet_3dcc"])
def test_a_step_that_replaces_the_images_comes_first(tiny, name):
    published = {"type": name, "root": "somewhere", "corruption": "brightness", "severity": 1}
    if name == "imagenet_3dcc":
        published["corruption"] = "fog_3d"
    dark = tiny["variants"]["dark"]
    tiny["variants"]["dark"] = [published, dark]
    assert variant_jobs(tiny)
    tiny["variants"]["dark"] = [dark, published]
    assert f"make the {name} step the first" in refusal(tiny)


def test_an_outside_step_that_asks_for_the_unknown_is_refused(tiny, tmp_path):
    (tmp_path / "odd.py").write_text(
        "from dataclasses import dataclass\n"
        "kind = 'variant'\nversion = 1\nneeds = ('item_indx',)\n"
        "@dataclass(frozen=True)\nclass Params:\n    pass\n"
        "def slug(params):\n    return 'odd'\n"
        "def apply(params, images, item_ids, seed, dataset, *, item_indx):\n    return images\n"
    )
    tiny["plugins"] = [str(tmp_path / "odd.py")]
    tiny["variants"]["dark"] = {"type": "odd"}
    assert "did you mean 'item_index'?" in refusal(tiny)


def test_depth_from_a_dataset_without_depth_is_refused(tiny):
    fog = {"type": "corruption_3d", "corruption": "fog_3d", "severity": [1, 2], "depth": "dataset"}
    tiny["variants"]["dark"] = fog
    message = refusal(tiny)
    assert "config: variants.dark" in message and "true depth" in message
    assert "dataset 'digits' (type digits)" in message and "streets" in message
    # A type that needs no depth asks for none.
    tiny["variants"]["dark"] = {**fog, "corruption": "iso_noise"}
    assert len(variant_jobs(tiny)) == 2
    tiny["datasets"]["streets"] = {"type": "streets"}
    tiny["variants"]["dark"] = fog
    tiny["experiments"][1]["datasets"] = [{"name": "streets", "view": "native", "limit": 20}]
    assert len(variant_jobs(tiny)) == 2


def segmenting(tiny):
    """The small study, measured on the label maps of streets."""
    tiny["datasets"]["streets"] = {"type": "streets", "condition": "clear"}
    tiny["models"]["segmenter"] = {
        "task": "segmentation",
        "builder": {"type": "small_unet"},
        "recipe": {"type": "standard", "epochs": 1, "batch_size": 8, "flip": False},
        "train_on": {"dataset": "streets", "view": "native", "limit": 20},
    }
    tiny["experiments"][1] = {
        "name": "shifted",
        "task": "segmentation",
        "datasets": [{"name": "streets", "view": "native", "limit": 20}],
        "variants": ["dark"],
        "models": ["segmenter"],
    }
    return tiny


def test_scenes_are_swept_over_corruptions_and_conditions(tiny):
    tiny = segmenting(tiny)
    tiny["variants"]["dark"] = {"type": "condition", "condition": ["night", "fog", "rain", "snow"]}
    ids = {key[1].rsplit("-", 1)[0] for key in variant_jobs(tiny)}
    assert ids == {f"{name}-condition" for name in ("night", "fog", "rain", "snow")}
    tiny["variants"]["dark"] = {
        "type": "scene_3d",
        "corruption": ["camera_roll_streets", "flash"],
        "severity": [1, 5],
        "materialise": True,
    }
    assert len(variant_jobs(tiny)) == len(variant_jobs(tiny, "materialise")) == 4


@pytest.mark.parametrize(
    "variant",
    [
        {"type": "scene_3d", "corruption": "camera_roll_streets", "severity": 1},
        {"type": "condition", "condition": "night"},
    ],
)
def test_scene_steps_are_refused_where_there_are_no_scenes(tiny, variant):
    tiny["variants"]["dark"] = variant
    message = refusal(tiny)
    assert "scenes that can be rendered again" in message
    assert "dataset 'digits' (type digits)" in message and "type streets" in message


def test_a_condition_is_refused_where_it_is_the_label(tiny):
    tiny["datasets"]["streets"] = {"type": "streets"}
    tiny["experiments"][1]["datasets"] = [{"name": "streets", "view": "native", "limit": 20}]
    for variant in (
        {"type": "condition", "condition": "night"},
        {"type": "scene_3d", "corruption": "flash", "severity": 1, "condition": "night"},
    ):
        tiny["variants"]["dark"] = variant
        assert "changes what the labels of task classification say" in refusal(tiny)
    tiny["variants"]["dark"] = {"type": "scene_3d", "corruption": "flash", "severity": 1}
    assert variant_jobs(tiny)


def test_the_variants_in_the_documentation_can_be_planned(tiny):
    import re

    import yaml

    from certbench import config

    text = (config.project_root() / "docs" / "variants.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        whole = example if example.startswith("variants:") else f"variants:\n{example}"
        tiny["variants"] = yaml.safe_load(whole)["variants"]
        tiny["experiments"][1]["variants"] = list(tiny["variants"])
        assert len(variant_jobs(tiny)) == (3 + 1 + 2 if "stored" in tiny["variants"] else 15)


def test_an_attack_on_some_items_takes_the_first_of_them(tiny):
    made = plan.make(tiny)
    attack, size = (
        tiny["experiments"][0]["attacks"][0],
        tiny["experiments"][0]["datasets"][0]["limit"],
    )
    tiny["attacks"][attack]["items"] = size // 2
    some = plan.make(tiny)

    def attacked(found):
        ranges = [j.work["items"] for (rule, _), j in found.jobs.items() if rule == "attack"]
        return {i for start, stop in ranges for i in range(start, stop)}

    assert attacked(made) == set(range(size))
    assert attacked(some) == set(range(size // 2))
    # Nothing else changes: neither certificates nor the attack's own parameters.
    others = {key: job.work for key, job in made.jobs.items() if key[0] in ("collect", "predict")}
    assert others == {k: j.work for k, j in some.jobs.items() if k[0] in ("collect", "predict")}
    tiny["attacks"][attack]["items"] = 10 * size
    assert attacked(plan.make(tiny)) == set(range(size))


def test_a_variant_of_adversarial_images_is_made_of_all_items_whatever_the_attack_is_limited_to(
    tiny,
):
    experiment = tiny["experiments"][0]
    attack, size = experiment["attacks"][0], experiment["datasets"][0]["limit"]
    tiny["attacks"][attack]["items"] = 1
    model = experiment["models"][0]
    tiny["variants"]["adv"] = {"type": "adversarial", "model": model, "attack": attack}
    experiment["variants"] = ["adv"]
    found = plan.make(tiny)
    clean = [
        job.work["items"]
        for (rule, key), job in found.jobs.items()
        if rule == "attack" and key[1] == "clean"
    ]
    assert {i for start, stop in clean for i in range(start, stop)} == set(range(size))
