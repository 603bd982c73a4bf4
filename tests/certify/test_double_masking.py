"""Double masking as a certifier: the exhaustive toy, shards, refusals, and what attacks see."""

import dataclasses

import numpy as np
import pytest
import torch

from certbench import plugins
from certbench.certify import double_masking as plugin
from certbench.certify import masking
from certbench.certify.double_masking import CollectParams, DecideParams
from certbench.certify.protocol import SurfaceWork
from certbench.errors import CertbenchError
from certbench.params import as_dict
from patch_tables import Toy, every_patch, toy_images

ITEMS = np.arange(10, 14)
SMALL = CollectParams(patch_size=2, masks=3, fill=0.5)
# Certified rows, certified positions, and whether some patch breaks the defence, image by image.
GOLDEN = [
    (9, 49, 0),
    (5, 33, 1),
    (9, 49, 0),
    (9, 49, 0),
    (1, 9, 1),
    (5, 25, 1),
    (7, 37, 1),
    *[(9, 49, 0)] * 5,
]


@pytest.fixture
def toy_work(certifying):
    network = Toy()
    images, labels = toy_images(network)
    return certifying.work(
        as_dict(SMALL),
        (0, None),
        network=network,
        images=images,
        labels=labels.numpy().astype(np.int32),
        item_index=np.arange(12, dtype=np.uint32),
    )


def judge_of(network, params=None, numerics="exact", classes=3):
    params = params or plugin.attack_params(SMALL, DecideParams())
    work = SurfaceWork(network, params, classes, 7, "cpu", 64, numerics)
    return plugin.Judge(plugin.views_of(work))


def test_the_module_is_a_complete_plug_in():
    assert plugins.load("certifier", "double_masking") is plugin
    threat = plugin.threat(SMALL, DecideParams())
    assert (threat.kind, threat.norm, threat.space) == ("patch", "square", "pixels")
    assert threat.guarantee == "deterministic"


def test_no_patch_of_the_exhaustive_toy_breaks_a_certified_image_or_position(certifying, toy_work):
    shard = certifying.shard(plugin, toy_work)
    stats = plugin.merge([shard], SMALL, np.arange(12))
    made = plugin.decide(stats, SMALL, DecideParams(), toy_work.labels)
    assert (made["predict"] == toy_work.labels).all()
    assert (made["pred_undefended"] == toy_work.labels).all()
    assert made["certified"].sum() == 8
    assert made["certified_rows"].tolist() == [rows for rows, _, _ in GOLDEN]
    assert np.rint(49 * made["lcf"]).tolist() == [positions for _, positions, _ in GOLDEN]
    assert (made["radius"] == np.where(made["certified"], 2.0, 0.0)).all()
    judge = judge_of(toy_work.network)
    holding = stats.masks.holding(2, 2).reshape(9, 49)
    rows = masking.certified_rows(stats.labels, toy_work.labels)
    undefended = broken_positions = 0
    for i, (image, label) in enumerate(zip(toy_work.images, toy_work.labels, strict=True)):
        attacked = every_patch(image, 2, (0.0, 0.5, 1.0))
        assert attacked.shape[:2] == (49, 81)
        flat = attacked.flatten(0, 1)
        undefended += bool((toy_work.network(flat).argmax(1) != int(label)).any())
        fooled = (judge(flat) != int(label)).view(49, 81).any(1).numpy()
        certified = holding[rows[i]].any(0)
        assert not (fooled & certified).any()
        assert fooled.any() == bool(GOLDEN[i][2])
        broken_positions += int(fooled.sum())
    assert (undefended, broken_positions) == (10, 73)


def test_judge_and_table_are_one_rule_on_clean_images(certifying, toy_work):
    for engine in masking.ENGINES:
        decide = DecideParams(engine=engine)
        stats = plugin.merge([certifying.shard(plugin, toy_work)], SMALL, np.arange(12))
        made = plugin.decide(stats, SMALL, decide, toy_work.labels)
        for numerics in ("exact", "fast"):
            judge = judge_of(
                toy_work.network, plugin.attack_params(SMALL, decide), numerics=numerics
            )
            assert judge(toy_work.images).tolist() == made["predict"].tolist()
            assert judge.spent.tolist() == made["n_forward_infer"].tolist()


