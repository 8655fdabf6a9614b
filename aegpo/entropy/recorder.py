"""Watch a denoiser's attention while it runs, and keep the entropy of it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from aegpo.entropy.attention import attention_entropy
from aegpo.entropy.cost import Budget, Counted
from aegpo.entropy.dispatched import WatchedAttention
from aegpo.entropy.recording import Recording, WatchedPolicy
from aegpo.entropy.tokens import TokenLayout, TokenSet, check_token_set, select_tokens
from aegpo.entropy.uncompiled import uncompiled
from aegpo.transfer import without_waiting

# `F.scaled_dot_product_attention` exists once per process, so does its replacement.
_RECORDING = threading.Lock()


class EntropyRecorder:
    """Records Entropy(t) of a policy's attention while a rollout runs (AEGPO, arXiv 2602.06825).

    The rollout passes the recording on as its observer::

        with recorder.record(policy) as recording:
            rollout(policy, sde, cond, schedule, sizes, noise, index, observer=recording)
        curve = recording.curve()  # (B, T)

    Inside the context hooks on the attention modules say which layer is running; while one is,
    ``torch.nn.functional.scaled_dot_product_attention`` and the kernels of diffusers' dispatcher
    (flex, flash-attn and others) are replaced by such that call the original first and then look at
    the queries and keys. The model's outputs are bit for bit what they were; after the context,
    also after an exception, the model, torch and diffusers are as they were found. Only calls under
    ``no_grad`` in the thread that opened the context count, and only the first attention of a layer
    (image adapters add a second one). Compiled blocks with a watched layer run uncompiled inside,
    rounded as they are without a compiler; all others run compiled, and nothing is compiled anew.

    Query rows are sampled once per layer and head and shared by all samples, steps and recordings:
    the estimate of the mean is unbiased, costs ``rows`` / N of the scores, and compares policy and
    base on the same rows.

    Args:
        layers: Attention layers to watch: "all", every k-th layer for an integer k (the first
            one included), or a list of names from ``policy.attention_layers()``.
        tokens: Query and key tokens: all_to_all, image_to_all, image_to_text, image_to_image or
            text_to_image. Padded text tokens never count.
        rows: Query rows sampled per head, or null for all of them (exact).
        normalize: Divide each row's entropy by ln(keys it may attend), giving [0, 1]; else nats.
        seed: Seed of the sampled rows.
        cost_bound: Most that recording may cost, as a share of the forward pass that it watches:
            each layer reads no more query rows than this pays for, by a count of operations, and
            at least 1. Null for no bound.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        layers: Literal["all"] | int | list[str] = "all",
        tokens: TokenSet = "image_to_all",
        rows: int | None = 64,
        normalize: bool = True,
        seed: int = 0,
        cost_bound: float | None = None,
    ) -> None:
        named = isinstance(layers, list) and len(layers) > 0
        counted = isinstance(layers, int) and not isinstance(layers, bool) and layers >= 1
        if layers != "all" and not named and not counted:
            raise ValueError(
                f'layers is {layers!r}; give "all", an integer k >= 1 for every k-th layer, '
                "or a list of layer names"
            )
        check_token_set(tokens)
        if rows is not None and rows < 1:
            raise ValueError(f"rows is {rows}; sample at least one query row, or null for all")
        if cost_bound is not None and not 0 < cost_bound < 1:
            raise ValueError(
                f"cost_bound is {cost_bound}; give a share of the forward pass above 0 and below "
                "1, such as 0.01, or null"
            )
        self.layers = layers
        self.tokens = tokens
        self.rows = rows
        self.normalize = normalize
        self.seed = seed
        self.cost_bound = cost_bound
        self._budget: Budget | None = None
        self._orders: dict[tuple[str, int, int, int, torch.device], Tensor] = {}

    @contextmanager
    def record(self, policy: WatchedPolicy) -> Iterator[Recording]:
        """Watch a policy inside the context.

        The layers are those of the network that predicts on entry: to record the base, enter
        ``policy.reference()`` first and this context inside it.

        Args:
            policy: Policy whose attention layers are watched.

        Yields:
            The recording, to be passed to the rollout as its observer and read afterwards.

        Raises:
            RuntimeError: If another recording is open, or the rollout inside left layers unseen.
            ValueError: If ``layers`` matches nothing in this policy.
        """
        watched = self._choose_layers(policy.attention_layers())
        if self.cost_bound is not None and self._budget is None:
            self._budget = Budget(self.cost_bound, cast("Counted", policy), len(watched))
        if not _RECORDING.acquire(blocking=False):
            raise RuntimeError(
                "another entropy recording is open in this process; "
                "leave its context before opening a new one"
            )
        recording = Recording([name for name, _ in watched], policy, self.tokens, self._measure)
        attention = WatchedAttention(recording._watch, recording._attended)
        handles = []
        policy.at_retry.append(recording._begin_anew)
        try:
            for name, module in watched:
                for before in (lambda *_: attention.on(), recording._enter(name)):
                    handles.append(module.register_forward_pre_hook(before))
                for after in (lambda *_: attention.off(), recording._leave(name)):
                    handles.append(module.register_forward_hook(after, always_call=True))
            with uncompiled(policy.denoiser, [module for _, module in watched]):
                yield recording
        finally:
            attention.close()
            policy.at_retry.remove(recording._begin_anew)
            for handle in handles:
                handle.remove()
            _RECORDING.release()
        recording._close_step()

    @property
    def affordable(self) -> str:
        """What `cost_bound` pays for, as text; empty before a layer has run."""
        return "" if self._budget is None else str(self._budget)

    def _draw(self, layer: str, heads: int, count: int, keep: int, device: torch.device) -> Tensor:
        """The first ``keep`` of a permutation of 0..count-1 for every head, (h, keep) int64."""
        key = (layer, heads, count, keep, device)
        if key not in self._orders:
            orders = []
            for head in range(heads):
                label = f"entropy rows/{self.seed}/{layer}/{head}/{count}".encode()
                digest = hashlib.blake2b(label, digest_size=16).digest()
                philox = np.random.Philox(key=int.from_bytes(digest, "little"))
                orders.append(np.random.Generator(philox).permutation(count)[:keep])
            self._orders[key] = without_waiting(torch.from_numpy(np.stack(orders)), device)
        return self._orders[key]

    def _choose_layers(
        self, available: Sequence[tuple[str, nn.Module]]
    ) -> list[tuple[str, nn.Module]]:
        names = [name for name, _ in available]
        if not names:
            raise ValueError("the policy has no attention layers to record")
        if isinstance(self.layers, int):
            return list(available)[:: self.layers]
        if isinstance(self.layers, str):
            return list(available)
        unknown = sorted(set(self.layers) - set(names))
        if unknown:
            raise ValueError(
                f"no attention layer is called {', '.join(unknown)}; there are: {', '.join(names)}"
            )
        return [(name, module) for name, module in available if name in self.layers]

    def _measure(
        self,
        layer: str,
        query: Tensor,
        key: Tensor,
        scale: float | None,
        mask: Tensor | None,
        causal: bool,
        layout: TokenLayout,
    ) -> Tensor | None:
        """Mean entropy of each sample over heads and query rows, (n,), or None without tokens."""
        chosen = select_tokens(self.tokens, layout, query.shape[2], key.shape[2], layer)
        if chosen is None:
            return None
        heads, device = query.shape[1], query.device
        queries = without_waiting(chosen.queries, device)
        key_mask = None if chosen.key_mask is None else chosen.key_mask.to(device)
        count = len(queries) if self.rows is None else min(self.rows, len(queries))
        if self._budget is not None:
            count = self._budget.afford(layer, query, key.shape[2], count)
        real: Tensor | None = None
        if chosen.query_mask is None:
            picked = self._draw(layer, heads, len(queries), count, device)
        else:
            # The first `count` real tokens in this order: unbiased for every sample, and the same
            # rows wherever two samples have the same padding.
            order = self._draw(layer, heads, len(queries), len(queries), device)
            in_order = chosen.query_mask.to(device)[:, order]
            first = (~in_order).to(torch.uint8).argsort(dim=-1, stable=True)[..., :count]
            picked = order.expand(len(first), -1, -1).gather(2, first)
            real = in_order.gather(2, first)
        entropy = attention_entropy(
            query,
            key,
            scale,
            mask=mask,
            key_mask=key_mask,
            causal=causal,
            normalize=self.normalize,
            rows=queries[picked],
        )
        if real is None:
            return entropy.mean(dim=(1, 2))
        return entropy.where(real, 0.0).sum(dim=(1, 2)) / real.sum(dim=(1, 2))
