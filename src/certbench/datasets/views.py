"""Views: how an image of a dataset becomes the input of a network.

A view belongs to the dataset, so that every model, corruption and attack of an experiment sees the
same pixels. A view is named by what it does::

    native               as stored
    native<N>            as stored, which must be N x N
    squash<N>            resized to N x N, whatever the shape was
    squash<H>x<W>        resized to H x W
    resize<S>_crop<C>    short side resized to S, then the central C x C

Resizing is bilinear with antialiasing, on Pillow images: ``resize<S>_crop<C>`` gives the very bytes
of ``torchvision.transforms`` (Resize, CenterCrop) on the same Pillow image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

GRAMMAR = "native, native<N>, squash<N>, squash<H>x<W>, resize<S>_crop<C> with C <= S"

_NUMBER = r"([1-9]\d{0,4})"
_NATIVE = re.compile(rf"native{_NUMBER}?")
_SQUASH = re.compile(rf"squash{_NUMBER}(?:x{_NUMBER})?")
_CROP = re.compile(rf"resize{_NUMBER}_crop{_NUMBER}")


@dataclass(frozen=True)
class View:
    """One way of looking at images.

    Attributes:
        name: As written in the configuration.
        kind: ``native``, ``squash`` or ``crop``.
        size: Height and width of what :meth:`apply` gives; None where the image decides.
        short_side: Length of the short side before the crop (``crop`` only).
    """

    name: str
    kind: str
    size: tuple[int, int] | None
    short_side: int | None = None

    def apply(self, image: Image.Image) -> np.ndarray:
        """The pixels of an image under this view.

        Args:
            image: A Pillow image of any mode.

        Returns:
            uint8 [H, W, 3].

        Raises:
            CertbenchError: A ``native<N>`` view of an image that is not N x N.
        """
        import numpy as np

        if image.mode != "RGB":
            image = image.convert("RGB")
        if self.kind == "squash":
            assert self.size is not None
            image = _resize(image, *self.size)
        elif self.kind == "crop":
            image = self._cropped(image)
        elif self.size is not None and (image.height, image.width) != self.size:
            wanted = "x".join(map(str, self.size))
            raise CertbenchError(
                f"view {self.name} needs images of {wanted}, this one is "
                f"{image.height}x{image.width} (height x width)",
                where="view",
                remedy=f"use squash{wanted}, or resize<S>_crop<C>",
            )
        return np.asarray(image, dtype=np.uint8)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """A map of something (labels, depth) under this view, without mixing neighbours.

        Args:
            values: [H, W] of any type, in the geometry of the stored image.

        Returns:
            [h, w] of the same type: each pixel has the value nearest to its centre.
        """
        import numpy as np

        def places(length: int, into: int) -> np.ndarray:
            return ((2 * np.arange(into) + 1) * length // (2 * into)).astype(np.intp)

        height, width = values.shape
        if self.kind == "squash":
            assert self.size is not None
            rows, columns = places(height, self.size[0]), places(width, self.size[1])
        elif self.kind == "crop":
            tall, wide, top, left = self._crop(height, width)
            crop = self.size[0] if self.size else 0
            rows = places(height, tall)[top : top + crop]
            columns = places(width, wide)[left : left + crop]
        else:
            return values
        return np.ascontiguousarray(values[rows[:, None], columns])

    def _cropped(self, image: Image.Image) -> Image.Image:
        height, width, top, left = self._crop(image.height, image.width)
        assert self.size is not None
        crop = self.size[0]
        return _resize(image, height, width).crop((left, top, left + crop, top + crop))

    def _crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Size with the short side at ``short_side``, and the corner of the central crop.

        Roundings are those of torchvision.
        """
        assert self.size is not None and self.short_side is not None
        side, crop = self.short_side, self.size[0]
        if min(height, width) != side:
            if height <= width:
                height, width = side, int(side * width / height)
            else:
                height, width = int(side * height / width), side
        return height, width, round((height - crop) / 2.0), round((width - crop) / 2.0)


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    from PIL import Image

    if (image.height, image.width) == (height, width):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def parse(name: str) -> View:
    """The view of that name.

    Raises:
        CertbenchError: The name is not of the grammar :data:`GRAMMAR`.
    """
    text = str(name)
    if match := _NATIVE.fullmatch(text):
        side = int(match[1]) if match[1] else None
        return View(text, "native", (side, side) if side else None)
    if match := _SQUASH.fullmatch(text):
        return View(text, "squash", (int(match[1]), int(match[2] or match[1])))
    if match := _CROP.fullmatch(text):
        side, crop = int(match[1]), int(match[2])
        if crop <= side:
            return View(text, "crop", (crop, crop), side)
    raise CertbenchError(
        f"unknown view '{name}'", where="view", remedy=f"a view is one of {GRAMMAR}"
    )
