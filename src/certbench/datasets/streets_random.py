"""Random generators of the street scenes: one per scene and purpose."""

from __future__ import annotations

import numpy as np

from certbench.errors import CertbenchError


def generator(seed: int, stream: int) -> np.random.Generator:
    """The random generator of one purpose of one scene.

    Raises:
        CertbenchError: The seed is not an integer >= 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise CertbenchError(
            f"seed is {seed!r}", where="streets", remedy="expected an integer >= 0"
        )
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((int(seed), stream))))
