"""DiffusionNFT in the training step: deterministic rollouts, theta_old, costs, resumption."""

from functools import partial

import pytest
import torch
from tiny_training import Redness, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import UniformAllocator
from aegpo.exploration import AllSteps, FixedSteps, NoSteps
from aegpo.noise import KeyedNoise
from aegpo.objectives import (
    AWM,
    NFT,
    DepthCredit,
    LevelAgreement,
    RandomStepPruning,
    StdWeight,
)
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.rollout import deterministic_rollout
from aegpo.samplers import AdamsBashforth, UniPC
from aegpo.sde import ODE
from callbacks.cost_logger import CostLogger
from callbacks.rollout_checkpoint import RolloutCheckpoint
from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.commands.doctor.doctor import first_log_ratio
from lightning_modules.training.decision import Decision

SETTINGS = {"beta": 1.0, "times_per_image": 2, "decay_rate": 1.0, "decay_max": 0.6}


def nft_module(folder, nft=None, **settings):
    settings = {"allocator": UniformAllocator(3), "lr": 1e-2} | settings
    module = tiny_module(
        folder, step_selector=NoSteps(), objective=NFT(**SETTINGS | (nft or {})), **settings
    )
    module.sde = ODE()
    return module


def fit(tmp_path, module, callbacks=(), ckpt_path=None, data=None, **settings):
    settings = {"max_epochs": 1, "limit_val_batches": 0} | settings
    trainer = tiny_trainer(tmp_path, list(callbacks), **settings)
    trainer.fit(module, data or tiny_data(tmp_path), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def trained(module):
    return torch.cat([p.detach().flatten() for p in module.policy.trainable_parameters()])


@pytest.mark.parametrize("kl_coeff", [0.0, 0.1])
def test_costs_and_what_is_logged(tmp_path, tiny_sd3_folder, kl_coeff):
    module = nft_module(tiny_sd3_folder, {"kl_coeff": kl_coeff})
    logged = fit(tmp_path, module, [CostLogger()]).callback_metrics
    counts = module.policy.evaluations.counts
    images = 2 * 4 * 3  # iterations, prompts, images of each
    # The steps, and theta_old's predictions, which are theta's own in the very first update.
    assert counts["rollout"] == images * 5 + images * 2 - images // 2
    assert counts["update"] == images * 2 * 3
    assert counts["reference"] == (images * 2 if kl_coeff else 0)
    assert logged["cost/evaluations"] == sum(
        counts[name] for name in ("rollout", "update", "reference")
    )
    assert logged["update/transitions"] == 4 * 3 * 2
    assert float(logged["update/loss"]) > 0 and float(logged["update/gradient_norm"]) > 0
    assert ("update/kl" in logged) == (kl_coeff > 0)
    assert not [name for name in logged if name.startswith("ratio/")]
    assert not bool(module.last.schedule.stochastic.any())
    # The group's images differ by their start.
    latents = module.last.tree.latents.flatten(1).reshape(4, 3, -1)
    assert all(float(torch.pdist(group).min()) > 0.1 for group in latents)


def test_unguided_draws_and_learns_as_a_policy_without_guidance(tmp_path, tiny_sd3_folder):
    def weights(**policy):
        unguided = "guidance_scale" in policy
        factory = partial(
            StableDiffusion3, str(tiny_sd3_folder), lora_rank=4, max_sequence_length=4, **policy
        )
        module = nft_module(tiny_sd3_folder, policy=factory, unguided=unguided)
        fit(tmp_path, module, limit_val_batches=1)
        return trained(module), dict(module.policy.evaluations.counts)

    guided, plain = weights(guidance_scale=4.5), weights()
    assert torch.equal(guided[0], plain[0]) and float(plain[0].abs().sum()) > 0
    assert guided[1] == plain[1] and plain[1]["validation"] > 0


def test_selected_levels_leave_the_rollout_without_noise(tmp_path, tiny_sd3_folder):
    objective = NFT(**SETTINGS, levels="selected", kl_coeff=0.0)
    module = tiny_module(
        tiny_sd3_folder,
        step_selector=FixedSteps([1, 2]),
        allocator=UniformAllocator(3),
        objective=objective,
    )
    logged = fit(tmp_path, module, [CostLogger()]).callback_metrics
    assert len(module.last.tree.transitions) == 0
    assert module.last.schedule.stochastic[0].nonzero().flatten().tolist() == [1, 2]
    assert logged["update/transitions"] == 4 * 3 * 2
    assert float(logged["update/gradient_norm"]) > 0
    with pytest.raises(ValueError, match="shared_start=true"):
        tiny_module(
            tiny_sd3_folder,
            step_selector=FixedSteps([1, 2]),
            objective=NFT(levels="selected"),
            shared_start=True,
        )


def test_the_rollout_is_drawn_by_theta_old(tmp_path, tiny_sd3_folder):
    module = nft_module(tiny_sd3_folder)
    fit(tmp_path, module, max_epochs=2)
    batch, sizes = module.last.batch, module.last.group_sizes
    cond, rows = module.encode(batch), torch.arange(len(batch))
    decision = Decision(module.noise.at(9), module.last.schedule, sizes, rows)
    drawn = module.explore(batch, cond, decision).tree.latents
    own = {name: p.clone() for name, p in module.policy.trainable_state_dict().items()}
    old = module.objective.state_dict()["behavior"]
    assert old.keys() == own.keys()
    module.objective.load_state_dict({})  # without a theta_old of its own theta draws
    by_theta = module.explore(batch, cond, decision).tree.latents
    assert not torch.equal(drawn, by_theta)
    module.policy.load_trainable_state_dict(old)
    module.objective.load_state_dict({})
    assert torch.equal(drawn, module.explore(batch, cond, decision).tree.latents)


def test_theta_old_is_the_decayed_mean_of_the_iterations(tmp_path, tiny_sd3_folder):
    module = nft_module(tiny_sd3_folder, {"decay_rate": 0.3})
    iterates = []
    step = module.objective.end_iteration
    module.configure_model()
    start = trained(module).clone()

    def note(policy, iteration):
        iterates.append((iteration, trained(module).clone()))
        step(policy, iteration)

    module.objective.end_iteration = note
    fit(tmp_path, module, max_epochs=2)
    expected = start
    for iteration, theta in iterates:
        decay = min(0.3 * (iteration + 1), 0.6)
        expected = decay * expected + (1 - decay) * theta
    assert [iteration for iteration, _ in iterates] == [0, 1, 2, 3]
    old = torch.cat([p.flatten() for p in module.objective.state_dict()["behavior"].values()])
    torch.testing.assert_close(old, expected)
    assert float((old - trained(module)).abs().max()) > 1e-4


def run(tmp_path, folder, name, max_epochs, ckpt_path=None, objective=None):
    module = nft_module(folder)
    module.objective = NFT(**SETTINGS) if objective is None else objective()
    checkpoint = RolloutCheckpoint(dirpath=str(tmp_path / name))
    settings = {"max_epochs": max_epochs, "enable_checkpointing": True}
    fit(tmp_path, module, [checkpoint], ckpt_path, **settings)
    return module


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, tiny_sd3_folder):
    whole = run(tmp_path, tiny_sd3_folder, "whole", 3)
    run(tmp_path, tiny_sd3_folder, "halves", 2)
    file = tmp_path / "halves" / "last.ckpt"
    resumed = run(tmp_path, tiny_sd3_folder, "resumed", 3, ckpt_path=file)
    assert torch.equal(trained(resumed), trained(whole))
    old, own = (module.objective.state_dict()["behavior"] for module in (resumed, whole))
    assert all(torch.equal(old[name], own[name]) for name in own)
    # It is theta_old in the checkpoint that makes it so.
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["aegpo"]["objective"]
    torch.save(checkpoint, file)
    forgetful = run(tmp_path, tiny_sd3_folder, "forgetful", 3, ckpt_path=file)
    assert not torch.equal(trained(forgetful), trained(whole))


