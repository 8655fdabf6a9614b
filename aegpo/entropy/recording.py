"""What one recording saw of a denoiser's attention: rows announced, watched and averaged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aegpo.entropy.tokens import TokenLayout, TokenSet, check_token_set


class WatchedPolicy(Protocol):
    """What the recorder needs of a policy."""

    at_retry: list[Callable[[], None]]
    """Called before a prediction that ran out of memory begins anew."""

    @property
    def num_evaluations_per_sample(self) -> int:
        """1, or 2 with guidance, where the first half of a model call is conditional."""

    @property
    def idle(self) -> bool:
        """Whether the call that runs is padding between ranks, and none of the rollout's."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts at present."""

    def attention_layers(self) -> Sequence[tuple[str, nn.Module]]:
        """Name and module of every attention layer, in the order of the network."""


class Measure(Protocol):
    """The mean entropy of each sample of one attention call, or None if it has no such tokens."""

    def __call__(
        self,
        layer: str,
        query: Tensor,
        key: Tensor,
        scale: float | None,
        mask: Tensor | None,
        causal: bool,
        layout: TokenLayout,
    ) -> Tensor | None:
        """Measure queries (n, h, N, d) and keys (n, h, M, d) of a named layer, giving (n,)."""


@dataclass
class _Step:
    """One observed model call: a step of the trajectory on n rows, seen in chunks."""

    step: int
    row: Tensor  # (n,) int64, CPU
    layout: TokenLayout
    values: dict[str, list[Tensor]] = field(default_factory=dict)  # layer → (chunk,) each
    seen: dict[str, int] = field(default_factory=dict)  # layer → rows seen so far
    skipped: set[str] = field(default_factory=set)  # layers without such tokens


@dataclass
class _Frame:
    """One running forward of a watched layer."""

    name: str
    attended: bool = False


