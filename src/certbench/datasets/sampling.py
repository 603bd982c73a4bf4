"""Which items come first, and which are held out: seeded, stratified, nested.

The choices depend on ids, labels and the seed alone: on no file system, library or platform. Plain
Python, because planning reads it.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from certbench.errors import CertbenchError

_SPLIT = re.compile(r"[a-z0-9][a-z0-9_-]*")


def ordered(ids: Sequence[str], labels: Sequence[int | None], seed: int, use: str = "rank") -> list:
    """Positions of items in the seeded, stratified, nested order.

    Items of a class follow each other by a keyed hash of their ids; the classes take turns as
    :func:`turns` says.

    Args:
        ids: Unique names, n of them.
        labels: Class of each; None is a class of its own.
        seed: Any integer.
        use: Purpose; different purposes give independent orders.

    Returns:
        A permutation of ``0 .. n - 1``.
    """
    classes: dict[int | None, list[int]] = {}
    for i, label in enumerate(labels):
        classes.setdefault(label, []).append(i)
    keys = [_key(f"{use}/{seed}/item/{item_id}") for item_id in ids]
    names = sorted(classes, key=lambda label: (_key(f"{use}/{seed}/class/{label}"), str(label)))
    queues = [sorted(classes[name], key=lambda i: (keys[i], ids[i])) for name in names]
    taken = [0] * len(queues)
    sequence = []
    for which in turns([len(queue) for queue in queues]):
        sequence.append(queues[which][taken[which]])
        taken[which] += 1
    return sequence


def turns(counts: Sequence[int]) -> list[int]:
    """Whose turn it is, so that every prefix is proportional to within less than one.

    With N = sum(counts), class c has, among the first k, a number x with |x - k counts[c] / N| < 1.
    This is proportionate-fair scheduling (Baruah, Cohen, Plaxton, Varvel 1996): turn j of class c
    falls into slots floor(j N / n_c) to ceil((j + 1) N / n_c) - 1, and on one processor taking the
    earliest deadline first meets all windows.

    Args:
        counts: Items of each class.

    Returns:
        N entries; entry k is the class of rank k. Ties go to the class that is listed first.
    """
    total = sum(counts)
    upcoming = [(0, c, 0) for c, n in enumerate(counts) if n > 0]
    heapq.heapify(upcoming)
    ready: list[tuple[int, int, int]] = []
    sequence = []
    for slot in range(total):
        while upcoming and upcoming[0][0] <= slot:
            _, c, j = heapq.heappop(upcoming)
            heapq.heappush(ready, (-(-(j + 1) * total // counts[c]), c, j))
            if j + 1 < counts[c]:
                heapq.heappush(upcoming, ((j + 1) * total // counts[c], c, j + 1))
        sequence.append(heapq.heappop(ready)[1])
    return sequence


def check_holdout(holdout: Mapping[str, Any], rest: str, taken: Iterable[str]) -> None:
    """Refuse a ``holdout`` parameter (items of further splits, carved from split ``rest``).

    Raises:
        CertbenchError: A size that is no positive integer, a name that another split has, or a
            source split that does not exist.
    """
    taken = list(taken)
    if holdout and rest not in taken:
        raise CertbenchError(
            f"no split '{rest}' to carve from", where="holdout_from", remedy=f"splits: {taken}"
        )
    for name, size in holdout.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise CertbenchError(
                f"is {size!r}", where=f"holdout.{name}", remedy="a number of items, 1 or more"
            )
        if name in taken or not _SPLIT.fullmatch(str(name)):
            raise CertbenchError(
                f"'{name}' cannot name a holdout",
                where="holdout",
                remedy="small letters, digits, '-' and '_', and not the name of another split",
            )


def carve(
    ids: Sequence[str],
    labels: Sequence[int | None],
    sizes: Mapping[str, int],
    rest: str,
    seed: int,
    where: str,
) -> list[str]:
    """Divide a source split into disjoint, stratified splits.

    Each holdout is a stratified sample of what the ones before it left. So the first holdout does
    not change with the sizes of the others.

    Args:
        ids: Unique names of the items of the source split.
        labels: Class of each.
        sizes: Items of each holdout, in the order of carving.
        rest: The split that gets all others.
        seed: Any integer.
        where: Prefix for messages.

    Returns:
        The split of each item.

    Raises:
        CertbenchError: The holdouts ask for more items than there are.
    """
    if sum(sizes.values()) > len(ids):
        asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise CertbenchError(
            f"the holdouts ({asked}) need more than the {len(ids)} items there are",
            where=where,
            remedy="make the holdouts smaller",
        )
    splits = [rest] * len(ids)
    left = list(range(len(ids)))
    for name, size in sizes.items():
        if size == 0:
            continue
        sequence = ordered([ids[i] for i in left], [labels[i] for i in left], seed, f"carve-{name}")
        for position in sequence[:size]:
            splits[left[position]] = name
        left = [i for i in left if splits[i] == rest]
    return splits


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
