"""The groups of the word problem: their laws, their numbering, and their running products."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_dir.finite_groups import GROUP_NAMES, Group, group

ORDERS = {"A5": 60, "S5": 120, "Z60": 60, "A4xZ5": 60}
any_group = pytest.mark.parametrize(
    "word_group", [group(name) for name in GROUP_NAMES], ids=GROUP_NAMES
)


def compose(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that applies b, then a: an independent statement of the product."""
    return tuple(a[b[point]] for point in range(len(a)))


def as_tuples(word_group: Group) -> list[tuple[int, ...]]:
    return [tuple(row) for row in word_group.elements.tolist()]


def element_order(word_group: Group, element: int) -> int:
    power, exponent = element, 1
    while power != word_group.identity:
        power, exponent = int(word_group.products[power, element]), exponent + 1
    return exponent


def commutators(word_group: Group) -> set[int]:
    """Every a·b·(b·a)^-1."""
    table = word_group.products
    inverse = np.argmax(table == word_group.identity, axis=1)
    return set(table[table, inverse[table.T]].ravel().tolist())


def test_every_group_of_the_benchmark_has_its_order():
    assert {name: group(name).order for name in GROUP_NAMES} == ORDERS


@any_group
def test_elements_are_different_permutations_in_lexicographic_order(word_group):
    elements = as_tuples(word_group)
    points = list(range(word_group.elements.shape[1]))
    assert all(sorted(element) == points for element in elements)
    assert elements == sorted(set(elements))


@any_group
def test_the_table_is_composition_of_permutations(word_group):
    elements = as_tuples(word_group)
    for a, row in zip(elements, word_group.products.tolist(), strict=True):
        assert [elements[product] for product in row] == [compose(a, b) for b in elements]


@any_group
def test_products_are_associative(word_group):
    table = word_group.products
    left_first = table[table]  # [a, b, c]: (a·b)·c
    right_first = table[:, table]  # [a, b, c]: a·(b·c)
    assert np.array_equal(left_first, right_first)


@any_group
def test_the_identity_is_element_zero_and_neutral_on_both_sides(word_group):
    everything = np.arange(word_group.order)
    assert word_group.identity == 0
    assert np.array_equal(word_group.products[0], everything)
    assert np.array_equal(word_group.products[:, 0], everything)


@any_group
def test_every_element_has_one_inverse_that_works_on_both_sides(word_group):
    is_identity = word_group.products == word_group.identity
    assert (is_identity.sum(axis=0) == 1).all() and (is_identity.sum(axis=1) == 1).all()
    assert np.array_equal(is_identity, is_identity.T)


@any_group
def test_arrays_are_bytes_and_cannot_be_changed(word_group):
    for array in (word_group.elements, word_group.products):
        assert array.dtype == np.uint8
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@any_group
def test_elements_are_different_and_in_lexicographic_order(word_group):
    assert as_tuples(word_group) == sorted(set(as_tuples(word_group)))


def test_s5_is_every_permutation_of_five_things():
    assert as_tuples(group("S5")) == list(permutations(range(5)))


def test_a5_has_1_15_20_24_elements_of_order_1_2_3_5():
    orders = [element_order(group("A5"), element) for element in range(60)]
    assert {order: orders.count(order) for order in set(orders)} == {1: 1, 2: 15, 3: 20, 5: 24}


def test_commutators_tell_the_groups_apart():
    """A5 is perfect, so not solvable; S5's commutators are A5; A4's are the four-group."""
    sizes = {name: len(commutators(group(name))) for name in GROUP_NAMES}
    assert sizes == {"A5": 60, "S5": 60, "Z60": 1, "A4xZ5": 4}


def test_z60_is_addition_modulo_60_and_1_generates_it():
    numbers = np.arange(60)
    assert np.array_equal(group("Z60").products, (numbers[:, None] + numbers) % 60)
    assert element_order(group("Z60"), 1) == 60
    assert group("Z60").elements[17, 0] == 17


def test_a4xz5_multiplies_its_two_components_separately():
    word_group = group("A4xZ5")
    a4_part, z5_part = np.divmod(np.arange(60), 5)
    assert as_tuples(word_group)[7] == (0, 2, 3, 1, 6, 7, 8, 4, 5)
    assert np.array_equal(word_group.products % 5, (z5_part[:, None] + z5_part) % 5)
    a4_table = word_group.products[::5, ::5] // 5
    assert np.array_equal(word_group.products // 5, a4_table[a4_part[:, None], a4_part])


@given(name=st.sampled_from(GROUP_NAMES), data=st.data())
@settings(deadline=None, max_examples=50)
def test_running_products_compose_permutations_from_the_left(name, data):
    word_group = group(name)
    elements = as_tuples(word_group)
    sequence = data.draw(st.lists(st.integers(0, word_group.order - 1), min_size=1, max_size=12))
    product, expected = tuple(range(len(elements[0]))), []
    for number in sequence:
        product = compose(product, elements[number])
        expected.append(elements.index(product))

    targets = word_group.running_products(np.array([sequence], dtype=np.uint8))
    assert targets.dtype == np.uint8
    assert targets.tolist() == [expected]


def test_a_multiplication_sign_may_stand_for_x():
    assert group("A4\N{MULTIPLICATION SIGN}Z5").name == group("A4_x_Z5").name == "A4xZ5"


def test_the_same_group_is_built_once():
    assert group("A5") is group("A5")


@pytest.mark.parametrize(("wrong", "nearest"), [("a5", "A5"), ("A4*Z5", "A4xZ5"), ("Z6O", "Z60")])
def test_an_unknown_name_is_refused_with_the_choices_and_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match="A5, S5, Z60, A4xZ5") as caught:
        group(wrong)
    assert repr(wrong) in str(caught.value)
    assert f"did you mean {nearest}?" in str(caught.value)


def test_a_name_like_none_of_them_gets_no_suggestion():
    with pytest.raises(ValueError, match="unknown group") as caught:
        group("quaternions")
    assert "did you mean" not in str(caught.value)
