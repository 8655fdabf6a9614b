"""What a resolution means, which the model takes, and which bucket an iteration draws in."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aegpo.image_size import Size, accepted_size, bucket_of, distinct_sizes
from aegpo.noise import KeyedNoise


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (512, [(512, 512)]),
        ((768, 512), [(768, 512)]),
        ([768, 512], [(768, 512)]),
        ([(512, 512), (768, 512)], [(512, 512), (768, 512)]),
        ([[512, 512]], [(512, 512)]),
    ],
)
def test_a_number_is_a_square_a_pair_height_and_width_a_list_of_pairs_buckets(
    given: Any, sizes: list[tuple[int, int]]
) -> None:
    assert distinct_sizes(given) == sizes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([512], r"resolution=\[512\]; give one number of pixels, or a pair \[height, width\]"),
        ((512, 512, 1), "a pair"),
        ([], "no bucket"),
        ([(512, 512), (512, 512)], r"bucket \[512, 512\] twice"),
        ([512.0, 512.0], "resolution=512.0; give one number"),
        ([(512, True)], "a pair"),
    ],
)
def test_what_is_none_of_these_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distinct_sizes(given)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        (500, "resolution=500; .* 16 pixels up to 1000; the nearest sizes are 496 and 512"),
        (
            (750, 512),
            r"resolution=\[750, 512\] \(height, width\); .*sizes are \[736, 512\] and \[752, 512\]",
        ),
        ((512, 750), r"sizes are \[512, 736\] and \[512, 752\]"),
        (3, "nearest is 16"),
        (0, "nearest is 16"),
        (-16, "nearest is 16"),
        (1000, "nearest is 992"),  # the last multiple below the limit
        ((4096, 512), r"nearest is \[992, 512\]"),
    ],
)
def test_a_size_that_the_model_does_not_take_names_the_nearest(given: Any, nearest: str) -> None:
    with pytest.raises(ValueError, match=nearest) as refusal:
        accepted_size(given, 16, 1000)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("given", [16, 992, (16, 992), (992, 512)])
def test_a_size_that_it_takes_is_taken(given: Any) -> None:
    assert accepted_size(given, 16, 1000) == Size.of(given)
    assert accepted_size(given, 16, None) == Size.of(given)


def test_every_bucket_comes_once_in_as_many_iterations_in_an_order_of_the_seed() -> None:
    buckets = [Size(8, 8), Size(16, 8), Size(8, 16)]
    orders = set()
    for seed in range(8):
        noise = KeyedNoise(seed)
        drawn = [bucket_of(buckets, noise, iteration) for iteration in range(30)]
        for turn in range(0, 30, 3):
            assert Counter(drawn[turn : turn + 3]) == Counter(buckets)
        # By the iteration's number alone, whatever the noise was used for before.
        assert drawn[17] == bucket_of(buckets, KeyedNoise(seed).at(17), 17)
        orders |= {tuple(drawn)}
        assert len({tuple(drawn[turn : turn + 3]) for turn in range(0, 30, 3)}) > 1
    assert len(orders) == 8
    assert bucket_of([], KeyedNoise(0), 5) is None