def everything_kept():
    """AWM with a lagging policy, a pull to an average, and levels that it learns."""
    return AWM(
        times_per_image=2,
        levels=LevelAgreement(parts=2, prior=0.5),
        ema_decay_rate=0.3,
        decay_rate=0.3,
        decay_max=0.5,
    )


def test_awm_resumes_with_its_average_and_what_it_knows_of_levels(tmp_path, tiny_sd3_folder):
    whole = run(tmp_path, tiny_sd3_folder, "whole", 2, objective=everything_kept)
    run(tmp_path, tiny_sd3_folder, "half", 1, objective=everything_kept)
    file = tmp_path / "half" / "last.ckpt"
    resumed = run(tmp_path, tiny_sd3_folder, "resumed", 2, file, everything_kept)
    assert torch.equal(trained(resumed), trained(whole))
    kept, expected = (module.objective.state_dict() for module in (resumed, whole))
    assert kept.keys() == {"behavior", "average", "agreement", "lag"}
    assert kept["lag"] == 0.5 and kept["agreement"]["measured"] == 4
    for name in ("behavior", "average"):
        assert all(torch.equal(kept[name][key], expected[name][key]) for key in expected[name])
    assert torch.equal(kept["agreement"]["sum"], expected["agreement"]["sum"])
    assert float(kept["agreement"]["sum"].abs().min()) > 0


def test_training_raises_a_reward_on_the_bundled_model(tmp_path):
    """Not on the random pipeline: its velocity is no mean that images could move."""
    module = AEGPOModule(
        policy=partial(
            StableDiffusion3,
            "shapes",
            lora_rank=8,
            lora_targets=["attention", "feed_forward"],
            sigma_spacing="uniform",
            max_sequence_length=0,
        ),
        reward=Redness(),
        sde=ODE(),
        step_selector=NoSteps(),
        allocator=UniformAllocator(6),
        optimizer=partial(torch.optim.AdamW, lr=4e-3),
        objective=NFT(times_per_image=2, kl_coeff=0.0),
        num_steps=6,
    )
    data = tiny_data(tmp_path, val_images=32, val_batch_size=32)
    trainer = tiny_trainer(tmp_path, [], max_epochs=6, check_val_every_n_epoch=6)
    before = trainer.validate(module, data, verbose=False)[0]["val/redness"]
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["val/redness"]) > before + 0.01


