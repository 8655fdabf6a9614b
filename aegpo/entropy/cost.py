"""How many query rows a recording can afford beside the model that it watches, by count."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aegpo.distributed import is_sharded
from aegpo.entropy.uncompiled import uncompiled

LOGIT = {"cpu": 1500.0}
"""Operations of the model in whose time a device makes one logit's part of an entropy, beside its
product: on a CPU as measured on the bundled model."""
LOGIT_ELSEWHERE = 5000.0
"""The same of a card, computed: about 32 bytes read and written for each logit, on a card that does
some 160 operations of a half-precision product in the time of a byte."""


class Counted(Protocol):
    """A policy whose forward pass can be counted."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts at present."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, (C, H, W)."""

    def predict(self, latents: Tensor, sigma: Tensor, cond: object) -> Tensor:
        """One call of the denoiser."""

    def blank_conditioning(self, num_rows: int) -> object:
        """Conditioning of the longest text."""


class Budget:
    """Shares out among layers what a recording may cost of each forward pass that it watches.

    Everything is counted and nothing timed, so that a run reads the same rows every time.

    Args:
        bound: Most that it may cost, as a share of the forward pass, above 0 and below 1.
        policy: What is watched; one sample is predicted, which counts as no evaluation.
        num_layers: Layers that are watched.

    Raises:
        ValueError: If the forward pass of the policy cannot be counted.
    """

    def __init__(self, bound: float, policy: Counted, num_layers: int) -> None:
        if not hasattr(policy, "blank_conditioning") or is_sharded(policy.denoiser):
            raise ValueError(
                f"cost_bound={bound:g} is of a forward pass that can be counted, that of a "
                "diffusers pipeline whose weights lie whole on each rank; set rows instead"
            )
        self.bound = bound
        self._of_layer = bound * forward_operations(policy) / num_layers
        self.rows: dict[str, int] = {}

    def __str__(self) -> str:
        """What was bought so far."""
        if not self.rows:
            return ""
        fewest, most = min(self.rows.values()), max(self.rows.values())
        rows = f"{most}" if fewest == most else f"{fewest} to {most}"
        return f"{rows} query rows a head in {len(self.rows)} layers (cost_bound={self.bound:g})"

    def afford(self, layer: str, query: Tensor, num_keys: int, wanted: int) -> int:
        """How many query rows of each head a layer may read.

        Args:
            layer: Its name.
            query: Queries of its call, shape (n, h, N, d).
            num_keys: Keys M of the call.
            wanted: Rows that are there to be read.

        Returns:
            At least 1 and at most `wanted`.
        """
        if layer not in self.rows:
            _, heads, _, size = query.shape
            row = heads * num_keys * (2 * size + LOGIT.get(query.device.type, LOGIT_ELSEWHERE))
            self.rows[layer] = min(wanted, max(1, int(self._of_layer // row)))
        return min(wanted, self.rows[layer])


@torch.no_grad()
def forward_operations(policy: Counted) -> float:
    """Floating-point operations of the matrix products and convolutions of one sample's forward.

    Args:
        policy: The policy.

    Returns:
        A multiplication and an addition count 2.
    """
    denoiser = policy.denoiser
    device = next(denoiser.parameters()).device
    latents = torch.zeros(1, *policy.latent_shape, device=device)
    sigma = torch.full((1,), 0.5, device=device)
    # A compiled block would be traced anew under the counter.
    with uncompiled(denoiser, denoiser.modules()), FlopCounterMode(display=False) as counter:
        policy.predict(latents, sigma, policy.blank_conditioning(1))
    return float(counter.get_total_flops())
