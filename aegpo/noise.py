"""Keyed noise: every draw is a pure function of what it is for.

There is no generator whose state could depend on the number of ranks, on the chunk size of a batch
or on where a run was resumed. A draw is named by (seed, iteration, purpose, integers), the name is
hashed to the 128-bit key of a counter-based Philox generator, and the generator is thrown away
after the draw.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INT64 = range(-(2**63), 2**63)
_FIXED = -1  # stands in place of the iteration in noise that never changes


def run_seed(seed: int | None) -> int:
    """Resolve a seed that may be left to the run.

    Args:
        seed: A seed, or None for the one that `seed_everything` set.

    Returns:
        The seed; 0 if none was set at all.
    """
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


class KeyedNoise:
    """Noise named by what it is for; equal names give equal noise, anywhere and at any time.

    Args:
        seed: The run's seed, any 64-bit signed integer.
        iteration: The training iteration, from 0; another iteration is another noise.

    Raises:
        ValueError: If the seed does not fit into 64 bits or the iteration is negative.
    """

    def __init__(self, seed: int, iteration: int = 0) -> None:
        if seed not in _INT64:
            raise ValueError(f"seed must fit into a signed 64-bit integer, but is {seed}")
        if iteration not in _INT64 or iteration < 0:
            raise ValueError(f"iteration must be 0 or more, but is {iteration}")
        self.seed = int(seed)
        self.iteration = int(iteration)
        self._prefix = ""

    def __repr__(self) -> str:
        return f"KeyedNoise(seed={self.seed}, iteration={self.iteration})"

    def at(self, iteration: int) -> KeyedNoise:
        """The noise of another iteration of the same run.

        Args:
            iteration: The training iteration, from 0.

        Returns:
            A new object; this one stays as it is.
        """
        other = KeyedNoise(self.seed, iteration)
        other._prefix = self._prefix
        return other

    def fixed(self) -> KeyedNoise:
        """Noise that is the same at every iteration, for probes and evaluation.

        Returns:
            A new object with the iteration replaced by -1, which no training iteration has.
        """
        fixed = self.at(0)
        fixed.iteration = _FIXED
        return fixed

    def apart(self, name: str) -> KeyedNoise:
        """Noise that shares no draw with this one, for a second rollout in the same iteration.

        Args:
            name: What it is for, e.g. ``"trials"``; another name is another noise.

        Returns:
            A new object of the same seed and iteration.
        """
        apart = KeyedNoise(self.seed)
        apart.iteration, apart._prefix = self.iteration, f"{self._prefix}{name}/"
        return apart

    def normal(self, purpose: str, keys: Tensor, shape: Sequence[int]) -> Tensor:
        """Standard normal noise, one independent row per key.

        Args:
            purpose: What it is for, e.g. ``"start"``; different purposes never share noise.
            keys: (n, k) int64; row i of the result depends on row i of the keys and on no other.
            shape: Shape of one row.

        Returns:
            (n, *shape) fp32 on the CPU.

        Examples:
            A row is a function of seed, iteration, purpose and its own key. Drawn alone it is what
            it is beside others, today and after a resume:

            >>> noise = KeyedNoise(seed=0, iteration=3)
            >>> noise.normal("step", torch.tensor([[7, 0], [7, 1]]), shape=(3,))
            tensor([[ 0.0303, -1.0059, -0.3121],
                    [ 0.8722, -0.4026, -2.1620]])
            >>> noise.normal("step", torch.tensor([[7, 1]]), shape=(3,))
            tensor([[ 0.8722, -0.4026, -2.1620]])
            >>> noise.normal("start", torch.tensor([[7, 1]]), shape=(3,))
            tensor([[1.5660, 0.4942, 0.3203]])
            >>> noise.at(4).normal("step", torch.tensor([[7, 1]]), shape=(3,))
            tensor([[-0.2579,  1.6168, -0.3531]])
        """
        return self._draw(np.random.Generator.standard_normal, purpose, keys, shape)

    def uniform(self, purpose: str, keys: Tensor, shape: Sequence[int]) -> Tensor:
        """Uniform noise in [0, 1), one independent row per key.

        Args:
            purpose: What it is for.
            keys: (n, k) int64, as for `normal`.
            shape: Shape of one row.

        Returns:
            (n, *shape) fp32 on the CPU.
        """
        return self._draw(np.random.Generator.random, purpose, keys, shape)

    def permutation(self, purpose: str, key: Sequence[int], n: int) -> Tensor:
        """A random order of the numbers below n.

        Args:
            purpose: What it is for.
            key: Integers that name the draw.
            n: How many numbers, 0 or more.

        Returns:
            (n,) int64 on the CPU.
        """
        order = self._generator(purpose, [int(part) for part in key]).permutation(n)
        return torch.from_numpy(order.astype(np.int64, copy=False))

    def _draw(
        self, method: Callable[..., Any], purpose: str, keys: Tensor, shape: Sequence[int]
    ) -> Tensor:
        """Rows by a method of numpy's generators, each from the generator of its own key."""
        rows = self._key_rows(keys)
        noise = np.empty((len(rows), *shape), dtype=np.float32)
        for row, key in enumerate(rows):
            noise[row] = method(self._generator(purpose, key), shape, dtype=np.float32)
        return torch.from_numpy(noise)

    @staticmethod
    def _key_rows(keys: Tensor) -> list[list[int]]:
        if keys.dim() != 2 or keys.dtype != torch.int64:
            raise ValueError(
                "keys must be an int64 tensor of shape (n, k), one row per draw, but they are "
                f"{keys.dtype} of shape {tuple(keys.shape)}"
            )
        rows: list[list[int]] = keys.tolist()
        return rows

    def _generator(self, purpose: str, key: list[int]) -> np.random.Generator:
        # Lengths go into the hash, so that no two names can read as the same bytes. torch's own
        # CPU generator is not used: it keeps 32 bits of a seed, too few for millions of draws.
        text = (self._prefix + purpose).encode()
        name = struct.pack(
            f"<{len(key) + 4}q", self.seed, self.iteration, len(text), len(key), *key
        )
        digest = hashlib.blake2b(name + text, digest_size=16, person=b"aegpo.noise").digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
