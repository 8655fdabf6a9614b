"""The commands: one place for each, and the one table that names them."""

from __future__ import annotations

COMMANDS = {
    "fit": "train the configured model",
    "validate": "score it on the held-out prompts",
    "test": "score it on the test prompts",
    "predict": "draw images for prompts",
    "plan": "say what a run will do and cost, before anything is loaded",
    "doctor": "check this machine; with --config also the first update of that config",
    "compare": "methods x seeds at equal compute, from one file: table and curves",
    "replay": "what another allocator or step selector would have decided in a logged run",
    "signals": "measure what attention entropy predicts for a policy and a reward",
    "check-reward": "try a reward out: form, range, determinism, batches, broken input, time",
    "export": "write a checkpoint for diffusers, checked against diffusers, with a model card",
    "sample": "draw prompts from a checkpoint beside the base, with scores",
}
"""The subcommands and what ``--help`` says of each."""
STANDALONE = {
    "compare": "lightning_modules.commands.compare.compare",
    "replay": "lightning_modules.commands.replay",
    "check-reward": "lightning_modules.commands.check_reward",
}
"""Commands that have arguments of their own; ``AEGPOCLI.subcommands`` has all others."""
