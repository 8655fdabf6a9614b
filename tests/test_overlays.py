"""Every overlay is over every shipped model what its header says.

A header is read sentence by sentence: each phrase of `CLAIMS` that stands in it is checked against
the config that the command line makes of the two files, and what an overlay sets must be claimed.
Beside the bundled model it is laid over one other, in turn a flow model and a U-Net; over all of
them with ALL_COMBINATIONS in the environment.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_runs import ROOT, flat

from lightning_modules.cli.lightning_cli import AEGPOCLI

OVERLAYS = sorted((ROOT / "configs/overlays").glob("*.yaml"))
SHAPES, FLUX, SD15, SD35, SDXL = MODELS = [
    ROOT / "configs/shapes.yaml",
    *sorted((ROOT / "configs/models").glob("*.yaml")),
]
NOISE = {
    "shapes": ("FlowSDE", 0.7),
    "sd35_medium": ("FlowSDE", 0.7),
    "flux1_dev": ("FlowSDE", 0.9),
    "sd15": ("DDIM", 1.0),
    "sdxl": ("DDIM", 1.0),
}
"""What the public code draws noise by, for each model (METHOD; SDXL as DDPO's SD 1.4)."""
AEGPO = ROOT / "configs/overlays/aegpo.yaml"
"""The recipe of the policy gradient on Shapes, over which the methods are laid there."""
SELECTOR, ALLOCATOR, DATA = "model.step_selector", "model.allocator", "data"


@dataclass
class Pair:
    """An overlay on a model: its flat config, the base's, and what was looked at."""

    name: str
    model: str
    now: dict[str, Any]
    base: dict[str, Any]
    own: dict[str, Any]
    seen: set[str] = field(default_factory=set)

    def get(self, key: str) -> Any:
        self.seen.add(key)
        if key in self.now:
            return self.now[key]
        inside = {k[len(key) + 1 :]: v for k, v in self.now.items() if k.startswith(key + ".")}
        assert inside, f"there is no {key}"
        self.seen |= {f"{key}.{k}" for k in inside}
        return inside

    def cls(self, key: str) -> str | None:
        """The name of the class that stands at a key."""
        self.seen.add(key)
        path = self.now.get(f"{key}.class_path")
        return path.rpartition(".")[2] if path else None

    def same(self, *keys: str) -> bool:
        return all(self._below(self.now, key) == self._below(self.base, key) for key in keys)

    def callbacks(self) -> dict[str, dict[str, Any]]:
        """Those that the overlay adds, by class."""
        self.seen.add("trainer.callbacks+")
        return {
            one["class_path"].rpartition(".")[2]: one.get("init_args", {})
            for one in self.own.get("trainer", {}).get("callbacks+", [])
        }

    def without_probe(self) -> bool:
        self.seen.add("trainer.without_callbacks")
        gone = self.own.get("trainer", {}).get("without_callbacks", [])
        return set(gone) == {"EntropyProbe", "PromptReweighter"}

    @staticmethod
    def _below(tree: dict[str, Any], key: str) -> dict[str, Any]:
        return {k: v for k, v in tree.items() if k == key or k.startswith(key + ".")}


def is_selector(pair: Pair, name: str, **arguments: Any) -> bool:
    wrong = [k for k, v in arguments.items() if pair.get(f"{SELECTOR}.{k}") != v]
    return pair.cls(SELECTOR) == name and not wrong


def no_kl(pair: Pair) -> bool:
    objective = pair.now.get("model.objective.kl_coeff", 0)
    pair.seen |= {"model.objective.kl_coeff"}
    return pair.get("model.kl_coeff") == 0 and objective == 0


def images(pair: Pair, low: int, high: int) -> bool:
    return pair.cls(ALLOCATOR) == "MedianSplitAllocator" and (
        (pair.get(f"{ALLOCATOR}.low"), pair.get(f"{ALLOCATOR}.high")) == (low, high)
    )


def of_the_base(pair: Pair, listed: str) -> bool:
    """Whether all that a header leaves to the base config is the base's."""
    keys = {
        "SDE and noise": ("model.sde", f"{SELECTOR}.eta"),
        "T": ("model.num_steps", "model.evaluation_steps"),
        "clip": ("model.clip_range",),
        "updates": ("model.updates_per_epoch", "model.inner_epochs"),
        "guidance": ("model.unguided", "model.policy"),
    }
    named = [key for name, key in keys.items() if re.search(rf"\b{name}\b", listed)]
    assert named, f"the base config's {listed!r} is unknown to this test"
    return pair.same(*(one for some in named for one in some))


def control(name: str, phrase: str, **arguments: Any) -> tuple[str, Callable[[Pair, Any], bool]]:
    def check(pair: Pair, _: Any) -> bool:
        found = pair.callbacks()["ControlledEntropy"]["control"]
        return (
            found["class_path"].rpartition(".")[2] == name
            and (found.get("init_args", {}) == arguments)
            and not pair.without_probe()
        )

    return phrase, check


CLAIMS: list[tuple[str, Callable[[Pair, Any], bool]]] = [
    # How many images, and of which prompts.
    (
        r"\b12 images|the splits of branch_grpo",
        lambda p, _: (
            p.cls(ALLOCATOR) == "UniformAllocator" and p.get(f"{ALLOCATOR}.images_per_prompt") == 12
        ),
    ),
    (r"\b8 or 16 images|16 images by four splits or 8", lambda p, _: images(p, 8, 16)),
    (
        r"[Pp]rompts drawn\s+uniformly|drawn alike|drawn uniformly|uniform draws",
        lambda p, _: p.get("data.alpha") == 0,
    ),
    (
        r"[Pp]rompts drawn by ΔEntropy|draws the prompts|drawn more often|, and the draws,",
        lambda p, _: p.get("data.alpha") > 0 and not p.without_probe(),
    ),
    (r"no probe|No probe", lambda p, _: p.without_probe() and p.get("data.alpha") == 0),
    # Where noise is drawn, and how much.
    (
        r"[Nn]oise at every step|[Ee]very step(?: but the last)? explores|all steps but the last",
        lambda p, _: is_selector(
            p, "AllSteps" if p.cls(SELECTOR) != "FixedSplits" else "FixedSplits"
        ),
    ),
    (r"constant noise(?: 0\.3)?", lambda p, _: p.cls("model.sde") == "DanceSDE"),
    (
        r"The paper's: (?:constant noise )?0\.3",
        lambda p, _: p.cls("model.sde") == "DanceSDE" and p.get(f"{SELECTOR}.eta") == 0.3,
    ),
    (
        r"(?<!\()Flow-SDE at (\d\.\d)",
        lambda p, m: p.cls("model.sde") == "FlowSDE" and p.get(f"{SELECTOR}.eta") == float(m[1]),
    ),
    (
        r"those of the public code \(Flow-SDE at 0\.7\s+and 0\.9\).*DDIM at 1;",
        lambda p, _: (p.cls("model.sde"), p.get(f"{SELECTOR}.eta")) == NOISE[p.model],
    ),
    (r"the base config's noise", lambda p, _: p.same("model.sde", f"{SELECTOR}.eta")),
    (r"The base config's: ([^.]*)", lambda p, m: of_the_base(p, m[1])),
    (
        r"four highest steps|(?<!first )four steps explore|[Tt]he four steps|"
        r"peaks of Entropy|entropy peaks explore|the next two draw noise",
        lambda p, _: (
            p.cls(SELECTOR) in ("EntropyPeaks", "NoiseEntropy") and p.get(f"{SELECTOR}.top_k") == 4
        ),
    ),
    (
        r"at four of them, those whose gradient two halves of the batch agree on",
        lambda p, _: is_selector(p, "AgreementSteps", top_k=4),
    ),
    (r"one iteration in ten tries another", lambda p, _: p.get(f"{SELECTOR}.explore") == 0.1),
    (r"closed form of the schedule", lambda p, _: p.cls(SELECTOR) == "NoiseEntropy"),
    (
        r"first four steps explore|fixed steps",
        lambda p, _: is_selector(p, "FixedSteps", steps=[0, 1, 2, 3]),
    ),
    (r"four steps at random", lambda p, _: is_selector(p, "RandomSteps", num=4)),
    (r"one noisy step", lambda p, _: is_selector(p, "RandomSteps", num=1)),
    (
        r"two steps within the first five",
        lambda p, _: is_selector(p, "RandomWindow", width=2, end=5),
    ),
    (
        r"window that moves from noise to data.*: four steps, stride 1",
        lambda p, _: is_selector(p, "SlidingWindow", width=4, stride=1),
    ),
    (
        r"20 iterations at a position",
        lambda p, _: p.get(f"{SELECTOR}.iterations_per_position") == 20,
    ),
    (
        r"splits at steps 0, 2, 4 into 2 x 2 x 3|the splits of branch_grpo",
        lambda p, _: is_selector(p, "FixedSplits", splits=[0, 2, 4], factors=[2, 2, 3]),
    ),
    (r"window is steps 0 and 1", lambda p, _: p.get(f"{SELECTOR}.explore") == [0, 1]),
    (r"1/17 \(s = 4\)", lambda p, _: p.get("model.split_scale") == 4),
    (
        r"[Bb]inary splits at the four|splits on 3 roots",
        lambda p, _: is_selector(p, "EntropyPeaks", branching=2),
    ),
    (
        r"batch's mean curve|averaged over the batch|mean of the batch",
        lambda p, _: p.get(f"{SELECTOR}.scope") == "batch",
    ),
    (
        r"share their starting noise|one starting noise(?! and part)",
        lambda p, _: p.get("model.shared_start") is True,
    ),
    (
        r"drawn by the\s+plain ODE",
        lambda p, _: (p.cls("model.sde"), p.cls(SELECTOR)) == ("ODE", "NoSteps"),
    ),
    # What rewards become.
    (
        r"global deviation|deviation\s+of\s+the\s+whole\s+iteration",
        lambda p, _: p.get("model.advantage.scale") == "global",
    ),
    (r"the group's own deviation", lambda p, _: p.get("model.advantage.scale") == "group"),
    (
        r"rewards shuffled inside their group",
        lambda p, _: p.cls("model.advantage") == "ShuffledRewards",
    ),
    (
        r"compared (?:with those of their own|per) prompt and depth|depth-wise normalization",
        lambda p, _: p.cls("model.credit") == "DepthCredit",
    ),
    (r"60 % of the steps", lambda p, _: p.get("model.pruning.keep") == 0.6),
    # What is trained on.
    (
        r"16 images of each prompt are drawn",
        lambda p, _: (
            p.cls(ALLOCATOR) == "UniformAllocator" and p.get(f"{ALLOCATOR}.images_per_prompt") == 16
        ),
    ),
    (
        r"the extremes of their group, 8 images",
        lambda p, _: p.cls("model.selection") == "Extremes" and p.get("model.selection.keep") == 8,
    ),
    (
        r"correlation of 0\.85 .* one iteration in 20",
        lambda p, _: (
            p.cls("model.previews") == "Previews"
            and (p.get("model.previews.bound"), p.get("model.previews.every_n_iterations"))
            == (0.85, 20)
        ),
    ),
    # What is minimized.
    (
        r"weighted\s+by their noise|weighs a step by its noise",
        lambda p, _: p.cls("model.transition_weight") == "StdWeight",
    ),
    (r"the ratio, the weight 1/dt", lambda p, _: p.cls("model.transition_weight") == "RatioNorm"),
    (
        r"std over\s+\|d mean / d prediction\|",
        lambda p, _: p.cls("model.transition_weight") == "SensitivityWeight",
    ),
    (r"\bno KL", lambda p, _: no_kl(p)),
    (
        r"weighs the KL as the public code",
        lambda p, _: p.get("model.kl_normalization") == "diffusion",
    ),
    (r"(?<!\()\bclip (\d\S*e-\d)", lambda p, m: p.get("model.clip_range") == float(m[1])),
    (r"two updates", lambda p, _: p.get("model.updates_per_epoch") == 2),
    (
        r"\bbeta 1\b",
        lambda p, _: p.get(f"model.{'credit' if p.cls('model.credit') else 'objective'}.beta") == 1,
    ),
    (r"advantages up to 5", lambda p, _: p.get("model.objective.advantage_clip") == 5),
    (
        r"min\(0\.001 i, 0\.5\)",
        lambda p, _: (
            [p.get(f"model.objective.decay_{k}") for k in ("rate", "max", "start")]
            == [0.001, 0.5, 0]
        ),
    ),
    (
        r"generalized Huber weights, clip 1, advantages up to 5 that count as 1",
        lambda p, _: (
            [p.get(f"model.objective.{k}") for k in ("weighting", "clip_range", "advantage_clip")]
            == ["generalized_huber", 1, 5]
        ),
    ),
    (
        r"each of equal parts of the schedule's first 90 %",
        lambda p, _: (
            p.get("model.objective.levels") == "stratified"
            and list(p.get("model.objective.level_range")) == [0, 0.9]
        ),
    ),
    (
        r"KL 0\.003 to the base and 1 to an average of the policy with decay min\(0\.001 i, 0\.3\)",
        lambda p, _: (
            [
                p.get(f"model.objective.{k}")
                for k in ("kl_coeff", "ema_kl_coeff", "ema_decay_rate", "ema_decay_max")
            ]
            == [0.003, 1, 0.001, 0.3]
        ),
    ),
    (
        r"gradients of two halves of the batch agree at each fifth",
        lambda p, _: (
            p.cls("model.objective.levels") == "LevelAgreement"
            and p.get("model.objective.levels.parts") == 5
        ),
    ),
    (
        r"\bAWM\b",
        lambda p, _: (
            p.cls("model.objective") == "AWM" and p.get("model.objective.anchor_coeff") == 0
        ),
    ),
    (r"is 1e-5 per dimension", lambda p, _: p.get("model.divergence_bound") == 1e-5),
    (r"no classifier-free guidance", lambda p, _: p.get("model.unguided") is True),
    (r"learning rate 3e-4", lambda p, _: p.get("model.optimizer.lr") == 3e-4),
    (r"4 noise levels", lambda p, _: p.get("model.objective.times_per_image") == 4),
    (
        r"levels at random from the whole schedule",
        lambda p, _: (
            p.get("model.objective.levels") == "random"
            and list(p.get("model.objective.level_range")) == [0, 1]
        ),
    ),
    (
        r"Ours: the levels \(",
        lambda p, _: list(p.get("model.objective.level_range")) == [0, 1],
    ),
    (
        r"ODE of the policy itself",
        lambda p, _: [p.get(f"model.objective.decay_{k}") for k in ("rate", "max")] == [1e-3, 0],
    ),
    (
        r"objective\s+of DiffusionNFT",
        lambda p, _: (
            p.get("model.objective.levels") == "selected"
            and p.get("model.objective.times_per_image") == 4
        ),
    ),
    (
        r"DiffusionNFT",
        lambda p, _: (
            (p.cls("model.objective"), p.cls("model.transition_weight")) == ("NFT", None)
            and p.get("model.objective.anchor_coeff") == 0
        ),
    ),
    # Callbacks.
    control("ShuffledEntropy", r"true entropies in random order"),
    control("SwappedEntropy", r"reading of another prompt"),
    control("InvertedEntropy", r"lowest entropies count as the highest"),
    control("RandomEntropy", r"random numbers in place of entropy"),
    control("RandomEntropy", r"8 or 16 images at random", signals="delta"),
    control("WithinCategory", r"share of its category's mean"),
    control("CategoryOnly", r"every prompt gets its category's mean"),
    (r"spread of the prompt's rewards", lambda p, _: p.callbacks() == {"RewardSpread": {}}),
    (
        r"running mean.* over the last ten or so",
        lambda p, _: p.callbacks() == {"RunningEntropy": {"decay": 0.9}},
    ),
    (
        r"Every 10 iterations 4 prompts x 8 images",
        lambda p, _: (
            p.callbacks()["TrialSpread"]
            == {"images": 8, "prompts": 4, "every_n_iterations": 10, "decay": 0.9}
        ),
    ),
    (
        r"not split for 40 iterations",
        lambda p, _: p.callbacks() == {"TreeSpread": {"decay": 0.9, "revisit_every": 40}},
    ),
    (
        r"Four trajectories",
        lambda p, _: (
            [p.own["trainer"]["callbacks"][0]["init_args"][k] for k in ("source", "trajectories")]
            == ["rollouts", 4]
        ),
    ),
    (r"decay 0\.9\)", lambda p, _: p.callbacks() == {"EMA": {"decay": 0.9}}),
    (r"8-bit moments", lambda p, _: p.cls("model.optimizer") == "AdamW8bit"),
    (
        r"All GPUs",
        lambda p, _: (
            p.own["trainer"].items() >= {"accelerator": "gpu", "devices": "auto"}.items()
            and p.own.keys() == {"trainer"}
        ),
    ),
    (r"spread over them", lambda p, _: p.own["trainer"]["strategy"] == "fsdp2"),
]

UNSAID = {
    "ddp": {"trainer"},
    "fsdp2": {"trainer"},
    "aegpo": {  # and all of the recipe that is Shapes', which test_configs looks at
        *(f"{SELECTOR}.mode", "trainer"),
        *(
            f"model.{name}"
            for name in ("policy", "advantage", "selection", "sampler", "warmup", "objective")
        ),
        *(f"model.{name}" for name in ("optimizer", "lr_scheduler", "num_steps")),
        *("model.evaluation_steps", "data.batch_size", "data.batches_per_epoch"),
    },
    "rollout_entropy": {"trainer.callbacks"},
    "shapes_clip_reward": {"model.reward", "model.evaluation_rewards"},
    "diffusion_nft": {f"{SELECTOR}"},
    "previews": {f"{SELECTOR}"},
    "agreement_nft": {f"{SELECTOR}", "model.objective.times_per_image"},
    "awm": {f"{SELECTOR}", "model.transition_weight"},
}
"""What an overlay sets that its header tells in words of its own; looked at in other tests."""


@functools.cache
def parser() -> Any:
    class Done(Exception):
        pass

    class Parser(AEGPOCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise Done(parser)

    with pytest.raises(Done) as done:
        Parser(["fit"])
    return done.value.args[0]._subcommands_action._name_parser_map["fit"]


def parsed(*files: Path) -> dict[str, Any]:
    """What the command line makes of some files, without `init_args` in the keys.

    The trainer's part is left out: no model changes what an overlay says there, and to parse it
    takes as long as the rest.
    """
    contents = [yaml.safe_load(file.read_text()) for file in files]
    texts = [yaml.safe_dump({k: v for k, v in one.items() if k != "trainer"}) for one in contents]
    config = parser().parse_args([word for text in texts for word in ("--config", text)]).as_dict()
    kept = {key: config[key] for key in ("model", "data")}
    return {key.replace("init_args.", ""): value for key, value in flat(kept).items()}


def on(model: Path) -> list[Path]:
    return [model, AEGPO] if model == SHAPES else [model, ROOT / "configs/rewards/jpeg.yaml"]


@functools.cache
def base(model: Path) -> dict[str, Any]:
    return parsed(*on(model))


def header(file: Path) -> str:
    lines = file.read_text().splitlines()
    return " ".join(line[1:].strip() for line in lines if line.startswith("#"))


def uniform_method(pair: Pair, said: list[str]) -> bool:
    """Whether what takes away the probe is a baseline, in so far as its header is silent.

    Prompts are drawn alike, and transitions count alike.
    """
    if not pair.without_probe() or pair.get("data.alpha") != 0:
        return False
    weighted = any(word in claim for claim in said for word in ("weighs a step", "1/dt", "NFT"))
    chosen = "model.transition_weight.class_path" in {
        key.replace("init_args.", "") for key in flat(pair.own)
    }
    return weighted or not chosen or pair.cls("model.transition_weight") == "EqualWeight"


def models_of(file: Path) -> list[Path]:
    """The models that an overlay is laid over."""
    if "ALL_COMBINATIONS" in os.environ:
        return MODELS
    return [SHAPES, (FLUX, SDXL, SD35, SD15)[OVERLAYS.index(file) % 4]]


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.stem)
def test_what_a_header_says_holds_over_every_model(file: Path) -> None:
    text, own = header(file), yaml.safe_load(file.read_text())
    bundled = "For the bundled model alone" in text or file.stem == "shapes_clip_reward"
    found = [(claim, check, match) for claim, check in CLAIMS for match in re.finditer(claim, text)]
    assert found or file.stem == "shapes_clip_reward"
    for model in MODELS[:1] if bundled else models_of(file):
        pair = Pair(file.stem, model.stem, parsed(*on(model), file), base(model), own)
        wrong = [claim for claim, check, match in found if not check(pair, match)]
        assert not wrong, f"{file.name} over {model.name} says so, and it is not"
        if "without_callbacks" in own.get("trainer", {}):
            assert uniform_method(pair, [claim for claim, _, _ in found])
        named = {key.replace("init_args.", "").removesuffix(".class_path") for key in flat(own)}
        told = UNSAID.get(file.stem, set())
        unsaid = {
            key
            for key in named - pair.seen - told
            if not any(key.startswith(f"{one}.") for one in told)
            and not any(one.startswith(f"{key}.") for one in pair.seen)
        }
        assert not unsaid, f"{file.name} sets what its header does not tell"


@pytest.mark.parametrize("name", ["aegpo_nft", "agreement_nft", "awm", "diffusion_nft", "previews"])
def test_an_objective_laid_over_the_quickstart_keeps_nothing_of_its_own(name: str) -> None:
    """What an overlay leaves out would stay the quickstart's, even in another class."""
    file = ROOT / f"configs/overlays/{name}.yaml"
    over, alone = parsed(SHAPES, file), parsed(SHAPES, AEGPO, file)
    found = [
        {key: value for key, value in one.items() if key.startswith("model.objective.")}
        for one in (over, alone)
    ]
    assert found[0] == found[1] and found[0]
