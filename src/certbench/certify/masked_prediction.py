"""Predictions of a network on masked images: the one place where masked defences run a model.

Certificates and judges of attacks both come here, so that what is certified and what is attacked
are one function: the same weights, layout, fill, batch shape and rule for ties. A mask replaces
pixels by selection, never by multiplication, so that nothing of a patch comes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import sampling
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch

    from certbench.certify.protocol import CollectWork, Shard, SurfaceWork


def fill_colour(network: Any, fill: float | None, channels: int) -> torch.Tensor:
    """The colour of masked pixels: float32 [C], pixel values in [0, 1].

    Args:
        network: The model, before anything is folded.
        fill: One value for all channels; None means the mean that the network subtracts, which is
            zero after normalisation (PatchCleanser's choice).
        channels: C.

    Raises:
        CertbenchError: No value is given and the network has no mean.
    """
    import torch

    if fill is not None:
        return torch.full((channels,), float(fill))
    mean = getattr(network, "mean", None)
    if not isinstance(mean, torch.Tensor):
        raise CertbenchError(
            "the model states no mean colour", where="fill", remedy="give a fill in [0, 1]"
        )
    return mean.detach().flatten().float().cpu().expand(channels).clone()


def blank(images: torch.Tensor, blanked: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """Images with masked pixels replaced: float32 [n, C, H, W].

    Args:
        images: float32 [n, C, H, W].
        blanked: bool [n, H, W] or [H, W], pixels to replace.
        fill: float32 [C].
    """
    import torch

    wide = blanked.unsqueeze(-3)
    return torch.where(wide, fill.view(-1, 1, 1), images)


class MaskedPredictor:
    """Labels and margins of images under pairs of masks, in batches of one shape.

    Args:
        network: float32 [B, C, H, W] -> logits [B, K], in eval mode.
        num_classes: K.
        blanked: bool [N, H, W], the pixels each mask takes away.
        fill: float32 [C], what stands there instead.
        batch_size: Masked images per pass where numerics are not exact.
        numerics: ``exact`` or ``fast``.
        device: Where the network is.
        name: For messages.

    Raises:
        CertbenchError: The network is in train mode.
    """

    def __init__(
        self,
        network: Any,
        num_classes: int,
        blanked: np.ndarray,
        fill: torch.Tensor,
        *,
        batch_size: int,
        numerics: str,
        device: Any,
        name: str = "model",
    ):
        import torch

        sampling.require_eval(network)
        self.network, self.layout = sampling.for_inference(network)
        self.num_classes, self.name, self.device = num_classes, name, device
        self.masks = torch.from_numpy(blanked).to(device)
        self.fill = fill.to(device)
        self.exact = numerics == "exact"
        self.size = sampling.exact_batch(device) if self.exact else batch_size
        #: Places that a pass has anyway, or that cost little more.
        self.step = self.size if self.exact else min(32, self.size)

    def predict(
        self, images: torch.Tensor, slot: np.ndarray, masks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [q] and top-1 margins float32 [q] of images under masks.

        Args:
            images: float32 [n, C, H, W] in [0, 1], on the device.
            slot: int64 [q], image of each query.
            masks: int64 [q, r], masks laid over it together; -1 for none.

        Raises:
            CertbenchError: Logits are not finite, or of another number of classes.
        """
        import torch

        labels = np.empty(len(slot), np.int64)
        margins = np.empty(len(slot), np.float32)
        classes = torch.arange(self.num_classes, device=self.device)
        for part, logits in self.passes(images, slot, masks):
            top = logits.topk(2, 1).values
            # The lowest index among equal maxima: argmax does not promise it everywhere.
            vote = torch.where(logits == top[:, :1], classes, self.num_classes).amin(1)
            labels[part] = vote.cpu().numpy()
            margins[part] = (top[:, 0] - top[:, 1]).cpu().numpy()
        return labels, margins

    def passes(
        self, images: torch.Tensor, slot: np.ndarray, masks: np.ndarray
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Logits of the queries of :meth:`predict`, pass by pass, with the queries they answer."""
        import torch

        from certbench.models.network import guard_logits

        size = self.size if self.exact else min(self.size, max(len(slot), 1))
        batch = torch.empty(
            (size, *images.shape[1:]),
            dtype=torch.float32,
            device=self.device,
            memory_format=torch.channels_last,
        )
        with torch.inference_mode():
            for begin in range(0, len(slot), size):
                part = slice(begin, min(begin + size, len(slot)))
                own, layers = slot[part], masks[part]
                real = len(own)
                # The last batch is padded with its last query: every pass has one shape.
                own = np.concatenate([own, np.repeat(own[-1:], size - real)])
                layers = np.concatenate([layers, np.repeat(layers[-1:], size - real, 0)])
                at = torch.from_numpy(layers).to(self.device)
                covered = (self.masks[at.clamp_min(0)] & (at >= 0)[..., None, None]).any(1)
                chosen = images[torch.from_numpy(own).to(self.device)]
                batch.copy_(blank(chosen, covered, self.fill))
                logits = self.network(batch).float()[:real]
                yield part, guard_logits(logits, self.name, self.num_classes)


def predictor_of(
    work: CollectWork | SurfaceWork, blanked: np.ndarray, channels: int
) -> MaskedPredictor:
    """The defended function of a job, whether it certifies or attacks.

    Args:
        work: The job's context; its params hold ``fill``.
        blanked: bool [N, H, W], the pixels each mask takes away.
        channels: C.
    """
    return MaskedPredictor(
        work.network,
        work.num_classes,
        blanked,
        fill_colour(work.network, work.params["fill"], channels),
        batch_size=work.batch_size,
        numerics=work.numerics,
        device=work.device,
    )


def fill_in(
    work: CollectWork,
    predictor: MaskedPredictor,
    queries: int,
    found: dict[str, np.ndarray],
    ask: Callable[[torch.Tensor], Mapping[str, np.ndarray]],
) -> None:
    """Ask about every image of a shard, going on from its progress.

    Args:
        work: The shard.
        predictor: The network under masks.
        queries: Queries per image.
        found: Arrays [M, ...] to fill, by name.
        ask: Images [n, C, H, W] on the device -> their rows of each array.
    """
    state = (work.progress.load() if work.progress is not None else None) or {}
    count, done = len(work.images), int(state.get("done", 0))
    if done:
        for name, rows in found.items():
            rows[:done] = state[name]
        if work.tick is not None:
            work.tick(done)
    # Whole images at a time, as many as fill some passes.
    step = max(1, 8 * predictor.size // queries)
    for begin in range(done, count, step):
        part = work.images[begin : begin + step].to(work.device)
        stop = begin + len(part)
        for name, rows in ask(part).items():
            found[name][begin:stop] = rows
        if work.progress is not None:
            kept = {name: rows[:stop] for name, rows in found.items()}
            work.progress.save({"done": stop, **kept})
        if work.tick is not None:
            work.tick(len(part))


def identity_of(work: CollectWork, predictor: MaskedPredictor, **own: Any) -> dict[str, Any]:
    """What a shard may be merged with: what all masked defences state, and their own facts."""
    return {
        "variant": work.variant,
        "model": work.model_sha256,
        "numerics": work.numerics,
        "layout": predictor.layout,
        "dtype": "float32",
        "shape": list(work.images.shape[1:]),
        "fill": [float(v) for v in predictor.fill.tolist()],
        "num_classes": work.num_classes,
        **own,
    }


class MaskedViews:
    """A network seen through masks by what attacks it, with gradients.

    Masks are made when the first image of a shape is seen.

    Args:
        work: The surface's context; its params hold ``fill``.
        blanked: Shape [C, H, W] -> bool [N, H, W], the pixels each view takes away.
    """

    def __init__(self, work: SurfaceWork, blanked: Callable[[Sequence[int]], np.ndarray]):
        self.work = work
        self.network = work.network
        self._blanked = blanked
        self._predictors: dict[tuple[int, ...], MaskedPredictor] = {}

    def predictor(self, shape: Sequence[int]) -> MaskedPredictor:
        """The function that is certified, for images of a shape [C, H, W]."""
        key = tuple(int(n) for n in shape)
        if key not in self._predictors:
            self._predictors[key] = predictor_of(self.work, self._blanked(key), key[0])
        return self._predictors[key]

    def views(self, shape: Sequence[int]) -> int:
        """Number of single views of images of a shape [C, H, W]."""
        return len(self.predictor(shape).masks)

    def logits(self, x: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """Logits [n, m, K] of images [n, C, H, W] under pairs of masks, int64 [n, m, 2]."""
        import torch

        known = self.predictor(x.shape[1:])
        covered = known.masks[views[..., 0]] | known.masks[views[..., 1]]
        n, m = covered.shape[:2]
        if torch.is_grad_enabled():
            seen = blank(x.unsqueeze(1), covered, known.fill)
            return self.network(seen.flatten(0, 1)).unflatten(0, (n, m))
        # Without a graph memory is bounded: as many images at a time as fill one pass.
        step = max(1, self.work.batch_size // m)
        parts = [
            self.network(
                blank(x[i : i + step, None], covered[i : i + step], known.fill).flatten(0, 1)
            )
            for i in range(0, n, step)
        ]
        return torch.cat(parts).unflatten(0, (n, m))


class LazyPairs:
    """An oracle (:data:`certbench.certify.masking.Oracle`) that asks the network when it must.

    A pass has a fixed number of places. Places that would be padding are filled with the pairs that
    the same rows ask for next, so that a rule which asks pair by pair costs few passes.

    Args:
        predictor: The network under masks.
        images: float32 [n, C, H, W] in [0, 1], on the device.
    """

    def __init__(self, predictor: MaskedPredictor, images: torch.Tensor):
        self.predictor, self.images = predictor, images
        count = len(predictor.masks)
        self.known = np.full((len(images), count, count), -1, np.int32)

    def first_round(self) -> np.ndarray:
        """Predictions under each single mask: int64 [n, N]."""
        n, count = self.known.shape[:2]
        slot = np.repeat(np.arange(n), count)
        each = np.tile(np.arange(count), n)
        labels, _ = self.predictor.predict(self.images, slot, each[:, None])
        self.known[slot, each, each] = labels
        return labels.reshape(n, count)

    def __call__(self, images: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Labels of the images under both masks: int64 [q]."""
        missing = np.flatnonzero(self.known[images, first, second] < 0)
        if len(missing):
            wanted = np.stack([images, first, second], 1)[missing]
            room = -len(wanted) % self.predictor.step
            wanted = np.concatenate([wanted, self._ahead(wanted, room)])
            labels, _ = self.predictor.predict(self.images, wanted[:, 0], wanted[:, 1:])
            i, a, b = wanted.T
            self.known[i, a, b] = self.known[i, b, a] = labels
        return self.known[images, first, second].astype(np.int64)

    def _ahead(self, wanted: np.ndarray, room: int) -> np.ndarray:
        """Unknown pairs of the same rows behind the wanted ones, nearest first: [<= room, 3]."""
        count = self.known.shape[1]
        found: list[np.ndarray] = []
        for step in range(1, count):
            later = wanted + np.array([0, 0, step])
            later = later[later[:, 2] < count]
            later = later[self.known[later[:, 0], later[:, 1], later[:, 2]] < 0]
            if not len(later) or room <= 0:
                break
            found.append(later[:room])
            room -= len(later)
        return np.concatenate(found) if found else np.empty((0, 3), np.int64)


def gather(
    shards: Sequence[Shard], columns: Sequence[str], item_index: np.ndarray
) -> list[dict[str, Any]]:
    """The rows of all items in order, from shards that differ in their items only.

    Args:
        shards: Shards with one row per item.
        columns: Columns wanted.
        item_index: uint32 [M], the items.

    Raises:
        CertbenchError: Identities differ, or an item is in two shards or in none.
    """
    rows: dict[int, dict[str, Any]] = {}
    for shard in shards:
        for key, value in shards[0].identity.items():
            if shard.identity.get(key) != value:
                raise CertbenchError(
                    f"differs from {shards[0].path} in {key}",
                    where=str(shard.path),
                    remedy="delete the older of the two, and run again",
                )
        for row in shard.rows.select(["item_index", *columns]).to_pylist():
            if row["item_index"] in rows:
                raise CertbenchError(
                    f"item {row['item_index']} is in two shards", where=str(shard.path)
                )
            rows[row["item_index"]] = row
    missing = [int(item) for item in item_index if int(item) not in rows]
    if missing:
        raise CertbenchError(f"item {missing[0]} is in no shard", where=str(shards[0].path))
    return [rows[int(item)] for item in item_index]
