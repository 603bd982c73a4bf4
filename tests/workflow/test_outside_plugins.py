"""A toy plug-in of each kind from outside the package: one file and one line of configuration."""

import copy
import json
import textwrap

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

DATASET = '''
    """Squares and discs, drawn: a dataset from outside."""
    from dataclasses import dataclass
    import io
    from certbench.params import param

    kind = "dataset"
    version = 1

    @dataclass(frozen=True)
    class Params:
        count: int = param(40, help="items per split", minimum=2)

    def splits(params):
        return {"train": params.count, "test": params.count}

    def _image(i):
        from PIL import Image, ImageDraw
        image = Image.new("RGB", (16, 16), (0, 0, 0))
        draw = ImageDraw.Draw(image)
        shape = draw.rectangle if i % 2 else draw.ellipse
        shape((2 + i % 5, 2, 11, 11), fill=(255, 255, 255))
        return image

    def prepare(params, splits, seed, tick):
        from certbench.datasets import index
        from certbench.datasets.card import Card
        ids, numbers, names, labels = [], [], [], []
        for split in splits:
            for i in range(params.count):
                ids.append(f"{split}/{i}")
                numbers.append(i)
                names.append(split)
                labels.append(i % 2)
        table = index.table(ids, numbers, names, labels, row=numbers)
        card = Card("Toy shapes", "drawn here", "CC0", True, True, ("disc", "square"))
        return table, card

    def read(params, rows):
        return [_image(i) for i in rows.column("row").to_pylist()]
'''

MODEL = '''
    """One linear layer: an architecture from outside."""
    from dataclasses import dataclass
    from certbench.params import param

    kind = "model"
    version = 1

    @dataclass(frozen=True)
    class Params:
        bias: bool = param(True, help="whether the layer has a bias")

    def build(params, num_classes, pretrained=False):
        from torch import nn
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes, bias=params.bias))
'''

RECIPE = '''
    """Class means as weights: a recipe from outside."""
    from dataclasses import dataclass
    from certbench.params import param

    kind = "recipe"
    version = 1

    @dataclass(frozen=True)
    class Params:
        scale: float = param(0.1, help="scale of the weights", above=0)

    def train(context):
        import torch
        network, labels = context.network, context.labels
        inputs = (context.images.float() / 255 - network.mean) / network.std
        layer = network.net[1]
        with torch.no_grad():
            for label in range(layer.out_features):
                mean = inputs[labels == label].mean(0).flatten()
                layer.weight[label] = params_scale(context) * mean
                layer.bias[label] = -params_scale(context) * mean.square().sum() / 2
        context.log_epoch(1, 0.0, 1.0, 0.0)

    def params_scale(context):
        return context.params.scale
'''

VARIANT = '''
    """Grey haze: a variant step from outside."""
    from dataclasses import dataclass
    from certbench.params import param

    kind = "variant"
    version = 1

    @dataclass(frozen=True)
    class Params:
        share: float = param(help="share of grey", minimum=0, maximum=1)

    def slug(params):
        return f"haze-{round(100 * params.share)}"

    def apply(params, images, item_ids, seed, dataset):
        import numpy as np
        mixed = (1 - params.share) * images + params.share * 128.0
        return np.rint(mixed).astype(np.uint8)
'''