class HalfBroken(Redness):
    """Fails on every other image of a call."""

    def __call__(self, images, prompts, metadata):
        """Redness, or not a number."""
        scores = super().__call__(images, prompts, metadata)
        scores[::2] = float("nan")
        return scores


@pytest.mark.filterwarnings("ignore:reward 'half_broken'")
def test_failed_rewards_are_not_trained_on(tmp_path, tiny_sd3_folder):
    module = nft_module(tiny_sd3_folder, reward=HalfBroken(), max_missing=0.6)
    logged = fit(tmp_path, module, limit_train_batches=1).callback_metrics
    assert logged["update/transitions"] == 12 / 2 * 2
    assert bool(trained(module).isfinite().all())


def test_half_precision_and_inner_epochs(tmp_path, tiny_sd3_folder):
    module = nft_module(tiny_sd3_folder, inner_epochs=2)
    logged = fit(tmp_path, module, precision="bf16-mixed").callback_metrics
    assert "ratio/rollout_max_dev" not in logged
    assert logged["update/transitions"] == 2 * 24
    assert float(logged["update/gradient_norm"]) > 0


def test_stochastic_rollouts_train_too(tmp_path, tiny_sd3_folder):
    """The objective asks for images, whichever sampler drew them."""
    module = tiny_module(
        tiny_sd3_folder, step_selector=FixedSteps([0, 1]), objective=NFT(times_per_image=2)
    )
    logged = fit(tmp_path, module, limit_train_batches=1).callback_metrics
    assert float(logged["update/gradient_norm"]) > 0


def test_the_doctor_finds_a_gradient_and_no_ratio(tmp_path, tiny_sd3_folder):
    module = nft_module(tiny_sd3_folder)
    found = []

    def step(batch, batch_idx):
        found.append(first_log_ratio(module, batch))
        found.append(max(float(p.grad.abs().max()) for p in module.policy.trainable_parameters()))
        module.zero_grad()

    module.training_step = step
    fit(tmp_path, module, limit_train_batches=1)
    assert found[0] is None and found[1] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transition_weight": StdWeight()}, "model.transition_weight belongs to the policy grad"),
        ({"pruning": RandomStepPruning()}, "model.pruning belongs to the policy gradient"),
        ({"credit": DepthCredit()}, "model.credit belongs to the policy gradient"),
        ({"kl_coeff": 0.1}, "model.kl_coeff belongs to the policy gradient"),
        ({"shared_start": True}, "they would all be equal"),
        ({"nft": {"times_per_image": 6}}, "times_per_image=6"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        nft_module("/nowhere", **settings)


def test_the_policy_gradient_refuses_a_rollout_without_log_probs():
    with pytest.raises(ValueError, match="NoSteps makes no step stochastic"):
        tiny_module("/nowhere", step_selector=NoSteps())


def test_a_sampler_draws_the_rollouts_and_held_out_images_stay_the_model_s_own(
    tmp_path, tiny_sd3_folder, caplog
):
    module = nft_module(tiny_sd3_folder, sampler=AdamsBashforth(), num_steps=3, evaluation_steps=5)
    with caplog.at_level("INFO"):
        fit(tmp_path, module, [CostLogger()], limit_val_batches=1, data=tiny_data(tmp_path))
    assert "of 3 steps by AdamsBashforth()," in caplog.text
    images = 2 * 4 * 3
    assert module.policy.evaluations.counts["rollout"] == images * 3 + images * 2 - images // 2
    assert module.policy.evaluations.counts["validation"] == 4 * 5
    batch = module.last.batch
    assert torch.equal(module.draw(batch).latents, by_euler(module, batch, 5))
    module.evaluation_sampler = AdamsBashforth()
    assert not torch.equal(module.draw(batch).latents, by_euler(module, batch, 5))


def by_euler(module, batch, steps):
    noise = KeyedNoise(0).fixed()  # that of held-out images
    return deterministic_rollout(module.policy, batch.prompts, batch.index, steps, noise).latents


def test_a_rollout_is_the_sampler_s(tmp_path, tiny_sd3_folder):
    """Its images are those that the sampler draws from the iteration's own noise."""
    latents = {}
    for sampler in (None, AdamsBashforth()):
        module = nft_module(tiny_sd3_folder, sampler=sampler, lr=0.0)
        fit(tmp_path, module, limit_train_batches=1)
        latents[sampler] = module.last.tree.latents
        batch, noise = module.last.batch, module.noise.at(0)
        again = deterministic_rollout(
            module.policy, batch.prompts, batch.index, 5, noise, 3, sampler=sampler
        )
        assert torch.equal(again.latents, latents[sampler])
    assert not torch.equal(*latents.values())


def test_a_sampler_that_has_no_step_to_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model.sampler=UniPC\(order=2\) has no effect: AllSteps"):
        tiny_module(tmp_path, step_selector=AllSteps(), sampler=UniPC())
    tiny_module(tmp_path, step_selector=FixedSteps([0]), sampler=UniPC())
