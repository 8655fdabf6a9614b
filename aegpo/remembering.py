"""What a replaceable part of a training tells about itself, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Remembering:
    """A part of a training that may have numbers to log and a state to go on with; by default none.

    The module logs and saves its parts by these three methods.
    """

    def metrics(self) -> dict[str, float]:
        """What it has to tell about the latest iteration.

        Returns:
            Tag and value, equal on all ranks; docs/logging.md lists them.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain values only.

        Returns:
            The state, empty if there is none.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state: What `state_dict` returned; empty where another class wrote the checkpoint.
        """
        del state
