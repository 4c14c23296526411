"""One character drawn many times: small affine and elastic distortions."""

from functools import reduce

import numpy as np

from ._faces import INK, SIDE

# How far a drawing may stray; uniform within. Chosen so that a nearest neighbour on pixels is right a little
# more than every other time (5-way, 1-shot, unseen scripts; 91 % without any distortion), while a reader
# hardly notices.
ROTATION = 0.25  # radians, about 14 degrees
SHEAR = 0.2
SCALE = (0.8, 1.1)
ASPECT = 0.15  # log of width against height
SHIFT = 0.05  # of the image's side, 1.4 pixels of 28
ELASTIC = 0.045  # of the image's side at each control point
# Ink at scale 1 takes 20 of 28 pixels, as in MNIST.
FILL = 20 / 28
# Control points along each axis, and samples along each axis of a pixel.
_POINTS, _SAMPLES = 5, 3
# Numbers drawn for each drawing: rotation, shear, scale, aspect, two shifts and the elastic field.
_NUMBERS = 6 + 2 * _POINTS * _POINTS


def drawings(masters: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """`count` drawings `[count, size, size]`, uint8, of one character from its pictures in several faces.

    The faces take turns in an order of the character's own. The first drawings do not depend on `count`.
    """
    order = np.argsort(rng.random(len(masters)))
    numbers = 2 * rng.random((count, _NUMBERS)) - 1
    faces = order[np.arange(count) % len(masters)]
    rows, columns = _source(numbers, size)
    first = (faces * SIDE * SIDE).astype(np.int32)
    sampled = masters.reshape(-1)[first[:, None, None] + rows * SIDE + columns]
    # Sums of slices: several times faster here than a mean over two axes.
    across = reduce(np.add, [sampled[:, :, i::_SAMPLES].astype(np.uint16) for i in range(_SAMPLES)])
    total = reduce(np.add, [across[:, i::_SAMPLES] for i in range(_SAMPLES)])
    return ((total + _SAMPLES**2 // 2) // _SAMPLES**2).astype(np.uint8)


def _source(numbers: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where in the master each sample of each drawing comes from: rows and columns, `[count, n, n]`."""
    count, samples = len(numbers), size * _SAMPLES
    rotation, shear = ROTATION * numbers[:, 0], SHEAR * numbers[:, 1]
    low, high = SCALE
    scale = low + (high - low) * (numbers[:, 2] + 1) / 2
    stretch = np.exp(ASPECT * numbers[:, 3] / 2)
    shift = SHIFT * numbers[:, 4:6]
    # Forward, a point of the master goes through stretch, shear and rotation; sampling needs the inverse.
    c, s = np.cos(rotation), np.sin(rotation)
    turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
    slant = np.tile(np.eye(2), (count, 1, 1))
    slant[:, 0, 1] = shear
    grow = np.zeros((count, 2, 2))
    grow[:, 0, 0], grow[:, 1, 1] = scale * stretch, scale / stretch
    inverse = (INK / FILL * np.linalg.inv(turn @ slant @ grow)).astype(np.float32)

    # Image coordinates from -1/2 to 1/2, first x then y.
    line = (np.arange(samples) + 0.5) / samples - 0.5
    basis = _bumps(line).astype(np.float32)
    field = (ELASTIC * numbers[:, 6:]).astype(np.float32).reshape(count, 2, _POINTS, _POINTS)
    bend = basis @ field @ basis.T
    x = (line - shift[:, :1]).astype(np.float32)[:, None, :] - bend[:, 0]
    y = (line - shift[:, 1:]).astype(np.float32)[:, :, None] - bend[:, 1]
    place = [inverse[:, i, 0, None, None] * x + inverse[:, i, 1, None, None] * y + np.float32(SIDE / 2) for i in (0, 1)]
    # The margin of a master is empty, so whatever lies outside reads as background.
    columns, rows = (np.clip(p, 0, SIDE - 1).astype(np.int32) for p in place)
    return rows, columns


def _bumps(line: np.ndarray) -> np.ndarray:
    """`[n, points]`: cubic B-splines, which bend without kinks."""
    centres = np.linspace(-0.5, 0.5, _POINTS)
    t = np.abs(line[:, None] - centres) * (_POINTS - 1)
    near = 2 / 3 - t**2 + t**3 / 2
    far = np.clip(2 - t, 0, None) ** 3 / 6
    return np.where(t < 1, near, far)
