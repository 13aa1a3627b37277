"""Waiting, groups and admission, without a model."""

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batching import Batcher, Size

SMALL, LARGE, WIDE = (64, 64), (128, 128), (96, 64)


@dataclass(eq=False)
class Image:
    """A sample that only knows how many steps are left."""

    key: int
    size: Size = SMALL
    rows: int = 2
    steps: int = 1


def keys(images: list[Image]) -> list[int]:
    return [image.key for image in images]


def filled(caps: dict[Size, int], *images: Image) -> Batcher[Image]:
    batcher: Batcher[Image] = Batcher(caps.__getitem__)
    for image in images:
        batcher.add(image)
    return batcher


def test_one_size_does_not_hold_back_another() -> None:
    batcher = filled(
        {SMALL: 2, LARGE: 2}, Image(1), Image(2), Image(3, LARGE), Image(4, SMALL, rows=1)
    )
    assert keys(batcher.admit()) == [1, 3]
    batcher.remove(1)
    # The fourth would fit beside nobody else, but the second came first.
    assert keys(batcher.admit()) == [2]
    assert (batcher.rows, batcher.waiting) == (4, 1)


def test_an_image_that_takes_more_rows_than_there_may_be_gets_in_alone() -> None:
    batcher = filled({SMALL: 1}, Image(1), Image(2, rows=1))
    assert keys(batcher.admit()) == [1]
    assert batcher.admit() == []
    batcher.remove(1)
    assert keys(batcher.admit()) == [2]


def test_the_youngest_go_back_and_come_again_in_order() -> None:
    batcher = filled({SMALL: 8}, *(Image(key) for key in range(5)))
    assert keys(batcher.admit()) == [0, 1, 2, 3]
    assert keys(batcher.shrink(SMALL, 4)) == [3, 2]
    assert keys(batcher.members(SMALL)) == [0, 1]
    assert keys(batcher.heads(9)) == [2, 3, 4]
    assert keys(batcher.shrink(SMALL, 1)) == [1]
    assert keys(batcher.members(SMALL)) == [0]
    assert keys(batcher.admit()) == [1, 2, 3]


def test_an_image_in_a_group_can_wait_again_and_one_that_waits_cannot() -> None:
    batcher = filled({SMALL: 2}, Image(1), Image(2))
    batcher.admit()
    batcher.put_back(1)
    assert batcher.sizes == []
    assert batcher.choose(lambda size, rows: 1.0) is None
    for unknown in (1, 3):
        with pytest.raises(KeyError):
            batcher.put_back(unknown)
    assert keys(batcher.admit()) == [1]
    assert 1 in batcher and 2 in batcher and 3 not in batcher


def test_there_is_room_until_somebody_would_have_to_wait() -> None:
    batcher = filled({SMALL: 4, LARGE: 2})
    room = []
    for key, size in enumerate([SMALL, LARGE, SMALL, SMALL]):
        room.append(batcher.has_room)
        batcher.add(Image(key, size))
    # Full batches of both sizes are no more room for either.
    assert room == [True, True, True, False]
    batcher.admit()
    assert not batcher.has_room
    batcher.remove(1)
    batcher.remove(3)
    assert not batcher.has_room
    batcher.remove(2)
    assert batcher.has_room


images = st.builds(
    Image,
    key=st.integers(0, 999),
    size=st.sampled_from([SMALL, LARGE, WIDE]),
    rows=st.integers(1, 2),
    steps=st.integers(1, 6),
)


@given(
    st.lists(images, min_size=1, max_size=40, unique_by=lambda image: image.key),
    st.fixed_dictionaries({size: st.integers(1, 9) for size in (SMALL, LARGE, WIDE)}),
    st.integers(),
)
def test_everybody_is_done_in_the_order_of_arrival_and_no_size_starves(
    arriving: list[Image], caps: dict[Size, int], seed: int
) -> None:
    """The whole policy at once, with memory that runs out now and then."""
    chance = Random(seed)
    cost = {SMALL: 1.0, WIDE: 1.5, LARGE: 4.0}
    batcher: Batcher[Image] = Batcher(caps.__getitem__)
    left = list(arriving)
    order: list[tuple[Size, int]] = []
    since = dict.fromkeys(cost, 0.0)
    for _ in range(10_000):
        if left:
            batcher.add(left.pop(0))
        order += [(image.size, image.key) for image in batcher.admit()]
        for size in cost:
            members = batcher.members(size)
            taken = batcher.rows_of(size)
            assert taken == sum(image.rows for image in members)
            assert taken <= caps[size] or len(members) == 1
        chosen = batcher.choose(lambda size, rows: cost[size] * rows)
        if chosen is None:
            break
        spent = cost[chosen] * batcher.rows_of(chosen)
        for size in cost:
            since[size] = since[size] + spent if batcher.members(size) else 0.0
        since[chosen] = 0.0
        assert max(since.values()) <= 6 * max(cost[s] * max(caps[s], 2) for s in cost)
        if chance.random() < 0.1:
            batcher.shrink(chosen, max(1, batcher.rows_of(chosen) // 2))
            continue
        for image in batcher.members(chosen):
            image.steps -= 1
            if not image.steps:
                batcher.remove(image.key)
    assert not left and not batcher.waiting and not batcher.rows
    for size in cost:
        first_admissions = list(dict.fromkeys(key for of, key in order if of == size))
        assert first_admissions == [image.key for image in arriving if image.size == size]
