"""The smallest faithful real representations of the groups: matrices that multiply as they do."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from jaxtyping import Float

from data_dir.finite_groups import Group, group


def representation(name: str) -> list[Float[np.ndarray, "order k k"]]:
    """Orthogonal float64 matrices of each element, block by block; together they are faithful.

    A5: the rotations of the icosahedron (3). S5: permutations of the simplex's corners (4). Z60: a
    rotation by 6 degrees (2). A4xZ5: the rotations of the tetrahedron and one by 72 degrees (3, 2).
    Raises: ValueError, as `group`.
    """
    symbols = group(name)
    match symbols.name:
        case "A5":
            return [_icosahedral(symbols)]
        case "S5":
            return [_simplex(symbols.elements)]
        case "Z60":
            return [_rotations(symbols.elements[:, 0], 60)]
        case "A4xZ5":  # the right group's points come after the left one's four
            return [_simplex(symbols.elements[:, :4]), _rotations(symbols.elements[:, 4] - 4, 5)]
    raise ValueError(f"no representation of {symbols.name} is given")


def _rotations(turns: np.ndarray, order: int) -> Float[np.ndarray, "elements 2 2"]:
    angles = 2 * np.pi * turns / order
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)


def _simplex(elements: np.ndarray) -> Float[np.ndarray, "elements k k"]:
    """Permutation matrices where they act on more than a sum: on what is orthogonal to ones."""
    points = elements.shape[1]
    matrices = np.swapaxes(np.eye(points)[elements], 1, 2)  # column p has its 1 in row g(p)
    basis = np.linalg.svd(np.ones((1, points)))[2][1:]
    return basis @ matrices @ basis.T


def _icosahedral(symbols: Group) -> Float[np.ndarray, "60 3 3"]:
    """A5 is all that a² = b³ = (ab)⁵ = 1 give: a rotation for each, whose axes make ab's right.

    Half-turn about z and third of a turn about an axis at angle θ to it multiply to a rotation by φ
    with cos(φ / 2) = sin(π / 3) cos θ; here φ is 72 degrees.
    """
    cos = math.cos(math.pi / 5) / math.sin(math.pi / 3)
    axis = np.array([math.sqrt(1 - cos**2), 0.0, cos])
    a, b = _generators(symbols)
    steps = {
        a: _rotation(np.array([0.0, 0.0, 1.0]), math.pi),
        b: _rotation(axis, 2 * math.pi / 3),
    }
    found, waiting = {symbols.identity: np.eye(3)}, [symbols.identity]
    while waiting:
        element = waiting.pop(0)
        for step, matrix in steps.items():
            reached = int(symbols.products[element, step])
            if reached not in found:
                found[reached] = found[element] @ matrix
                waiting.append(reached)
    return np.stack([found[element] for element in range(symbols.order)])


def _generators(symbols: Group) -> tuple[int, int]:
    """The first a of order 2 and b of order 3 whose product has order 5."""
    orders = np.array([_order(symbols, element) for element in range(symbols.order)])
    pairs = product(np.flatnonzero(orders == 2), np.flatnonzero(orders == 3))
    return next((int(a), int(b)) for a, b in pairs if orders[symbols.products[a, b]] == 5)


def _order(symbols: Group, element: int) -> int:
    power, order = element, 1
    while power != symbols.identity:
        power, order = symbols.products[power, element], order + 1
    return order


def _rotation(axis: Float[np.ndarray, 3], angle: float) -> Float[np.ndarray, "3 3"]:
    """Rodrigues' rotation about a unit vector."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
