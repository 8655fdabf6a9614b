"""Exact entropy of softmax attention, without ever holding the query-by-key matrix."""

from __future__ import annotations

import torch
from torch import Tensor

# Additive masks write "cannot be attended" as -inf or as a large negative number; diffusers uses
# -10000, which bfloat16 rounds to -9984. No positional bias comes near.
_MASKED_BELOW = -5000.0


def attention_entropy(  # noqa: PLR0913  # masks and memory, each named in the call
    query: Tensor,
    key: Tensor,
    scale: float | None = None,
    *,
    mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    causal: bool = False,
    normalize: bool = True,
    rows: Tensor | None = None,
    max_logits: int = 2**25,
) -> Tensor:
    """Row entropies of softmax(scale · q kᵀ), H_i = -Σ_j p_ij ln p_ij (AEGPO, arXiv 2602.06825).

    Works in fp32 on blocks of rows with the maximum m of each row taken out,
    H = ln z - Σ_j e_j (s_j - m) / z with e_j = exp(s_j - m), z = Σ_j e_j: half-precision inputs
    are upcast *before* the product, because a bf16 product is off by up to 1 nat.

    Keys left out by a mask have p = 0 and the rest is renormalized: with a ``key_mask`` the result
    is the entropy of the attention *given* that it falls on those keys. A row that may attend one
    key has entropy 0, normalized or not; a row that may attend none has no entropy, NaN.

    Args:
        query: Queries, shape (b, h, n, d).
        key: Keys, shape (b, h, m, d), or (b, g, m, d) with h a multiple of g (grouped queries).
        scale: Factor on the logits; None for 1/√d.
        mask: The attention's own mask, broadcastable to (b, h, n, m): bool, True = may be
            attended, or floating, added to the logits (values below -5000 mean masked).
        key_mask: Keys that count, shape (b or 1, m) bool.
        causal: Query i may attend keys 0..i only.
        normalize: Divide by ln(keys the row may attend), so that uniform attention gives 1;
            otherwise nats.
        rows: Query rows wanted, int64 of shape (r,), (h, r) or (b, h, r); None for all n.
        max_logits: Elements of the largest fp32 block held at once; bounds memory, not the result.

    Returns:
        Entropies without gradient, shape (b, h, r), fp32; in [0, 1] if normalized, else in
        [0, ln m] nats.

    Raises:
        ValueError: If shapes do not fit together or ``max_logits`` < 1.
    """
    rows = _checked_rows(query, key, key_mask, rows, max_logits)
    b, h, n, d = query.shape
    m = key.shape[2]
    scale = d**-0.5 if scale is None else scale
    full_mask = None if mask is None else _expand_mask(mask, b, h, n, m)

    # Upcast keys take samples · h · m · d elements and logits samples · h · count · m.
    samples = min(b, max(1, max_logits // max(1, h * m * d)))
    count = max(1, max_logits // max(1, samples * h * m))
    entropy = query.new_empty(rows.shape, dtype=torch.float32)
    # Autocast would take the product back to half precision.
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        for first in range(0, b, samples):
            part = slice(first, first + samples)
            keys = key[part].float().transpose(-1, -2)
            if keys.shape[1] != h:
                keys = keys.repeat_interleave(h // keys.shape[1], dim=1)
            for start in range(0, rows.shape[2], count):
                picked = rows[part, :, start : start + count]
                asked = query[part].gather(2, picked[..., None].expand(-1, -1, -1, d)).float()
                logits = asked.mul_(scale) @ keys
                block_mask = None if full_mask is None else full_mask[part]
                block_keys = key_mask
                if key_mask is not None and len(key_mask) > 1:
                    block_keys = key_mask[part]
                allowed = _mask_logits(logits, picked, block_mask, block_keys, causal, n)
                entropy[part, :, start : start + count] = _row_entropy(logits, allowed, normalize)
    return entropy


def _row_entropy(logits: Tensor, allowed: Tensor, normalize: bool) -> Tensor:
    """Entropy over the last dimension, in place of the logits.

    Args:
        logits: (b, h, r, m), -inf where a key cannot be attended.
        allowed: Where it can, bool, broadcastable to them; the fewer elements, the fewer passes.
        normalize: As for `attention_entropy`.

    Returns:
        (b, h, r).
    """
    shifted = logits.sub_(logits.amax(dim=-1, keepdim=True))
    weights = shifted.exp()
    # 0 · -inf is NaN, while p ln p tends to 0. A row of -inf only is NaN by now and stays so.
    shifted.masked_fill_(~allowed, 0.0)
    total = weights.sum(dim=-1)
    expected = shifted.mul_(weights).sum(dim=-1) / total
    # Rounding may leave -1e-8 where one key takes everything.
    entropy = (total.log() - expected).clamp(min=0.0)
    if normalize:
        most = allowed.sum(dim=-1).clamp(min=2).to(entropy.dtype).log()  # one key: 0 / ln 2 = 0
        entropy = (entropy / most).clamp(max=1.0)
    return entropy


def _mask_logits(
    logits: Tensor,
    rows: Tensor,
    mask: Tensor | None,
    key_mask: Tensor | None,
    causal: bool,
    n: int,
) -> Tensor:
    """Apply every mask to logits (b, h, r, m) of query rows (b, h, r), in place.

    What is returned says where a key may be attended, bool, (b, h, r, m), or (1 or b, 1, 1, m) if
    all rows may attend the same.
    """
    if mask is not None:
        if mask.shape[2] == n and n > 1:
            batch = torch.arange(len(rows), device=rows.device)[:, None, None]
            head = torch.arange(rows.shape[1], device=rows.device)[None, :, None]
            mask = mask[batch, head, rows]
        if mask.dtype == torch.bool:
            logits.masked_fill_(~mask, float("-inf"))
        else:
            logits.add_(mask.float()).masked_fill_(mask < _MASKED_BELOW, float("-inf"))
    if key_mask is not None:
        logits.masked_fill_(~key_mask[:, None, None, :], float("-inf"))
    if causal:
        position = torch.arange(logits.shape[-1], device=logits.device)
        logits.masked_fill_(position > rows[..., None], float("-inf"))
    if mask is not None or causal:
        return logits != float("-inf")
    if key_mask is not None:
        return key_mask[:, None, None, :]
    return torch.ones(1, 1, 1, logits.shape[-1], dtype=torch.bool, device=logits.device)


def _expand_mask(mask: Tensor, b: int, h: int, n: int, m: int) -> Tensor:
    """View a mask as (b, h, n or 1, m); a query dimension of 1 stays, it costs nothing there."""
    queries = mask.shape[-2] if mask.dim() > 1 else 1
    try:
        expanded = mask.expand(b, h, queries, m)
    except RuntimeError as error:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit {(b, h, n, m)}") from error
    if queries not in (1, n):
        raise ValueError(f"mask {tuple(mask.shape)} has {queries} query rows; there are {n}")
    return expanded


def _checked_rows(
    query: Tensor, key: Tensor, key_mask: Tensor | None, rows: Tensor | None, max_logits: int
) -> Tensor:
    """Validate shapes and return rows as (b, h, r)."""
    if query.dim() != 4 or key.dim() != 4:
        raise ValueError(
            f"query is {tuple(query.shape)} and key {tuple(key.shape)}; both must have four "
            "dimensions, (batch, heads, tokens, head size)"
        )
    b, h, n, d = query.shape
    if key.shape[0] != b or key.shape[3] != d or key.shape[1] == 0 or h % key.shape[1]:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} must share batch and head "
            "size, with the heads of the query a multiple of the heads of the key"
        )
    m = key.shape[2]
    if key_mask is not None and (
        key_mask.dtype != torch.bool
        or key_mask.dim() != 2
        or key_mask.shape[1] != m
        or len(key_mask) not in (1, b)
    ):
        raise ValueError(
            f"key_mask is {key_mask.dtype} of shape {tuple(key_mask.shape)}; "
            f"it must be bool of shape (1 or {b}, {m})"
        )
    if max_logits < 1:
        raise ValueError(f"max_logits is {max_logits}; at least one element must be held")
    if rows is None:
        rows = torch.arange(n, device=query.device)
    if rows.dtype != torch.int64 or not 1 <= rows.dim() <= 3:
        raise ValueError(
            f"rows is {rows.dtype} of shape {tuple(rows.shape)}; "
            "it must be int64 of shape (r,), (h, r) or (b, h, r)"
        )
    return rows.expand(b, h, rows.shape[-1])
