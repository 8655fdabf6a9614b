"""attention_entropy against an explicit float64 softmax, and the properties of an entropy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aegpo.entropy.attention import attention_entropy


def reference_entropy(
    query: Tensor, key: Tensor, scale: float, allowed: Tensor, bias: Tensor | None = None
) -> Tensor:
    """-Σ p ln p from the whole matrix in float64, nats; ``allowed`` broadcasts to (b, h, n, m)."""
    logits = scale * torch.einsum("bhnd,bhmd->bhnm", query.double(), key.double())
    if bias is not None:
        logits = logits + bias.double()
    logits = logits.masked_fill(~allowed, float("-inf"))
    return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)


def random_tokens(b: int, h: int, n: int, m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(b, h, n, d, generator=generator),
        2 * torch.randn(b, h, m, d, generator=generator),
    )


EVERYTHING = torch.ones(1, 1, 1, 1, dtype=torch.bool)
shapes = st.tuples(*(st.integers(1, size) for size in (3, 3, 9, 9, 5)))


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10**6), max_logits=st.integers(1, 400))
def test_equals_the_explicit_softmax_for_any_shape_and_chunk(
    shape: tuple[int, int, int, int, int], seed: int, max_logits: int
) -> None:
    query, key = random_tokens(*shape, seed=seed)
    expected = reference_entropy(query, key, 0.7, EVERYTHING)
    nats = attention_entropy(query, key, 0.7, normalize=False, max_logits=max_logits)
    torch.testing.assert_close(nats.double(), expected, rtol=0, atol=2e-6)
    share = attention_entropy(query, key, 0.7, max_logits=max_logits)
    assert share.dtype == torch.float32
    assert bool((share >= 0).all()) and bool((share <= 1).all())
    if shape[3] > 1:
        torch.testing.assert_close(share.double(), expected / math.log(shape[3]), rtol=0, atol=4e-6)


def test_the_default_scale_is_that_of_scaled_dot_product_attention() -> None:
    query, key = random_tokens(2, 2, 5, 7, 16)
    torch.testing.assert_close(
        attention_entropy(query, key), attention_entropy(query, key, 0.25), rtol=0, atol=0
    )


def test_worked_by_hand() -> None:
    # Logits ln 3 and 0 give p = 3/4, 1/4: H = ln 4 - (3/4) ln 3.
    key = torch.tensor([[[[math.log(3.0)], [0.0]]]])
    entropy = attention_entropy(torch.ones(1, 1, 1, 1), key, 1.0, normalize=False)
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-6)


@pytest.mark.parametrize("m", [2, 3, 77, 1000])
def test_uniform_attention_is_the_logarithm_of_the_keys(m: int) -> None:
    query, key = torch.zeros(1, 2, 3, 4), torch.randn(1, 2, m, 4)
    nats = attention_entropy(query, key, normalize=False)
    torch.testing.assert_close(nats, torch.full((1, 2, 3), math.log(m)), rtol=1e-6, atol=0)
    torch.testing.assert_close(attention_entropy(query, key), torch.ones(1, 2, 3))


def test_one_attended_key_has_no_entropy() -> None:
    query, key = random_tokens(1, 1, 4, 1, 3)
    assert attention_entropy(query, key).tolist() == [[[0.0] * 4]]
    sharp = attention_entropy(torch.full((1, 1, 1, 1), 1e4), torch.tensor([[[[1.0], [-1.0]]]]))
    assert sharp.item() == 0.0


def test_permuting_keys_changes_nothing_and_permuting_queries_permutes() -> None:
    query, key = random_tokens(2, 3, 6, 8, 4)
    entropy = attention_entropy(query, key)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    torch.testing.assert_close(attention_entropy(query, key[:, :, order]), entropy)
    rows = torch.tensor([5, 0, 3, 1, 2, 4])
    torch.testing.assert_close(attention_entropy(query[:, :, rows], key), entropy[..., rows])


def test_a_common_offset_of_the_keys_costs_little_precision() -> None:
    query, key = random_tokens(1, 2, 64, 64, 32)
    key = key + 20 * torch.randn(1, 2, 1, 32, generator=torch.Generator().manual_seed(1))
    expected = reference_entropy(query, key, 0.2, EVERYTHING)
    nats = attention_entropy(query, key, 0.2, normalize=False)
    torch.testing.assert_close(nats.double(), expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_upcast_first_also_under_autocast(dtype: torch.dtype) -> None:
    query, key = (tokens.to(dtype) for tokens in random_tokens(2, 2, 32, 32, 16))
    expected = reference_entropy(query, key, 1.0, EVERYTHING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats = attention_entropy(query, key, 1.0, normalize=False)
    torch.testing.assert_close(nats.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("lead", [(), (1, 1), (2, 1), (1, 3), (2, 3)])
def test_boolean_masks_of_every_broadcast_shape(lead: tuple[int, ...]) -> None:
    query, key = random_tokens(2, 3, 5, 6, 4)
    mask = torch.rand(*lead, 5, 6, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[..., 0] = True
    expected = reference_entropy(query, key, 0.5, mask)
    allowed = mask.expand(2, 3, 5, 6).sum(dim=-1).clamp(min=2)
    for max_logits in (1, 40, 10**6):
        share = attention_entropy(query, key, 0.5, mask=mask, max_logits=max_logits)
        torch.testing.assert_close(
            share.double(), expected / allowed.double().log(), rtol=0, atol=4e-6
        )
    rows = torch.tensor([4, 1])
    picked = attention_entropy(query, key, 0.5, mask=mask, normalize=False, rows=rows)
    torch.testing.assert_close(picked.double(), expected[..., rows], rtol=0, atol=2e-6)


@pytest.mark.parametrize("low", [float("-inf"), -10000.0, torch.finfo(torch.float32).min])
def test_additive_masks_of_every_convention_and_biases(low: float) -> None:
    query, key = random_tokens(2, 2, 4, 6, 4)
    bias = torch.randn(2, 1, 1, 6, generator=torch.Generator().manual_seed(3))
    allowed = torch.tensor([True, True, False, True, False, True]).expand(2, 1, 1, 6)
    share = attention_entropy(query, key, 0.5, mask=bias.where(allowed, low))
    expected = reference_entropy(query, key, 0.5, allowed, bias) / math.log(4)
    torch.testing.assert_close(share.double(), expected, rtol=0, atol=4e-6)


def test_a_bf16_additive_mask_still_masks() -> None:
    query, key = torch.zeros(1, 1, 2, 4), torch.randn(1, 1, 4, 4)
    mask = torch.tensor([0.0, 0.0, -10000.0, -10000.0], dtype=torch.bfloat16)
    assert attention_entropy(query, key, mask=mask).tolist() == [[[1.0, 1.0]]]


def test_causal_rows_know_their_own_position() -> None:
    query, key = random_tokens(1, 2, 6, 6, 4)
    triangle = torch.ones(6, 6, dtype=torch.bool).tril()
    expected = reference_entropy(query, key, 0.5, triangle)
    rows = torch.tensor([[5, 0, 2], [1, 4, 3]])
    nats = attention_entropy(query, key, 0.5, causal=True, normalize=False, rows=rows)
    torch.testing.assert_close(
        nats.double(), expected.gather(2, rows.expand(1, 2, 3)), rtol=0, atol=2e-6
    )


def test_key_mask_equals_dropping_the_keys() -> None:
    query, key = random_tokens(2, 2, 4, 6, 4)
    kept = torch.tensor([[True, False, True, True, False, False], [True] * 6])
    share = attention_entropy(query, key, key_mask=kept, max_logits=1)
    torch.testing.assert_close(share[:1], attention_entropy(query[:1], key[:1, :, kept[0]]))
    torch.testing.assert_close(share[1:], attention_entropy(query[1:], key[1:]))


def test_a_row_that_may_attend_nothing_is_nan_alone() -> None:
    query, key = random_tokens(1, 1, 3, 4, 2)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    assert attention_entropy(query, key, mask=mask).isnan().tolist() == [[[False, True, False]]]


def test_grouped_queries_equal_repeated_keys() -> None:
    query, key = random_tokens(2, 4, 5, 6, 3)
    grouped = attention_entropy(query, key[:, :2], max_logits=7)
    repeated = attention_entropy(query, key[:, :2].repeat_interleave(2, dim=1))
    torch.testing.assert_close(grouped, repeated)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, size) for size in (2, 3, 8, 6, 4))),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_chosen_rows_are_those_of_the_whole(
    shape: tuple[int, int, int, int, int], seed: int, data: st.DataObject
) -> None:
    b, h, n, _, _ = shape
    query, key = random_tokens(*shape, seed=seed)
    count = data.draw(st.integers(1, 5))
    size = data.draw(st.sampled_from([(count,), (h, count), (b, h, count)]))
    rows = torch.randint(n, size, generator=torch.Generator().manual_seed(seed))
    whole = attention_entropy(query, key)
    torch.testing.assert_close(
        attention_entropy(query, key, rows=rows, max_logits=5),
        whole.gather(2, rows.expand(b, h, count)),
    )


def test_no_block_exceeds_max_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = random_tokens(4, 2, 64, 64, 8)
    sizes = []
    multiply = Tensor.__matmul__

    def watched(left: Tensor, right: Tensor) -> Tensor:
        product = multiply(left, right)
        sizes.append(max(product.numel(), right.numel()))
        return product

    monkeypatch.setattr(Tensor, "__matmul__", watched)
    blocked = attention_entropy(query, key, max_logits=2048)
    assert len(sizes) > 1 and max(sizes) <= 2048  # all of it would be 4 · 2 · 64 · 64 = 32,768
    sizes.clear()
    torch.testing.assert_close(blocked, attention_entropy(query, key))
    assert sizes == [32768]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.rand(2, 5, 4)}, "four dimensions"),
        ({"key": torch.rand(2, 2, 6, 3)}, "share batch and head"),
        ({"key": torch.rand(1, 3, 6, 4)}, "share batch and head"),
        ({"rows": torch.tensor([0.0])}, "rows is"),
        ({"key_mask": torch.ones(2, 5, dtype=torch.bool)}, "key_mask is"),
        ({"key_mask": torch.ones(2, 6)}, "key_mask is"),
        ({"mask": torch.ones(4, 6, dtype=torch.bool)}, "4 query rows"),
        ({"mask": torch.ones(7, dtype=torch.bool)}, "does not fit"),
        ({"max_logits": 0}, "max_logits"),
    ],
)
def test_wrong_shapes_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {"query": torch.rand(2, 3, 5, 4), "key": torch.rand(2, 3, 6, 4)} | change
    with pytest.raises(ValueError, match=message):
        attention_entropy(**arguments)
