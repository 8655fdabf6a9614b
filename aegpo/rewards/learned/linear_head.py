"""The small network without activations that ImageReward and the aesthetic predictor end in."""

from __future__ import annotations

from torch import Tensor, nn


class LinearHead(nn.Module):
    """Five linear layers, width-1024-128-64-16-1, with dropout and nothing between them.

    The names are those of the published checkpoints, `layers.0` to `layers.7`; in evaluation mode
    it is one linear map.

    Args:
        width: Width of the embedding, 768 in both checkpoints.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024, device="cpu"),
            nn.Dropout(0.2),
            nn.Linear(1024, 128, device="cpu"),
            nn.Dropout(0.2),
            nn.Linear(128, 64, device="cpu"),
            nn.Dropout(0.1),
            nn.Linear(64, 16, device="cpu"),
            nn.Linear(16, 1, device="cpu"),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Score embeddings.

        Args:
            embeddings: Shape (N, width).

        Returns:
            Shape (N,), in fp32.
        """
        scores: Tensor = self.layers(embeddings.float())
        return scores.squeeze(-1)