CERTIFIER = '''
    """An analytic l2 radius of a linear model: a certifier from outside."""
    from dataclasses import dataclass
    from certbench.params import param
    from certbench.threat import Threat

    kind = "certifier"
    version = 1
    stats_columns = {"margin": "float64", "answer": "int32"}
    columns = {"margin": "float64"}

    @dataclass(frozen=True)
    class CollectParams:
        passes: int = param(1, help="forward passes", minimum=1)

    @dataclass(frozen=True)
    class DecideParams:
        factor: float = param(1.0, help="factor of the radius", above=0, maximum=10)

    def threat(collect, decide):
        return Threat("lp", "l2", None, guarantee="deterministic")

    def samples(collect):
        return None

    def collect(work):
        import numpy as np
        import torch
        with torch.no_grad():
            logits = work.network(work.images)
        top = logits.topk(2, 1)
        layer, std = work.network.net[1], work.network.std.flatten()
        weights = layer.weight.view(2, 3, -1) / std.view(1, 3, 1)
        gradient = (weights[0] - weights[1]).norm()
        margin = ((top.values[:, 0] - top.values[:, 1]) / gradient).double().numpy()
        columns = {
            "slot": np.arange(len(margin)),
            "margin": margin,
            "answer": top.indices[:, 0].int().numpy(),
        }
        return columns, {"variant": work.variant, "shape": list(work.images.shape[1:])}

    def merge(shards, collect, item_index):
        import numpy as np
        found = {}
        for shard in shards:
            for row in shard.rows.select(["item_index", "margin", "answer"]).to_pylist():
                found[row["item_index"]] = (row["margin"], row["answer"])
        return np.array([found[int(i)] for i in item_index])

    def decide(stats, collect, decide, labels):
        margin = stats[:, 0]
        return {
            "predict": stats[:, 1].astype(int),
            "radius": margin * decide.factor,
            "margin": margin,
        }

    def attack_surface(work):
        from certbench.certify.protocol import Surface
        return Surface(logits=work.network, judge=None)
'''

ATTACK = '''
    """A fitted universal perturbation: an attack from outside, with both phases."""
    from dataclasses import dataclass
    from certbench.params import param
    from certbench.threat import Threat

    kind = "attack"
    version = 1
    columns = {"fitted_norm": "float64"}
    fit_limit = 20

    @dataclass(frozen=True)
    class Params:
        epsilon: float = param(help="l2 radius", above=0)

    def threat(params):
        return Threat("lp", "l2", params.epsilon)

    def fit(work):
        import torch
        x = work.images.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(work.logits(x), work.labels)
        (slope,) = torch.autograd.grad(loss, x)
        return {"direction": slope.mean(0) / slope.mean(0).norm()}

    def attack(work):
        import numpy as np
        import torch
        from safetensors.torch import load_file
        (path,) = work.artifact
        direction = load_file(path)["direction"]
        x = (work.images + 0.99 * work.params.epsilon * direction).clamp(0, 1)
        with torch.no_grad():
            clean = work.logits(work.images).argmax(1)
            after = work.logits(x).argmax(1)
        right, still = clean == work.labels, after == work.labels
        status = np.where(still.numpy(), "survived", "broken")
        status = np.where(right.numpy(), status, "clean_error")
        return {
            "x_adv": x.numpy(),
            "clean_pred": clean.numpy(),
            "adv_pred": after.numpy(),
            "status": status,
            "fitted_norm": np.full(len(x), float(direction.norm())),
            "n_forward": np.full(len(x), 2),
        }
'''

METRIC = '''
    """Balanced accuracy: a metric from outside."""
    from dataclasses import dataclass
    from certbench.params import param

    kind = "metric"
    version = 1
    rows = "predictions"

    @dataclass(frozen=True)
    class Params:
        pass

    def compute(group, params, context):
        from certbench.metrics.tabulating import value
        per_class = group.groupby("label")["correct"].mean()
        return [value("balanced_accuracy", float(per_class.mean()), len(group))]
'''

FIGURE = '''
    """A bar of one number: a figure from outside."""
    from dataclasses import dataclass

    kind = "figure"
    version = 1
    needs = ("tables",)

    @dataclass(frozen=True)
    class Params:
        pass

    def draw(data, params):
        from matplotlib.figure import Figure
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
        table = data.tables
        chosen = table[table["metric"] == "balanced_accuracy"]
        axes.bar(chosen["model"].astype(str), chosen["value"])
        return figure
'''

SOURCE = '''
    """Weights of zeros: a source from outside."""
    from dataclasses import dataclass

    kind = "source"
    version = 1

    @dataclass(frozen=True)
    class Params:
        pass

    def fetch(params, folder, context):
        import torch
        from certbench.models.sources import FetchedState
        state = {"1.weight": torch.zeros(2, 768), "1.bias": torch.tensor([1.0, 0.0])}
        return FetchedState(state, "0" * 64, "zeros", 0)
'''

