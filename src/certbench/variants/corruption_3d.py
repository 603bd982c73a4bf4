"""3D common corruptions as a variant step (Kar et al., CVPR 2022).

Types that need depth take it from the dataset, where that knows it, from a folder with one 16-bit
depth image for each item, or from a network that predicts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from certbench.corruptions.three_d_predicted import Checkpoint
    from certbench.variants.protocol import Source

version = 1

needs_uint8 = True

needs = ("source",)

# Written out, because planning reads this module and the corruptions need numpy; a test compares.
WITHOUT_DEPTH = ("flash", "low_light", "iso_noise", "color_quant")
WITH_DEPTH = (
    "near_focus",
    "far_focus",
    "fog_3d",
    "xy_motion_blur",
    "z_motion_blur",
    "flash_geometric",
    "h265_crf",
    "h265_abr",
    "bit_error",
)


@dataclass(frozen=True)
class Params:
    """Which corruption, how strong, and where depth comes from."""

    corruption: str = param(
        help="type of corruption",
        choices=tuple(n for n in (*WITHOUT_DEPTH, *WITH_DEPTH) if n != "flash"),
    )
    severity: int = param(help="strength", minimum=1, maximum=5)
    depth: str | None = param(
        None,
        help="where depth comes from: the dataset's own, depth_root, depth_model, or nowhere; "
        "null: depth_root or depth_model, whichever is given",
        choices=("dataset", "folder", "model", "none"),
    )
    depth_root: str | None = param(
        None,
        help="folder with a 16-bit depth PNG (1/512 m) per item, <item id without suffix>.png, of "
        "the view's size",
    )
    depth_model: str | None = param(
        None,
        help="file of a network that predicts inverse depth (MiDaS, DPT): TorchScript, or .pt2 of "
        "torch.export; or Hugging Face folder of one (needs transformers)",
    )
    depth_sha256: str | None = param(
        None, help="SHA-256 of depth_model, or of model.safetensors in that folder"
    )
    depth_size: int | None = param(
        384,
        help="side that a network from a file works at; null: the image's own",
        unit="pixels",
        minimum=32,
    )
    depth_mean: tuple[float, ...] = param(
        (0.5, 0.5, 0.5), help="mean per channel that a network from a file expects"
    )
    depth_std: tuple[float, ...] = param(
        (0.5, 0.5, 0.5), help="standard deviation per channel likewise", above=0
    )
    depth_stretch: bool = param(
        True,
        help="stretch each prediction to 0..65535, as MiDaS and DPT write their maps; false: the "
        "network's values count as such",
    )

    def __post_init__(self) -> None:
        if self.depth is None and self.depth_root is not None and self.depth_model is not None:
            raise CertbenchError(
                "is required where both depth_root and depth_model are given",
                where="depth",
                remedy="write depth: folder or depth: model",
            )
        if self.corruption not in WITH_DEPTH:
            return
        source = self.depth_source
        if source == "none":
            raise CertbenchError(
                f"is required: '{self.corruption}' needs depth",
                where="depth" if self.depth else "depth_root",
                remedy="name the folder of depth images, set depth: dataset or depth: model, or "
                f"use {', '.join(WITHOUT_DEPTH[1:])}",
            )
        if source == "folder" and self.depth_root is None:
            raise CertbenchError(
                "is required by depth: folder",
                where="depth_root",
                remedy="name the folder of depth images",
            )
        if source == "model":
            _check_model(self)

    @property
    def depth_source(self) -> str:
        """``dataset``, ``folder``, ``model`` or ``none``."""
        if self.depth is not None:
            return self.depth
        if self.depth_root is not None:
            return "folder"
        return "none" if self.depth_model is None else "model"


def _check_model(params: Params) -> None:
    from certbench.models.sources import check_sha256

    for key, remedy in (
        ("depth_model", "name the file or folder of the network"),
        ("depth_sha256", "state the digest that sha256sum prints, so that results are known by it"),
    ):
        if getattr(params, key) is None:
            raise CertbenchError("is required by depth: model", where=key, remedy=remedy)
    try:
        check_sha256(params.depth_sha256, "depth_model")
    except CertbenchError as error:
        raise CertbenchError(error.problem, where="depth_sha256", remedy=error.remedy) from None
    for key in ("depth_mean", "depth_std"):
        if len(getattr(params, key)) != 3:
            raise CertbenchError("needs three values", where=key, remedy="one for each channel")


def slug(params: Params) -> str:
    """A readable name."""
    source = params.depth_source if params.corruption in WITH_DEPTH else "none"
    known = {"dataset": "3d_dataset", "model": "3d_model"}.get(source, "3d")
    return f"{params.corruption}-{params.severity}-{known}"


def requires(params: Params) -> tuple[str, ...]:
    """What the dataset must offer."""
    own = params.depth_source == "dataset" and params.corruption in WITH_DEPTH
    return ("read_depth",) if own else ()


def check(params: Params, source: Source) -> None:
    """Refuse missing depth images, or another network, before any model is loaded.

    Raises:
        CertbenchError: Names the first missing files, or the checkpoint.
    """
    if params.corruption not in WITH_DEPTH:
        return
    if params.depth_source == "model":
        from certbench.corruptions import three_d_predicted

        three_d_predicted.check(_checkpoint(params))
    if params.depth_source == "folder":
        paths = [_depth_file(params, item) for item in source.rows.column("item_id").to_pylist()]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise CertbenchError(
                f"{len(missing)} of {len(paths)} items have no depth image: "
                + ", ".join(missing[:5]),
                where="depth_root",
                remedy="store one 16-bit PNG per item, <item id without suffix>.png",
            )


def apply(
    params: Params,
    images: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    *,
    source: Source | None = None,
) -> np.ndarray:
    """Corrupt uint8 images [N, H, W, 3]; the randomness of each belongs to its id.

    Severities share an item's draw, so that curves over severity are paired.

    Raises:
        CertbenchError: A depth image is missing or of another size, or the network is refused.
    """
    import numpy as np

    from certbench.corruptions.three_d import corrupt_3d, item_seed

    made = np.empty_like(images)
    depths: list[np.ndarray | None] = [None] * len(images)
    if params.corruption in WITH_DEPTH:
        depths = _depths(params, images, item_ids, source)
    for i, (image, depth, item_id) in enumerate(zip(images, depths, item_ids, strict=True)):
        own = item_seed(seed, dataset, item_id, params.corruption)
        made[i] = corrupt_3d(image, depth, params.corruption, params.severity, own)
    return made


def _depths(
    params: Params, images: np.ndarray, item_ids: list[str], source: Source | None
) -> list[np.ndarray | None]:
    """Relative depth of every image under the view, float32 [H, W]."""
    from certbench.corruptions import three_d_depth, three_d_predicted

    if params.depth_source == "dataset":
        assert source is not None
        found = source.module.read_depth(source.params, source.rows)
        return [source.view.nearest(depth) for depth in found]
    if params.depth_source == "model":
        checkpoint = _checkpoint(params)
        return [three_d_predicted.predict(checkpoint, image) for image in images]
    return [
        three_d_depth.from_sixteen_bit(three_d_depth.read_depth(_depth_file(params, item_id)))
        for item_id in item_ids
    ]


def _depth_file(params: Params, item_id: str) -> Path:
    from pathlib import Path

    assert params.depth_root is not None
    return (Path(params.depth_root).expanduser() / item_id).with_suffix(".png")


def _checkpoint(params: Params) -> Checkpoint:
    from certbench.corruptions.three_d_predicted import Checkpoint

    assert params.depth_model is not None and params.depth_sha256 is not None
    return Checkpoint(
        params.depth_model,
        params.depth_sha256,
        params.depth_size,
        params.depth_mean,
        params.depth_std,
        params.depth_stretch,
    )
