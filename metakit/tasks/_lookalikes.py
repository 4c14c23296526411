"""Which characters are one class because they look alike."""

import numpy as np

from ._faces import SIDE, Faces
from ._scripts import PARTS, letters

# Cosine similarity of two slightly blurred pictures in the same face, each scaled to the same size: 1 when
# they are the same picture. From ALIKE on, characters are one class (Latin A, Greek Alpha, Cyrillic A; o and
# O). Between parts the bar is lower: from LEAK on, a character is too much like one of an earlier part to
# count as unseen (Armenian ho, Latin h with hook).
ALIKE, LEAK = 0.965, 0.93
_BLOCK = 3


def classes(faces: Faces, part: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """`(script, character, all characters of the class)` of a part, in the order of Unicode in each script.

    A class belongs to the first part that has a character of it, and there to its first character.
    """
    owners, pictures = [], []
    for index, owner in enumerate(PARTS[: PARTS.index(part) + 1]):
        for script, character in letters(owner):
            picture = faces.master(0, character)
            if picture is not None:
                owners.append((index, script, character))
                pictures.append(picture)
    alike = _similarity(np.stack(pictures))
    parts = np.array([index for index, _, _ in owners])
    last = PARTS.index(part)

    leader = np.arange(len(owners))
    for i, row in enumerate(alike):
        # Union-find; the first of a connected group leads it.
        for j in np.flatnonzero(row[:i] >= ALIKE):
            a, b = _root(leader, i), _root(leader, int(j))
            leader[max(a, b)] = min(a, b)
    roots = np.array([_root(leader, i) for i in range(len(owners))])
    seen = np.any(alike[:, parts < last] >= LEAK, axis=1)
    chosen = []
    for root in np.unique(roots):
        members = np.flatnonzero(roots == root)
        if (parts[members] == last).all() and not seen[members].any():
            _, script, character = owners[root]
            chosen.append((script, character, tuple(owners[i][2] for i in members)))
    return chosen


def _root(leader: np.ndarray, i: int) -> int:
    while leader[i] != i:
        i = int(leader[i])
    return i


def _similarity(pictures: np.ndarray) -> np.ndarray:
    small = SIDE // _BLOCK
    means = pictures.reshape(-1, small, _BLOCK, small, _BLOCK).mean(axis=(2, 4), dtype=np.float32)
    for axis in (1, 2):
        means = (np.roll(means, 1, axis) + 2 * means + np.roll(means, -1, axis)) / 4
    flat = means.reshape(len(means), -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat.T
