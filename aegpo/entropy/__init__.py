"""Attention entropy: its arithmetic, the recorder that watches a denoiser, and the reading."""

from aegpo.entropy.attention import attention_entropy
from aegpo.entropy.reading import EntropyReading, delta_entropy
from aegpo.entropy.recorder import EntropyRecorder
from aegpo.entropy.recording import Recording
from aegpo.entropy.tokens import TokenLayout, TokenSet

__all__ = [
    "EntropyReading",
    "EntropyRecorder",
    "Recording",
    "TokenLayout",
    "TokenSet",
    "attention_entropy",
    "delta_entropy",
]