FILES = {
    "toy_shapes.py": DATASET,
    "toy_linear.py": MODEL,
    "toy_means.py": RECIPE,
    "toy_haze.py": VARIANT,
    "toy_margin.py": CERTIFIER,
    "toy_universal.py": ATTACK,
    "toy_balanced.py": METRIC,
    "toy_bar.py": FIGURE,
    "toy_zeros.py": SOURCE,
}

CONFIG = {
    "device": "cpu",
    "batch_size": 16,
    "plugins": [f"plugins/{name}" for name in FILES],
    "datasets": {"shapes": {"type": "toy_shapes", "count": 40}},
    "models": {
        "linear": {
            "builder": {"type": "toy_linear"},
            "recipe": {"type": "toy_means", "scale": 0.2},
            "train_on": {"dataset": "shapes", "view": "native16"},
            "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        },
        "zeros": {
            "builder": {"type": "toy_linear"},
            "source": {"type": "toy_zeros"},
            "num_classes": 2,
            "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        },
    },
    "defenses": {"margin": {"type": "toy_margin", "factor": 0.999}},
    "attacks": {"universal": {"type": "toy_universal", "epsilon": 2.0}},
    "variants": {"haze": {"type": "toy_haze", "share": [0.25, 0.5]}},
    "metrics": [
        {"type": "accuracy"},
        {"type": "toy_balanced"},
        {"type": "certified", "radii": [0.0, 0.5]},
        {"type": "attacked"},
        {"type": "gap"},
    ],
    "figures": {"bar": {"type": "toy_bar"}},
    "experiments": [
        {
            "name": "toys",
            "datasets": [{"name": "shapes", "view": "native16", "limit": 20}],
            "variants": ["clean", "haze"],
            "models": ["linear"],
            "defenses": ["none", "margin"],
            "attacks": ["universal"],
        },
        {
            "name": "fetched",
            "datasets": [{"name": "shapes", "view": "native16", "limit": 20}],
            "models": ["zeros"],
        },
    ],
}


def test_a_toy_of_every_kind_runs_from_outside(project):
    (project.folder / "plugins").mkdir()
    for name, text in FILES.items():
        (project.folder / "plugins" / name).write_text(textwrap.dedent(text).lstrip())
    project.configure(CONFIG)
    project.run("results/report.html")
    table = pq.read_table(project.folder / "results/tables/toys.parquet").to_pandas()
    metrics = table.set_index("metric")["value"]
    assert set(table["variant_id"].str.rsplit("-", n=1).str[0]) == {"clean", "haze-25", "haze-50"}
    assert (metrics["balanced_accuracy"] > 0.9).all()
    assert (metrics["certified_accuracy"] <= 1).all()
    # The radius of a linear model is exact, so no attack may win inside it.
    assert (metrics["violation"] == 0).all()
    fetched = pq.read_table(project.folder / "results/tables/fetched.parquet").to_pandas()
    assert fetched.set_index("metric")["value"]["accuracy"] == 0.5
    assert (project.folder / "results/figures/bar.svg").is_file()


def test_a_planted_unsound_certifier_ends_the_workflow_with_its_violations_listed(project):
    (project.folder / "plugins").mkdir()
    for name, text in FILES.items():
        (project.folder / "plugins" / name).write_text(textwrap.dedent(text).lstrip())
    config = copy.deepcopy(CONFIG)
    config["defenses"]["margin"]["factor"] = 10.0
    config["experiments"] = [{**config["experiments"][0], "variants": ["clean"]}]
    project.configure(config)
    done = project.run("results/report.html", check=False)
    assert done.returncode == 1
    assert "certificates were broken inside their own region" in done.stdout
    assert "Traceback" not in done.stdout
    found = json.loads((project.folder / "results/audit/toys.json").read_text())
    assert found["violations"] and not found["sound"]
    page = (project.folder / "results/report.html").read_text()
    assert "violation" in page.lower()
