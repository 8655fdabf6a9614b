"""What a run logged and learned, written down so that runs on other numbers of ranks compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from aegpo.distributed import all_gather_rows
from aegpo.policies.fsdp.sharding import gathered

LOCAL = ("seconds/", "memory/")
"""What belongs to a process or a machine."""
_ROUNDING = {
    **{"ratio/first_max_dev": 1e-5, "alarm/reward_rise": 5e-3},
    **{"alarm/velocity_norm": 1e-4, "alarm/latent_norm": 1e-4},
}
"""Absolute tolerances of what is 0 but for rounding, and of a number less what it was at first."""


class RankTrace(L.Callback):
    """Writes every logged number of every iteration and validation, and every trained tensor.

    Args:
        file: Where the numbers go (.json) and, beside it, the tensors (.pt).
    """

    def __init__(self, file: str) -> None:
        self.file, self.rows = Path(file), []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A row of the iteration."""
        last = pl_module.last
        own = torch.stack([last.batch.index.double(), last.group_sizes.double()], dim=1)
        steps = last.schedule.stochastic.double()
        dealt, _ = all_gather_rows(torch.cat([own, steps], dim=1))
        scored = torch.stack([last.tree.row.double(), last.rewards.double()], dim=1)
        scored[:, 0] = last.batch.index[last.tree.row]
        scores, _ = all_gather_rows(scored)
        row = {"prompts": batch.index.tolist(), "dealt": sorted(dealt.tolist())}
        row["rewards"] = sorted(scores.tolist())
        row["logged"] = self._logged(trainer)
        reading = pl_module.entropy
        if reading is not None:
            row["curve"] = reading.curve.tolist()
            row["delta"] = None if reading.delta is None else reading.delta.tolist()
        self.rows.append(row)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """A row of the evaluation."""
        metrics = pl_module.held_out.metrics("val")
        self.rows.append({"logged": metrics} if trainer.sanity_checking else self._both(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Check that the ranks hold the same tensors, and write."""
        tensors = gathered(pl_module.policy.trainable_state_dict(), keep=True)
        flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors.values()])
        ranks, _ = all_gather_rows(flat[None])
        assert all(torch.equal(row, ranks[0]) for row in ranks), "the ranks have drifted apart"
        if trainer.is_global_zero:
            torch.save({name: value.clone() for name, value in tensors.items()}, self.tensors)
            self.file.write_text(json.dumps(self.rows))

    @property
    def tensors(self) -> Path:
        """Where the tensors go."""
        return self.file.with_suffix(".pt")

    def _both(self, trainer: L.Trainer) -> dict[str, Any]:
        return {"logged": self._logged(trainer)}

    @staticmethod
    def _logged(trainer: L.Trainer) -> dict[str, float]:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {name: value for name, value in logged.items() if not name.startswith(LOCAL)}


def assert_same_run(one: Path, other: Path, rtol: float = 1e-3, atol: float = 1e-6) -> None:
    """The same decisions and costs, and numbers and tensors up to the order of summation.

    Args:
        one: File of a `RankTrace`.
        other: Another one.
        rtol: Relative tolerance of logged numbers and, to its largest value, of each tensor.
        atol: Absolute tolerance of logged numbers.
    """
    rows, others = (json.loads(file.read_text()) for file in (one, other))
    assert len(rows) == len(others) > 0
    for number, (row, compared) in enumerate(zip(rows, others, strict=True)):
        for name in ("prompts", "dealt"):
            assert row.get(name) == compared.get(name), (number, name)
        for name in ("rewards", "curve", "delta"):
            _assert_close(row.get(name), compared.get(name), rtol, atol, f"{number} {name}")
        assert row["logged"].keys() == compared["logged"].keys(), number
        for name, value in row["logged"].items():
            exact = name.startswith("cost/") or name in ("rollout/images", "step")
            tolerance = (0.0, 0.0) if exact else (rtol, _ROUNDING.get(name, atol))
            _assert_close(value, compared["logged"][name], *tolerance, f"{number} {name}")
    tensors, trained = (torch.load(file.with_suffix(".pt")) for file in (one, other))
    assert tensors.keys() == trained.keys()
    for name, tensor in tensors.items():
        scale = float(tensor.abs().max())
        _assert_close(trained[name], tensor, 0.0, max(rtol * scale, 1e-9), name)


def _assert_close(one: Any, other: Any, rtol: float, atol: float, message: str) -> None:
    if one is None or other is None:
        assert one is other, message
        return
    left, right = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
    torch.testing.assert_close(
        left, right, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{message}: {text}"
    )
