"""A draw depends on its name and on nothing else, and names do not share noise."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from aegpo.noise import KeyedNoise

GOLDEN = [0.6025514, 0.633684, -2.0225189]
GOLDEN_ORDER = [0, 2, 5, 3, 4, 1]

int64 = st.integers(-(2**63), 2**63 - 1)
keys = st.lists(st.tuples(int64, int64, int64), min_size=1, max_size=6, unique=True)


def tensor(rows: list[tuple[int, ...]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


@settings(max_examples=40, deadline=None)
@given(seed=int64, iteration=st.integers(0, 2**40), rows=keys, data=st.data())
def test_a_row_depends_on_its_key_alone(seed, iteration, rows, data):
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    noise = KeyedNoise(seed, iteration)
    for draw in (noise.normal, noise.uniform):
        whole = draw("step", tensor(rows), (2, 3))
        assert whole.shape == (len(rows), 2, 3) and whole.dtype == torch.float32
        shuffled = draw("step", tensor([rows[row] for row in order]), (2, 3))
        assert torch.equal(shuffled, whole[list(order)])
        if 0 < cut < len(rows):
            chunks = [draw("step", tensor(part), (2, 3)) for part in (rows[:cut], rows[cut:])]
            assert torch.equal(torch.cat(chunks), whole)
        again = KeyedNoise(seed).at(iteration)
        assert torch.equal(getattr(again, draw.__name__)("step", tensor(rows), (2, 3)), whole)


@settings(max_examples=40, deadline=None)
@given(seed=int64, row=st.tuples(int64, int64), other=st.tuples(int64, int64))
def test_every_part_of_a_name_matters(seed, row, other):
    noise = KeyedNoise(seed, 3)
    draws = [
        noise.normal("start", tensor([row]), (8,)),
        noise.normal("step", tensor([row]), (8,)),
        noise.normal("starts", tensor([row]), (8,)),
        noise.normal("stare", tensor([row]), (8,)),
        noise.normal("start", tensor([(*row, 0)]), (8,)),
        noise.normal("start", tensor([row[:1]]), (8,)),
        noise.at(4).normal("start", tensor([row]), (8,)),
        noise.fixed().normal("start", tensor([row]), (8,)),
        KeyedNoise(seed ^ 1, 3).normal("start", tensor([row]), (8,)),
    ]
    if other != row:
        draws.append(noise.normal("start", tensor([other]), (8,)))
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)


def test_no_duplicates_over_many_keys():
    """40,000 keys of the kind that a run uses; a 32-bit seed would already collide here."""
    prompt, node, step = torch.meshgrid(
        torch.arange(100), torch.arange(20), torch.arange(20), indexing="ij"
    )
    rows = torch.stack([prompt, node, step], dim=-1).reshape(-1, 3)
    drawn = KeyedNoise(0).normal("step", rows, (4,))
    assert len(torch.unique(drawn, dim=0)) == len(rows) == 40_000
    # One row per key, and neighbors in the key are strangers in the noise.
    assert abs(float(drawn.mean())) < 4 / 160_000**0.5
    assert abs(float(drawn.var()) - 1) < 4 * (2 / 160_000) ** 0.5
    cube = drawn.reshape(100, 20, 20, 4)
    for dim in range(3):
        first, second = (
            cube.narrow(dim, 0, cube.shape[dim] - 1),
            cube.narrow(dim, 1, cube.shape[dim] - 1),
        )
        assert abs(float((first * second).mean())) < 4 / first.numel() ** 0.5


def test_large_keys_stay_apart():
    """Keys that agree in their low 32 bits, where a torch generator's seeds would coincide."""
    rows = tensor([(1,), (1 + 2**32,), (1 - 2**63,), (1 + 2**53,)])
    drawn = KeyedNoise(0).normal("step", rows, (3,))
    assert len(torch.unique(drawn, dim=0)) == 4


def test_uniform_lies_in_the_unit_interval():
    drawn = KeyedNoise(5).uniform("draw", torch.arange(2000)[:, None], (5,))
    assert float(drawn.min()) >= 0 and float(drawn.max()) < 1
    assert float(drawn.mean()) == pytest.approx(0.5, abs=4 / (12 * 10_000) ** 0.5)


def test_values_do_not_change_between_versions():
    """A run must resume with the same noise; these were drawn once and written down."""
    drawn = KeyedNoise(42, 7).normal("start", tensor([(3, 1, 0)]), (3,))
    assert drawn.flatten().tolist() == pytest.approx(GOLDEN, abs=1e-6)
    assert KeyedNoise(42).permutation("order", (0,), 6).tolist() == GOLDEN_ORDER


@given(n=st.integers(0, 50), key=st.lists(int64, max_size=3))
def test_permutation(n, key):
    order = KeyedNoise(1).permutation("order", key, n)
    assert order.dtype == torch.int64 and sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, KeyedNoise(1).permutation("order", key, n))
    if n > 12:  # 12! orders: no coincidence is expected
        assert not torch.equal(order, KeyedNoise(1).permutation("order", [*key, 0], n))


def test_fixed_noise_forgets_the_iteration():
    rows = tensor([(1, 2, 3)])
    one, two = KeyedNoise(1, 5).fixed(), KeyedNoise(1, 9).fixed()
    assert torch.equal(one.normal("start", rows, (4,)), two.normal("start", rows, (4,)))
    assert torch.equal(one.fixed().normal("start", rows, (4,)), one.normal("start", rows, (4,)))


def test_global_generators_are_not_touched():
    before = torch.random.get_rng_state()
    KeyedNoise(0).normal("start", tensor([(0,)]), (4,))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bad_arguments():
    with pytest.raises(ValueError, match="64-bit"):
        KeyedNoise(2**63)
    with pytest.raises(ValueError, match="iteration"):
        KeyedNoise(0, -1)
    with pytest.raises(ValueError, match="iteration"):
        KeyedNoise(0).at(-1)
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match=r"\(n, k\)"):
            KeyedNoise(0).normal("start", bad, (1,))