class Recording:
    """What one :meth:`EntropyRecorder.record` context saw.

    Rows of the same prompt are averaged, whatever trajectory or tree node they belong to, then
    heads, layers and query rows, all with equal weight.

    Args:
        names: Watched layers, in network order.
        policy: The policy that is watched.
        tokens: Token set that is measured.
        measure: Entropy of one attention call.
    """

    def __init__(
        self, names: list[str], policy: WatchedPolicy, tokens: TokenSet, measure: Measure
    ) -> None:
        self._names = names
        self._policy = policy
        self._tokens = tokens
        self._measure = measure
        self._thread = threading.get_ident()
        self._stack: list[_Frame] = []
        self._steps: list[_Step] = []
        self._open: _Step | None = None

    def begin(self, step: int, row: Tensor, layout: TokenLayout) -> None:
        """Announce one model call on n rows, before it runs (the rollout does this per level).

        The call may arrive in chunks of rows, in order; with guidance each chunk is
        [conditional; unconditional] and the conditional half is recorded.

        Args:
            step: Denoising step, 0 <= step < T.
            row: Row of each latent's prompt in the batch, shape (n,) int64, 0 <= row < B.
            layout: Where image and text tokens lie; its text_mask, if any, has n rows.

        Raises:
            ValueError: If a shape or a range is wrong, or the token set needs text that is absent.
            RuntimeError: If the previous step was not seen wholly.
        """
        self._close_step()
        if step < 0 or row.dim() != 1 or len(row) == 0 or row.is_floating_point():
            raise ValueError(
                f"step {step} with rows {row.dtype} of shape {tuple(row.shape)}; "
                "give a step >= 0 and at least one row, int64 of shape (n,)"
            )
        if layout.text_mask is not None and len(layout.text_mask) != len(row):
            raise ValueError(
                f"the layout's text_mask has {len(layout.text_mask)} rows for {len(row)} rows "
                "of latents; select its rows likewise"
            )
        check_token_set(self._tokens, layout)
        self._stack.clear()  # an interrupted forward leaves its frames
        self._open = _Step(step, row.detach().cpu().long(), layout)

    @property
    def layer_names(self) -> list[str]:
        """Layers that were recorded, L names in network order."""
        recorded = {name for step in self._finished() for name in step.values}
        return [name for name in self._names if name in recorded]

    def per_prompt_layer(self) -> Tensor:
        """Entropy of every prompt, layer and step.

        Returns:
            Means over rows, heads and query rows, shape (B, L, T), fp32 on the CPU.

        Raises:
            RuntimeError: If nothing was recorded, or a prompt was not seen at some step.
        """
        steps, names = self._finished(), self.layer_names
        if not names:
            raise RuntimeError(
                f"no attention was recorded for token set {self._tokens!r}: "
                "pass the recording to rollout(..., observer=recording) and watch layers that "
                "have such tokens"
            )
        num_prompts = 1 + max(int(step.row.max()) for step in steps)
        num_steps = 1 + max(step.step for step in steps)
        total = torch.zeros(num_prompts, len(names), num_steps, dtype=torch.float64, device="cpu")
        count = torch.zeros(num_prompts, num_steps, dtype=torch.float64, device="cpu")
        for step in steps:
            values = torch.stack([torch.cat(step.values[name]) for name in names], dim=1)
            total[:, :, step.step].index_add_(0, step.row, values.double().cpu())
            count[:, step.step].index_add_(
                0, step.row, torch.ones(len(step.row), device="cpu").double()
            )
        if bool((count == 0).any()):
            row, missing = (count == 0).nonzero()[0].tolist()
            raise RuntimeError(
                f"prompt {row} of {num_prompts} was not seen at step {missing} of {num_steps}; "
                "record whole trajectories of every prompt"
            )
        return (total / count[:, None]).float()

    def per_layer(self) -> Tensor:
        """Entropy of every layer and step, the mean over prompts, shape (L, T)."""
        return self.per_prompt_layer().mean(dim=0)

    def curve(self) -> Tensor:
        """Entropy(t) of every prompt, the mean over layers, shape (B, T)."""
        return self.per_prompt_layer().mean(dim=1)

    def _finished(self) -> list[_Step]:
        self._close_step()
        return self._steps

    def _close_step(self) -> None:
        """File the announced step, once every watched layer has seen all of its rows."""
        step, self._open = self._open, None
        if step is None:
            return
        for name in self._names:
            seen = step.seen.get(name, 0)
            if seen != len(step.row) and name not in step.skipped:
                raise RuntimeError(
                    f"layer {name} attended {seen} of {len(step.row)} rows under no_grad at "
                    f"step {step.step}; the model call that begin() announced did not run wholly, "
                    "or does not use this layer (leave it out of the recorder's layers)"
                )
        self._steps.append(step)

    def _begin_anew(self) -> None:
        """Forget what was seen of the announced step: its rows come once more, all of them."""
        self._stack.clear()
        if self._open is not None:
            self._open = _Step(self._open.step, self._open.row, self._open.layout)

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == self._thread and not self._policy.idle:
                self._stack.append(_Frame(name))

        return hook

    def _leave(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != self._thread or not self._stack:
                return
            frame = self._stack.pop()
            # torch passes None where the forward raised; that error is the one to show.
            if output is not None and not frame.attended:
                processor = getattr(module, "processor", None)
                raise RuntimeError(
                    f"layer {name} ran without torch's or diffusers' attention (processor "
                    f"{type(processor).__name__}, attention backend {_backend(processor)}), so its "
                    'entropy cannot be seen; use attention_backend "native" and the default '
                    "processors, or leave the layer out of the recorder's layers"
                )

        return hook

    def _watch(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def scaled_dot_product_attention(  # noqa: PLR0913  # torch's own signature
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
        ) -> Tensor:
            given = (query, key, value, attn_mask, dropout_p, is_causal)
            output = original(*given, scale=scale, enable_gqa=enable_gqa)
            self._attended(query, key, scale, attn_mask, is_causal)
            return output

        return scaled_dot_product_attention

    def _attended(
        self, query: Tensor, key: Tensor, scale: float | None, mask: Tensor | None, causal: bool
    ) -> None:
        """Take note of an attention of the running layer, if it is the layer's first."""
        if threading.get_ident() == self._thread and self._stack:
            frame = self._stack[-1]
            if not frame.attended and not torch.is_grad_enabled():
                self._observe(frame.name, query, key, scale, mask, causal)
            frame.attended = True

    def _observe(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        scale: float | None,
        mask: Tensor | None,
        causal: bool,
    ) -> None:
        """Keep the mean entropy of each conditional row of one attention call."""
        step = self._open
        if step is None:
            raise RuntimeError(
                "the policy ran inside a recording without recording.begin(step, row, layout); "
                "pass the recording to rollout(..., observer=recording)"
            )
        repeats = self._policy.num_evaluations_per_sample
        rows, remainder = divmod(query.shape[0], repeats)
        first = step.seen.get(name, 0)
        if remainder or first + rows > len(step.row):
            raise RuntimeError(
                f"layer {name} was given {query.shape[0]} rows ({repeats} evaluations per sample) "
                f"after {first}, but begin() announced {len(step.row)} rows for step {step.step}"
            )
        if mask is not None and mask.dim() == 4 and mask.shape[0] == query.shape[0]:
            mask = mask[:rows]
        layout = step.layout.select(slice(first, first + rows))
        try:
            values = self._measure(name, query[:rows], key[:rows], scale, mask, causal, layout)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
        step.seen[name] = first + rows
        if values is None:
            step.skipped.add(name)
        else:
            step.values.setdefault(name, []).append(values)


def _backend(processor: object) -> str:
    """Name of diffusers' attention backend that a processor uses."""
    backend = getattr(processor, "_attention_backend", None)
    return "default" if backend is None else str(getattr(backend, "value", backend))
