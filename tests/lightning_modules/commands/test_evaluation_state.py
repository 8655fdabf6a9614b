"""What is told of another evaluation in the folder: what differs, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.commands.evaluate.state import go_on, write_state

POLICY = {
    "class_path": "aegpo.policies.StableDiffusion3",
    "init_args": {"pretrained": "a" * 50, "guidance_scale": 1.0, "negative_prompt": None},
}
IDENTITY: dict[str, Any] = {
    "prompts": "0123",
    "models": {"base": ["pretrained", "", 1, 2], "tuned": ["checkpoint", "b" * 70, 10, 20]},
    "policy": POLICY,
    "num_steps": 10,
}


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("num_steps",), 5, "num_steps (10 → 5)"),
        (
            ("policy", "init_args", "guidance_scale"),
            4.5,
            "policy.init_args.guidance_scale (1.0 → 4.5)",
        ),
        (
            ("policy", "init_args", "negative_prompt"),
            "ugly «»",
            'policy.init_args.negative_prompt (none → "ugly «»")',
        ),
        (("policy", "init_args", "new"), {"a": 1}, 'policy.init_args.new (none → {"a": 1})'),
        (("models", "tuned", 3), 30, "models.tuned.time (20 → 30)"),
        (("models", "lora"), ["lora", "x", 1, 2], 'models.lora (none → ["lora", "x", 1, 2])'),
        (("prompts",), "x" * 100, f'prompts ("0123" → "{"x" * 59}…)'),
    ],
)
def test_the_value_that_differs_is_named(
    tmp_path: Path, place: tuple[Any, ...], value: Any, told: str
) -> None:
    out = str(tmp_path / "out")
    write_state(Path(out), IDENTITY)
    go_on(Path(out), IDENTITY, out)
    other = copy.deepcopy(IDENTITY)
    inner = other
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match="holds an evaluation with another") as refused:
        go_on(Path(out), other, out)
    assert f"with another {told}; give another folder, or the same" in str(refused.value)


def test_many_differences_are_counted(tmp_path: Path) -> None:
    write_state(tmp_path / "out", {"policy": {str(number): 0 for number in range(9)}})
    with pytest.raises(ValueError, match=r"policy\.3 \(0 → 1\) and 5 more; give"):
        go_on(tmp_path / "out", {"policy": {str(number): 1 for number in range(9)}}, "out")