def test_shards_in_any_order_and_resumed_give_the_same_certificates(certifying):
    params = as_dict(CollectParams(patch_size=2, masks=3))
    work = certifying.work({**params, "fill": 0.5}, (0, None))
    whole = plugin.merge([certifying.shard(plugin, work)], SMALL, ITEMS)
    parts = [certifying.shard(plugin, certifying.part(work, a, b)) for a, b in ((2, 4), (0, 2))]
    merged = plugin.merge(parts, SMALL, ITEMS)
    assert np.array_equal(whole.labels, merged.labels)
    assert np.array_equal(whole.margins, merged.margins)

    class Interrupted:
        state = None
        saves = 0

        def load(self):
            return self.state

        def save(self, state):
            self.state = {k: np.copy(v) for k, v in state.items()}
            self.saves += 1
            if self.saves == 1:
                raise KeyboardInterrupt

    many = certifying.work({**params, "fill": 0.5}, (0, None), count=60)
    progress = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        plugin.collect(dataclasses.replace(many, progress=progress))
    ticks = []
    again = dataclasses.replace(many, progress=progress, tick=ticks.append)
    assert plugin.collect(again)[0]["labels"] == plugin.collect(many)[0]["labels"]
    assert int(progress.state["done"]) > 0 and sum(ticks) == 60 and len(ticks) >= 2


def test_what_does_not_belong_together_is_refused(certifying):
    work = certifying.work({**as_dict(SMALL)}, (0, None))
    shard = certifying.shard(plugin, work)
    for change in ({"model_sha256": "other"}, {"params": {**as_dict(SMALL), "masks": 4}}):
        other = certifying.shard(plugin, certifying.part(dataclasses.replace(work, **change), 2, 4))
        with pytest.raises(CertbenchError, match="differs"):
            plugin.merge(
                [certifying.shard(plugin, certifying.part(work, 0, 2)), other], SMALL, ITEMS
            )
    with pytest.raises(CertbenchError, match="in two shards"):
        plugin.merge([shard, shard], SMALL, ITEMS)
    with pytest.raises(CertbenchError, match="in no shard"):
        plugin.merge([shard], SMALL, np.arange(10, 15))
    # One table serves every smaller patch, and no larger one.
    plugin.merge([shard], CollectParams(patch_size=1, masks=3, fill=0.5), ITEMS)
    with pytest.raises(CertbenchError, match="outside every mask"):
        plugin.merge([shard], CollectParams(patch_size=4, masks=3, fill=0.5), ITEMS)
    with pytest.raises(CertbenchError, match="does not fit"):
        plugin.collect(certifying.work({**as_dict(SMALL), "patch_size": 9}, (0, None)))
    with pytest.raises(CertbenchError, match="mean colour"):
        plugin.collect(certifying.work({**as_dict(SMALL), "fill": None}, (0, None)))


def tables(labels):
    """Merged statistics of one image with a 3 x 3 table (an axis of three masks, one row)."""
    from certbench.certify import masks

    found = masks.MaskSet(masks.Axis(4, (0,), 4), masks.axis(9, 3, 3))
    assert len(found) == 3
    table = masking.unpack(np.array([labels], np.int16), 3)
    return plugin.Tables(found, table, np.ones((1, 6), np.float32), np.array([labels[0]]))


def test_second_round_pairs_decide_the_certificate():
    collect = CollectParams(patch_size=3, masks=3)
    unanimous_first_round = tables([1, 0, 1, 1, 1, 1])  # the pair of masks 0 and 1 says 0
    made = plugin.decide(unanimous_first_round, collect, DecideParams(), np.array([1]))
    assert made["predict"][0] == 1 and made["radius"][0] == 0 and not made["certified"][0]
    agreed = plugin.decide(tables([1] * 6), collect, DecideParams(), np.array([1]))
    assert agreed["radius"][0] == 3 and agreed["certified"][0]
    wrong = plugin.decide(tables([1] * 6), collect, DecideParams(), np.array([0]))
    assert wrong["radius"][0] == 3 and wrong["consistent_wrong"][0] and not wrong["certified"][0]
    assert wrong["lcf"][0] == 0


def test_masks_hide_whatever_lies_under_them(certifying):
    work = certifying.work(as_dict(SMALL), (0, None))
    found = plugin.mask_set(work.params, [3, 8, 8])
    defence = plugin.views_of(
        SurfaceWork(
            work.network, plugin.attack_params(SMALL, DecideParams()), 5, 7, "cpu", 64, "exact"
        )
    )
    for i, (top, left) in enumerate(found.corners):
        hidden = work.images.clone()
        hidden[:, :, top : top + found.rows.size, left : left + found.columns.size] = torch.nan
        pair = torch.tensor([[[i, i]]]).expand(4, 1, 2)
        seen = defence.logits(hidden, pair)
        assert torch.equal(seen, defence.logits(work.images, pair))
