"""EntropyReading validates what it holds; delta_entropy against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from aegpo.entropy import EntropyReading, delta_entropy


def test_delta_entropy_takes_the_absolute_value_before_the_mean() -> None:
    policy = torch.tensor([[0.5, 0.7], [0.4, 0.4]])
    reference = torch.tensor([[0.6, 0.6], [0.1, 0.2]])
    # |-.1| + |.1| over 2 is .1 (a signed mean would be 0); (.3 + .2) / 2 is .25.
    torch.testing.assert_close(delta_entropy(policy, reference), torch.tensor([0.1, 0.25]))
    assert delta_entropy(policy, policy).tolist() == [0.0, 0.0]


def test_delta_entropy_refuses_other_prompts_or_steps() -> None:
    with pytest.raises(ValueError, match="same prompts and steps"):
        delta_entropy(torch.rand(2, 3), torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        delta_entropy(torch.rand(3), torch.rand(3))


def test_select_keeps_order_and_delta() -> None:
    reading = EntropyReading(torch.arange(6.0).reshape(3, 2), torch.tensor([0.1, 0.2, 0.3]))
    chosen = reading.select([2, 0, 2])
    assert chosen.curve.tolist() == [[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]
    torch.testing.assert_close(chosen.delta, torch.tensor([0.3, 0.1, 0.3]))
    assert (len(chosen), chosen.num_steps) == (3, 2)
    assert reading.select(torch.tensor([True, False, False])).curve.tolist() == [[0.0, 1.0]]
    assert len(reading.select([])) == 0
    assert EntropyReading(torch.rand(2, 2)).select([1]).delta is None


@pytest.mark.parametrize(
    ("curve", "delta", "message"),
    [
        (torch.rand(3), None, "must be floating"),
        (torch.ones(2, 3, dtype=torch.int64), None, "must be floating"),
        (torch.rand(2, 0), None, "no denoising step"),
        (torch.tensor([[0.1, float("nan")]]), None, "not finite"),
        (torch.rand(2, 3), torch.rand(3), "one row per prompt"),
        (torch.rand(2, 3), torch.rand(2, 1), "must be floating"),
        (torch.rand(2, 3), torch.tensor([0.1, -0.1]), "negative"),
    ],
)
def test_a_wrong_reading_is_refused(
    curve: torch.Tensor, delta: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EntropyReading(curve, delta)


def test_a_reading_is_kept_in_fp32() -> None:
    reading = EntropyReading(torch.rand(2, 3).double(), torch.rand(2).half())
    assert reading.curve.dtype == torch.float32
    assert reading.delta is not None and reading.delta.dtype == torch.float32
