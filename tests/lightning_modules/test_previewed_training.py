"""Training on rollouts that previews end early: what is spent, counted, and known when resumed."""

import pytest
import torch
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps, NoSteps
from aegpo.objectives import NFT
from aegpo.sde import ODE
from aegpo.selection import ByAdvantage, Extremes, Previews
from callbacks.cost_logger import CostLogger
from callbacks.rollout_checkpoint import RolloutCheckpoint
from lightning_modules.commands.plan.dry_run import dry_run

PROMPTS, SIZE, KEPT, STEPS = 4, 6, 2, 5


def module_of(folder, **settings):
    arguments = {
        "step_selector": NoSteps(),
        "objective": NFT(times_per_image=2, kl_coeff=0.0),
        "selection": Extremes(keep=KEPT, split="even"),
        # Of a random pipeline any correlation will do, from the second iteration on.
        "previews": Previews(bound=1e-6, every_n_iterations=3),
        "allocator": UniformAllocator(SIZE),
        "sde": ODE(),
        "lr": 1e-2,
    }
    return tiny_module(folder, **arguments | settings)


def train(folder, pipeline, epochs, ckpt_path=None):
    folder.mkdir(exist_ok=True)
    module = module_of(pipeline)
    stops = []
    begin = module.previews.begin

    def note(*arguments):
        previewed = begin(*arguments)
        stops.append((previewed.watches, None if previewed.watches else module.previews.step()))
        return previewed

    module.previews.begin = note
    callbacks = [CostLogger(), RolloutCheckpoint(dirpath=str(folder / "checkpoints"))]
    trainer = tiny_trainer(
        folder, callbacks, max_epochs=epochs, limit_val_batches=0, enable_checkpointing=True
    )
    trainer.fit(module, tiny_data(folder), ckpt_path=ckpt_path, weights_only=True)
    return module, trainer.callback_metrics, stops


def trained(module):
    return torch.cat([p.detach().flatten() for p in module.policy.trainable_parameters()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_sd3_folder):
    return train(tmp_path_factory.mktemp("previews"), tiny_sd3_folder, 2)


def test_evaluations_and_rewards_are_those_of_what_was_drawn(whole):
    module, logged, stops = whole
    assert [watches for watches, _ in stops] == [True, False, False, True]
    steps = [step for watches, step in stops if not watches]
    assert all(step is not None and step < STEPS - 1 for step in steps)
    images = PROMPTS * SIZE
    drawn = 2 * images * STEPS
    drawn += sum(images * (k + 1) + PROMPTS * KEPT * (STEPS - 1 - k) for k in steps)
    trained_on = PROMPTS * KEPT * 2  # levels
    counts = module.policy.evaluations.counts
    old = 3.5 * trained_on  # of theta_old, but for the very first update
    assert counts["rollout"] == drawn + old
    assert counts["update"] == 4 * trained_on * 3
    assert logged["cost/images"] == 2 * images + 2 * PROMPTS * KEPT
    assert logged["cost/rewards"] == logged["cost/images"] + 2 * images * (STEPS - 1) + 2 * images
    assert logged["cost/images_trained"] == 4 * PROMPTS * KEPT
    assert logged["rollout/previews"] == images * (STEPS - 1)
    found = [float(logged[f"previews/correlation_{step}"]) for step in range(STEPS - 1)]
    assert found == pytest.approx(module.previews.correlation.tolist(), abs=1e-6)
    assert float(logged["previews/step"]) == module.previews.step()


def test_resumed_it_stops_and_learns_as_uninterrupted(tmp_path, tiny_sd3_folder, whole):
    train(tmp_path, tiny_sd3_folder, 1)
    resumed, _, stops = train(tmp_path, tiny_sd3_folder, 2, ckpt_path="last")
    module, _, expected = whole
    assert stops == expected[2:]
    assert torch.equal(trained(resumed), trained(module))
    assert torch.equal(resumed.previews.correlation, module.previews.correlation)


def test_the_plan_counts_every_rollout_to_its_end_and_leaves_the_module_alone(tiny_sd3_folder):
    module = module_of(tiny_sd3_folder)
    previews = module.previews
    planned = dry_run(module, PROMPTS, [0, 1], set())
    assert planned.images.low == PROMPTS * SIZE and planned.trained.high == PROMPTS * KEPT
    assert module.previews is previews and len(previews.correlation) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": None, "step_selector": FixedSteps([0])}, "FixedSteps makes steps stochas"),
        ({"selection": None}, "AllImages is not aegpo.selection.Extremes"),
        ({"selection": ByAdvantage(keep=2)}, "ByAdvantage is not aegpo.selection.Extremes"),
        ({"overlap_chunks": 2}, "overlap_chunks=2 draws it in parts"),
    ],
)
def test_what_cannot_go_together_is_refused_early(tiny_sd3_folder, settings, words):
    with pytest.raises(ValueError, match=f"model.previews .*{words}"):
        module_of(tiny_sd3_folder, **settings)
