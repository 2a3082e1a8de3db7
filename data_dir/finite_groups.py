"""The finite groups whose word problem the sequence models are asked to solve.

A group is held as a table: elements are numbered 0..order-1 and every product is looked up, so
the running products of a million sequences take one lookup per position.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

Permutations = list[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Group:
    """A finite group of permutations, with its product table. Built by `group`.

    Attributes:
        name: the group's name, as files and configs write it.
        elements: uint8 (order, points); row i is element i, and sends point p to elements[i, p].
            Rows are in lexicographic order.
        products: uint8 (order, order); products[a, b] is a·b, which applies b first.
        identity: the number of the identity element.
    """

    name: str
    elements: np.ndarray
    products: np.ndarray
    identity: int

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.elements)

    def running_products(self, sequences: np.ndarray) -> np.ndarray:
        """Multiply along each sequence from the left: x1, x1·x2, x1·x2·x3, ...

        Takes integers (rows, L) in 0..order-1; returns uint8 (rows, L). This is the target of the
        word problem (Merrill, Petty and Sabharwal, arXiv 2404.08819).
        """
        targets = np.empty(sequences.shape, dtype=np.uint8)
        product = np.full(len(sequences), self.identity, dtype=np.uint8)
        for position in range(sequences.shape[1]):
            product = self.products[product, sequences[:, position]]
            targets[:, position] = product
        return targets


def _is_even(permutation: tuple[int, ...]) -> bool:
    pairs = [(i, j) for j in range(len(permutation)) for i in range(j)]
    return sum(permutation[i] > permutation[j] for i, j in pairs) % 2 == 0


def _alternating(points: int) -> Permutations:
    """The even permutations of 0..points-1, in lexicographic order."""
    return list(filter(_is_even, permutations(range(points))))


def _cyclic(order: int) -> Permutations:
    """Addition modulo order: element k shifts the points 0..order-1 by k."""
    return [tuple((k + p) % order for p in range(order)) for k in range(order)]


def _direct_product(left: Permutations, right: Permutations) -> Permutations:
    """Pairs in lexicographic order, acting on the left group's points, then on the right's."""
    return [p + tuple(len(p) + point for point in q) for p in left for q in right]


# A new group is one line here, up to 256 elements (one byte each).
_CONSTRUCTORS: dict[str, Callable[[], Permutations]] = {
    "A5": lambda: _alternating(5),
    "S5": lambda: list(permutations(range(5))),
    "Z60": lambda: _cyclic(60),
    "A4xZ5": lambda: _direct_product(_alternating(4), _cyclic(5)),
}
GROUP_NAMES = tuple(_CONSTRUCTORS)


@cache
def group(name: str) -> Group:
    """Build the group of this name, one of GROUP_NAMES; 'x' may be `_x_` or a multiplication sign.

    Raises: ValueError, where the name is not known.
    """
    plain_name = name.replace("\N{MULTIPLICATION SIGN}", "x").replace("_x_", "x")
    if plain_name not in _CONSTRUCTORS:
        nearest = difflib.get_close_matches(plain_name.upper(), GROUP_NAMES, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"unknown group {name!r}: choose one of {', '.join(GROUP_NAMES)}{hint}")

    permutation_of = _CONSTRUCTORS[plain_name]()
    number_of = {permutation: i for i, permutation in enumerate(permutation_of)}
    products = [
        [number_of[tuple(a[point] for point in b)] for b in permutation_of] for a in permutation_of
    ]
    identity = number_of[tuple(range(len(permutation_of[0])))]
    elements = np.array(permutation_of, dtype=np.uint8)
    table = np.array(products, dtype=np.uint8)
    for array in (elements, table):  # the group is cached and shared: nobody may change it
        array.setflags(write=False)
    return Group(plain_name, elements, table, identity)
