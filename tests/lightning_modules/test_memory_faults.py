"""Memory that runs out in a real training costs speed, and no number."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faulty_policy import Faulty
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.exploration import NoSteps
from aegpo.objectives import NFT

SMALL = {"max_batch": 2, "decode_batch": 3}
"""What `LITTLE` comes down to: from 4 prompts' probes, 12 images and 12 samples of an update."""
LITTLE = {"fits": 2, "decodes": 4, "learns": 1}


def trained(
    folder: Path,
    tmp_path: Path,
    policy: dict[str, Any],
    precision: str,
    iterations: int,
    **settings: Any,
) -> tuple[dict[str, Any], Any]:
    """All that a training and its evaluation logged, and its module."""
    built = partial(Faulty, str(folder), lora_rank=4, max_sequence_length=4, **policy)
    module = tiny_module(folder, policy=built, lr=1e-2, **copy.deepcopy(settings))
    trainer = tiny_trainer(tmp_path, entropy_callbacks(), max_epochs=1, precision=precision)
    trainer.fit(module, tiny_data(tmp_path, batches_per_epoch=iterations))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        name: logged[name] for name in logged if "seconds/" not in name and "memory/" not in name
    }, module


@pytest.mark.parametrize(
    ("memory", "precision", "iterations", "settings"),
    [
        ("cpu", "32-true", 2, {"kl_coeff": 0.1}),  # the second with what was halved in the first
        ("cuda", "bf16-mixed", 1, {}),
        ("cpu", "32-true", 1, {"step_selector": NoSteps(), "objective": NFT(decay_rate=0.2)}),
    ],
    ids=["grpo", "bf16", "nft"],
)
def test_a_run_that_ran_out_of_memory_is_one_of_the_smaller_chunks(
    tiny_sd3_folder: Path,
    tmp_path: Path,
    memory: str,
    precision: str,
    iterations: int,
    settings: dict[str, Any],
) -> None:
    small = {**SMALL, "memory": memory}
    expected, model = trained(
        tiny_sd3_folder, tmp_path, small, precision, iterations, micro_batch_size=1, **settings
    )
    with pytest.warns(UserWarning) as told:
        logged, module = trained(
            tiny_sd3_folder,
            tmp_path,
            {**LITTLE, "memory": memory},
            precision,
            iterations,
            **settings,
        )
    lines = [str(one.message) for one in told if "out of memory" in str(one.message)]
    # Each once; there are 4 rows in the first call of the denoiser, 12 images to decode.
    assert [line.split(",")[0] for line in lines] == [
        "out of memory with max_batch=64; 2 fits",
        "out of memory with decode_batch=64; 3 fits",
        "out of memory with model.micro_batch_size=8; 1 fits",
    ]
    policy = module.policy
    assert (policy.max_batch, policy.decode_batch, module.micro_batch_size) == (2, 3, 1)
    assert logged == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert logged.get("ratio/first_max_dev", 0.0) < 1e-6
    assert policy.evaluations.counts == model.policy.evaluations.counts
    weights = policy.trainable_state_dict()
    for name, value in model.policy.trainable_state_dict().items():
        assert value.equal(weights[name]), name
