"""The job that stores a variant: equal to the fly, resumable, refused early."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from certbench.errors import CertbenchError
from certbench.job import Terminated
from certbench.results.rows import FOOTER
from certbench.variants import applying, materialising

NOISE = {
    "variant_id": "noise",
    "steps": [
        {
            "name": "corruption",
            "version": 1,
            "params": {
                "corruption": "gaussian_noise",
                "severity": 3,
                "severity_table": "cifar32",
            },
        }
    ],
}
CODED = {**NOISE, "encoding": "jpeg85"}


def shown(job, start, stop):
    items = applying.open_items(job, job.work["dataset"])
    return applying.load_batch(job, items, start, stop)


@pytest.mark.parametrize("variant", [NOISE, CODED])
def test_jobs_see_the_same_from_the_file_as_on_the_fly(make_job, variant):
    job = make_job(variant)
    materialising.run(job)
    for start, stop in ((0, 45), (7, 30), (40, 45)):
        fly, fly_tensor = shown(make_job(variant), start, stop)
        batch, tensor = shown(make_job(variant, stored=job.output("images")), start, stop)
        assert np.array_equal(batch.images, fly.images) and batch.images.dtype == fly.images.dtype
        assert (tensor == fly_tensor).all()
        assert np.array_equal(batch.labels, fly.labels)
        assert batch.item_ids == fly.item_ids
        assert np.array_equal(batch.item_index, fly.item_index)


def test_jpeg_is_applied_once(make_job):
    """Stored and shown pixels are those of the corrupted image, coded one time."""
    from certbench.variants import stored

    job = make_job(CODED)
    materialising.run(job)
    plain, _ = shown(make_job(NOISE), 0, 45)
    coded, _ = shown(make_job(CODED, stored=job.output("images")), 0, 45)
    once = stored.as_coded(plain.images, "jpeg85", "noise")
    assert np.array_equal(coded.images, once)
    assert not np.array_equal(stored.as_coded(once, "jpeg85", "noise"), once)


def test_adversarial_images_are_stored_bit_by_bit(make_job, tmp_path):
    items = applying.open_items(make_job(NOISE), make_job(NOISE).work["dataset"])
    index = items.load(0, 45).item_index
    made = np.random.default_rng(0).random((45, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "adv.npz", x_adv=made, item_index=index, label=index)
    params = {"model": "m", "attack": "pgd", "defense": "none"}
    steps = [{"name": "adversarial", "version": 1, "params": params}]
    variant = {"variant_id": "adv", "steps": steps}
    job = make_job(variant, attack_images=[tmp_path / "adv.npz"])
    materialising.run(job)
    _, tensor = shown(make_job(variant, stored=job.output("images")), 0, 45)
    assert np.array_equal(tensor.numpy(), made)


def test_a_killed_job_goes_on_and_writes_the_same(make_job, monkeypatch):
    whole = make_job(NOISE)
    materialising.run(whole)
    expected = pq.read_table(whole.output("images"))
    whole.output("images").unlink()
    asked = []
    real = applying.load_images

    def until_killed(job, items, start, stop, *rest, **more):
        asked.append(start)
        if len(asked) == 2:
            raise Terminated
        return real(job, items, start, stop, *rest, **more)

    monkeypatch.setattr(applying, "load_images", until_killed)
    with pytest.raises(Terminated):
        materialising.run(make_job(NOISE))
    assert not whole.output("images").exists()
    materialising.run(make_job(NOISE))
    assert asked == [0, 20, 20, 40], "what was made is not made again"
    assert pq.read_table(whole.output("images")).equals(expected)
    assert not list(whole.output("images").parent.glob(".*"))


def test_the_footer_says_how_the_images_are_coded(make_job):
    for variant, encoding in ((NOISE, "png"), (CODED, "jpeg85")):
        job = make_job(variant)
        materialising.run(job)
        footer = json.loads(pq.read_schema(job.output("images")).metadata[FOOTER])
        assert footer["encoding"] == encoding and footer["shape"] == [32, 32, 3]
        assert footer["work"]["variant"] == variant


def test_the_whole_split_is_a_dataset_of_type_parquet(make_job):
    from certbench.datasets import parquet

    job = make_job(NOISE)
    materialising.run(job)
    params = parquet.Params(root=str(job.output("images").parent), files={"test": "*.parquet"})
    index, card = parquet.prepare(params, ["test"], 0, lambda done, total: None)
    fly, _ = shown(make_job(NOISE), 0, 45)
    assert len(card.class_names) == 10
    assert index.column("label").to_pylist() == fly.labels.tolist()
    found = np.stack([np.asarray(image) for image in parquet.read(params, index)])
    assert np.array_equal(found, fly.images)


def test_a_float_variant_is_not_made_jpeg(make_job, tmp_path):
    index = np.arange(1797, dtype=np.uint32)
    made = np.zeros((1797, 3, 32, 32), np.float32)
    np.savez(tmp_path / "adv.npz", x_adv=made, item_index=index, label=index)
    params = {"model": "m", "attack": "pgd", "defense": "none"}
    steps = [{"name": "adversarial", "version": 1, "params": params}]
    variant = {"variant_id": "adv-jpeg85", "steps": steps, "encoding": "jpeg85"}
    job = make_job(variant, attack_images=[tmp_path / "adv.npz"])
    with pytest.raises(CertbenchError, match=r"adv-jpeg85: .*losslessly"):
        materialising.run(job)


def test_a_job_is_refused_as_it_opens_its_items_and_a_stored_one_needs_no_sources(make_job):
    params = {"root": "nowhere", "corruption": "fog", "severity": 1, "items": 10_000}
    steps = [{"name": "cifar10_c", "version": 1, "params": params}]
    variant = {"variant_id": "fog-1-cifar10_c", "steps": steps}
    job = make_job(variant)
    with pytest.raises(CertbenchError, match=r"variant step cifar10_c: root: .*nowhere"):
        applying.open_items(job, job.work["dataset"])
    reader = make_job(variant, stored=job.output("images"))
    assert len(applying.open_items(reader, job.work["dataset"]).rows(0, 45)) == 45
