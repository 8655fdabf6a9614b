from __future__ import annotations

import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny_pipelines import load_tiny_sd3, tiny_clip_tokenizer
from torch import Tensor

from aegpo import policies
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3

PROMPTS = ["a red circle", "two blue stars", "a square left of one green triangle"]
TEXT = 8  # zero tokens in place of T5


def build(folder: Path, **arguments: object) -> StableDiffusion3:
    arguments = {"lora_rank": 4, "max_sequence_length": TEXT, **arguments}
    return StableDiffusion3(str(folder), **arguments)  # type: ignore[arg-type]


look = contract.shared(build)


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def inputs(policy: StableDiffusion3, n: int = 3) -> tuple[Tensor, Tensor, Conditioning]:
    sigma = torch.linspace(1, 0.2, n)
    return noise(n), sigma, policy.encode([PROMPTS[i % 3] for i in range(n)])


def base_prediction(folder: Path, n: int = 3) -> Tensor:
    """The pipeline's own transformer on the same inputs."""
    pipeline = load_tiny_sd3(folder)
    with torch.no_grad():
        # One text at a time, as the policy does: the last bits depend on the batch.
        encoded = [
            pipeline.encode_prompt(
                [PROMPTS[i % 3]],
                None,
                None,
                do_classifier_free_guidance=False,
                max_sequence_length=TEXT,
            )
            for i in range(n)
        ]
        return pipeline.transformer(
            hidden_states=noise(n),
            timestep=1000 * torch.linspace(1, 0.2, n),
            encoder_hidden_states=torch.cat([embeds for embeds, _, _, _ in encoded]),
            pooled_projections=torch.cat([pooled for _, _, pooled, _ in encoded]),
        ).sample


def shake(policy: StableDiffusion3) -> None:
    """Moves every trainable weight."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_fresh_adapters_change_nothing(tiny_sd3_folder: Path, tiny_sd3_dual_folder: Path) -> None:
    for folder in (tiny_sd3_folder, tiny_sd3_dual_folder):
        policy = build(folder, lora_targets=["attention", "feed_forward"])
        with torch.no_grad():
            assert torch.equal(policy(*inputs(policy)), base_prediction(folder))


def test_reference_is_the_base_after_training_and_leaves_no_trace(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder)
    base = base_prediction(tiny_sd3_folder)
    shake(policy)
    trainable = [id(parameter) for parameter in policy.trainable_parameters()]
    with torch.no_grad():
        trained = policy(*inputs(policy))
        assert (trained - base).abs().max() > 1e-3
        with policy.reference():
            with policy.reference():
                assert torch.equal(policy(*inputs(policy)), base)
            assert torch.equal(policy(*inputs(policy)), base)
        with pytest.raises(KeyError), policy.reference():
            raise KeyError("inside")
        assert torch.equal(policy(*inputs(policy)), trained)
    assert [id(parameter) for parameter in policy.trainable_parameters()] == trainable
    tuners = [part for part in policy.modules() if isinstance(part, BaseTunerLayer)]
    assert tuners and not any(layer.disable_adapters for layer in tuners)


def test_full_finetuning_trains_the_transformer_and_keeps_its_reference(
    tiny_sd3_folder: Path,
) -> None:
    policy = build(tiny_sd3_folder, full_finetuning=True)
    num_weights = sum(1 for _ in policy.transformer.parameters())
    assert len(policy.trainable_parameters()) == num_weights
    names = list(policy.state_dict())
    base = base_prediction(tiny_sd3_folder)
    # The reference is first asked for after training has begun, as on a resume.
    shake(policy)
    with torch.no_grad():
        trained = policy(*inputs(policy))
        with policy.reference(), policy.reference():
            assert torch.equal(policy(*inputs(policy)), base)
            assert policy.attention_layers()[0][1] is not policy.transformer.transformer_blocks[0]
            assert not any(p.requires_grad for p in policy.denoiser.parameters())
        with pytest.raises(KeyError), policy.reference():
            raise KeyError("inside")
        assert policy.denoiser is policy.transformer
        assert torch.equal(policy(*inputs(policy)), trained) and not torch.equal(trained, base)
    assert list(policy.state_dict()) == names, "the reference must stay out of checkpoints"
    assert len(policy.trainable_parameters()) == num_weights


def test_gradients_reach_the_adapters_alone(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder)
    policy(*inputs(policy)).square().mean().backward()
    with_gradient = {name for name, p in policy.named_parameters() if p.grad is not None}
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert with_gradient == trainable
    assert all("lora_" in name and name.startswith("transformer.") for name in trainable)
    # The up-projections start at zero, so only they have a gradient on the first update. The last
    # block's text half is read by nobody, like its missing output projection.
    zero = {n for n, p in policy.named_parameters() if p.grad is not None and not p.grad.any()}
    assert {name for name in trainable if "lora_A" in name} <= zero
    assert any("lora_B" in name for name in trainable - zero)


def test_gradient_checkpointing_changes_no_gradient(tiny_sd3_folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = build(tiny_sd3_folder, gradient_checkpointing=checkpointing).train()
        assert policy.transformer.is_gradient_checkpointing == checkpointing
        shake(policy)
        policy(*inputs(policy)).square().mean().backward()
        gradients.append([p.grad for p in policy.trainable_parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-7)


def test_half_precision_base_keeps_fp32_adapters(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder, dtype="bfloat16")
    assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
    assert policy.vae.dtype == policy.transformer.pos_embed.proj.weight.dtype == torch.bfloat16
    prediction = policy(*inputs(policy))
    assert prediction.dtype == torch.float32
    torch.testing.assert_close(prediction, base_prediction(tiny_sd3_folder), rtol=0, atol=0.05)
    prediction.sum().backward()
    images = policy.decode(noise(2))
    assert images.dtype == torch.float32
    # Trained weights are fp32 whatever the dtype of the frozen ones.
    full = build(tiny_sd3_folder, dtype="bfloat16", full_finetuning=True)
    assert {p.dtype for p in full.trainable_parameters()} == {torch.float32}
    assert full(*inputs(full)).isfinite().all()


def test_autocast_and_guidance(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder, guidance_scale=4.5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = policy(*inputs(policy))
    assert prediction.dtype == torch.float32
    # Rows that were first encoded under autocast are the rows that anybody else gets.
    fresh = build(tiny_sd3_folder, guidance_scale=4.5)
    assert torch.equal(policy.encode(PROMPTS).embeds, fresh.encode(PROMPTS).embeds)


def test_guidance_is_two_predictions(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder, guidance_scale=4.5)
    latents, sigma, cond = inputs(policy)
    assert cond.negative is not None
    with torch.no_grad(), policy.evaluations.charge("probe"):
        guided = policy(latents, sigma, cond)
        conditional = policy.predict(latents, sigma, cond)
        unconditional = policy.predict(latents, sigma, cond.negative)
    expected = unconditional + 4.5 * (conditional - unconditional)
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-6)
    assert (guided - conditional).abs().max() > 1e-3
    assert policy.evaluations.counts["probe"] == 6


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_chunks_do_not_show(tiny_sd3_folder: Path, guidance_scale: float) -> None:
    whole = look(tiny_sd3_folder, guidance_scale=guidance_scale)
    parts = look(tiny_sd3_folder, guidance_scale=guidance_scale, max_batch=3, decode_batch=2)
    with torch.no_grad():
        torch.testing.assert_close(
            whole(*inputs(whole, 7)), parts(*inputs(parts, 7)), rtol=1e-5, atol=1e-6
        )
    torch.testing.assert_close(whole.decode(noise(5)), parts.decode(noise(5)), rtol=1e-5, atol=1e-6)


def count_encoder_rows(policy: StableDiffusion3) -> list[int]:
    rows: list[int] = []
    policy.text_encoders[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def test_each_text_is_encoded_once(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder)
    rows = count_encoder_rows(policy)
    first = policy.encode([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    second = policy.encode([PROMPTS[1], PROMPTS[2]])
    again = policy.train().encode(PROMPTS)
    assert rows == [1, 1, 1]
    assert torch.equal(first.embeds[1], second.embeds[0])
    assert torch.equal(first.embeds[0], first.embeds[2]) and torch.equal(
        again.embeds[2], second.embeds[1]
    )
    assert not first.embeds.requires_grad and first.negative is None


def test_guidance_encodes_the_empty_text_once(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder, guidance_scale=2.0)
    rows = count_encoder_rows(policy)
    cond = policy.encode(PROMPTS[:2])
    policy.encode(PROMPTS)
    assert rows == [1, 1, 1, 1]
    assert cond.negative is not None and len(cond.negative) == len(cond) == 2
    pipeline = load_tiny_sd3(tiny_sd3_folder)
    expected = pipeline.encode_prompt("", None, None, max_sequence_length=TEXT)
    torch.testing.assert_close(cond.negative.embeds[:1], expected[0], rtol=1e-5, atol=1e-6)


def test_mask_marks_words_and_not_padding(tiny_sd3_folder: Path) -> None:
    policy = look(tiny_sd3_folder)
    cond = policy.encode(["a red circle", "a"])
    assert cond.mask is not None and cond.mask.shape == (2, 16 + TEXT) == cond.embeds.shape[:2]
    assert cond.mask.int().argmin(1).tolist() == [5, 3], "start, words, end"
    assert cond.mask.sum(1).tolist() == [5, 3], "no padding and no stand-in for T5"
    layout = policy.token_layout(cond)
    assert (layout.num_image, layout.num_text, layout.image_first) == (16, 16 + TEXT, True)
    assert layout.text_mask is cond.mask


def test_mask_follows_the_longer_tokenization(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder)
    # The second tokenizer does not know "circle" and spells it in six letters.
    policy.pipeline.tokenizer_2 = tiny_clip_tokenizer(words=("a", "red"))
    mask = policy.encode(["a red circle"]).mask
    assert mask is not None and mask.sum().item() == 2 + 2 + 6


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_euler_through_the_policy_is_the_pipeline(
    tiny_sd3_folder: Path, guidance_scale: float
) -> None:
    policy = look(tiny_sd3_folder, guidance_scale=guidance_scale)
    pipeline = load_tiny_sd3(tiny_sd3_folder)
    settings = {
        "num_inference_steps": 5,
        "guidance_scale": guidance_scale,
        "max_sequence_length": TEXT,
        "latents": noise(3),
    }
    expected = pipeline(PROMPTS, output_type="latent", **settings).images
    cond, latents = policy.encode(PROMPTS), noise(3)
    sigmas = policy.sigmas(5)
    with torch.no_grad():
        for sigma, sigma_next in itertools.pairwise(sigmas):
            velocity = policy(latents, sigma.expand(3), cond)
            latents = latents + (sigma_next - sigma) * velocity
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    images = pipeline(PROMPTS, output_type="pt", **settings).images
    torch.testing.assert_close(policy.decode(latents), images, rtol=1e-5, atol=1e-5)


def test_sigmas_are_the_schedulers(tiny_sd3_folder: Path) -> None:
    policy = look(tiny_sd3_folder)
    scheduler = load_tiny_sd3(tiny_sd3_folder).scheduler
    scheduler.set_timesteps(10)
    torch.testing.assert_close(policy.sigmas(10), scheduler.sigmas, rtol=0, atol=1e-6)
    uniform = look(tiny_sd3_folder, sigma_spacing="uniform").sigmas(4)
    u = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    torch.testing.assert_close(uniform, 3 * u / (1 + 2 * u))


@pytest.mark.parametrize("spacing", ["scheduler", "uniform"])
def test_a_shift_of_one_s_own_is_that_of_a_scheduler_built_with_it(
    tiny_sd3_folder: Path, spacing: Any
) -> None:
    policy = look(tiny_sd3_folder, sigma_spacing=spacing, shift=5.0)
    own = load_tiny_sd3(tiny_sd3_folder).scheduler
    scheduler = type(own).from_config({**own.config, "shift": 5.0})
    if spacing == "scheduler":
        scheduler.set_timesteps(10)
    else:
        scheduler.set_timesteps(sigmas=[1 - step / 10 for step in range(10)])
    torch.testing.assert_close(policy.sigmas(10), scheduler.sigmas, rtol=0, atol=1e-6)
    assert own.config.shift != 5.0 and policy.replaces_scheduler
    assert not look(tiny_sd3_folder, sigma_spacing=spacing).replaces_scheduler


def test_a_shift_is_refused_where_the_resolution_gives_it(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder, shift=2.0)
    dynamic = type(policy.pipeline.scheduler)(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match=r"shift=2.0: the scheduler of this model shifts by res"):
        policy.sampling_scheduler(dynamic)


def test_dynamic_shift_as_the_pipeline_computes_it(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder)
    pipeline = load_tiny_sd3(tiny_sd3_folder)
    for owner in (policy.pipeline, pipeline):
        owner.scheduler = type(owner.scheduler)(use_dynamic_shifting=True)
    pipeline(PROMPTS[0], num_inference_steps=4, output_type="latent", max_sequence_length=TEXT)
    torch.testing.assert_close(policy.sigmas(4), pipeline.scheduler.sigmas, rtol=1e-5, atol=1e-6)


def test_attention_layers(tiny_sd3_folder: Path, tiny_sd3_dual_folder: Path) -> None:
    names = [name for name, _ in look(tiny_sd3_folder).attention_layers()]
    assert names == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
    dual = [name for name, _ in look(tiny_sd3_dual_folder).attention_layers()]
    assert dual == [names[0], "transformer_blocks.0.attn2", names[1]]


def test_default_targets_are_all_joint_attention(tiny_sd3_dual_folder: Path) -> None:
    names = set(look(tiny_sd3_dual_folder).trainable_state_dict())
    # Block 1 is the last: its text stream has no output projection.
    assert len(names) == 2 * (8 + 7) and all(".attn." in name for name in names)
    wide = look(tiny_sd3_dual_folder, lora_targets=["attention", "image_attention", "feed_forward"])
    assert len(wide.trainable_state_dict()) == 2 * (8 + 7) + 2 * 4 + 2 * (4 + 2)
    with pytest.raises(ValueError, match="LoRA target 'to_qq' matches no linear layer"):
        look(tiny_sd3_dual_folder, lora_targets=["to_qq"])


def test_resolution_sets_the_latents(tiny_sd3_folder: Path) -> None:
    assert look(tiny_sd3_folder).latent_shape == (4, 8, 8)
    larger = look(tiny_sd3_folder, resolution=24)
    assert larger.latent_shape == (4, 12, 12)
    cond = larger.encode(PROMPTS[:1])
    assert larger(torch.zeros(1, 4, 12, 12), torch.ones(1), cond).shape == (1, 4, 12, 12)
    assert larger.decode(torch.zeros(1, 4, 12, 12)).shape == (1, 3, 24, 24)
    assert larger.token_layout(cond).num_image == 36
    for resolution in (18, 68, 0):
        with pytest.raises(ValueError, match="multiples of 4 pixels up to 64"):
            look(tiny_sd3_folder, resolution=resolution)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_rank": 0}, "lora_rank=0"),
        ({"max_sequence_length": -1}, "max_sequence_length=-1"),
        ({"sigma_spacing": "linear"}, "choose scheduler or uniform"),
        ({"shift": 0.0}, "shift=0.0 must be finite and above 0"),
        ({"full_finetuning": True, "lora_targets": ["attention"]}, "remove lora_targets"),
    ],
)
def test_bad_arguments(tiny_sd3_folder: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny_sd3_folder, **arguments)


def test_adapters_load_into_diffusers(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    policy = build(tiny_sd3_folder, lora_alpha=3, lora_targets=["attention", "feed_forward"])
    shake(policy)
    policy.save_pretrained(tmp_path)
    pipeline = load_tiny_sd3(tiny_sd3_folder)
    pipeline.load_lora_weights(tmp_path)
    assert pipeline.transformer.peft_config["default_0"].lora_alpha == 3
    latents, sigma, cond = inputs(policy)
    with torch.no_grad():
        loaded = pipeline.transformer(
            latents, cond.embeds, cond.pooled, timestep=1000 * sigma
        ).sample
        torch.testing.assert_close(policy(latents, sigma, cond), loaded, rtol=0, atol=1e-6)
        assert (loaded - base_prediction(tiny_sd3_folder)).abs().max() > 1e-3


def test_full_finetuning_saves_a_pipeline(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    policy = build(tiny_sd3_folder, full_finetuning=True)
    shake(policy)
    policy.save_pretrained(tmp_path)
    again = build(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(*inputs(again)), policy(*inputs(policy)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 3.0, "sigma_spacing": "uniform"},
        {"guidance_scale": 3.0, "sigma_spacing": "uniform", "shift": 1.5},
        {"dtype": "float16"},
        {"full_finetuning": True},
    ],
    ids=str,
)
def test_export_passes_its_check(
    tiny_sd3_folder: Path, tmp_path: Path, arguments: dict[str, object]
) -> None:
    contract.assert_export_passes_its_check(partial(build, tiny_sd3_folder), tmp_path, **arguments)


def test_checkpoint_of_trainable_tensors(tiny_sd3_folder: Path) -> None:
    trained, fresh = build(tiny_sd3_folder), build(tiny_sd3_folder, lora_seed=1)
    shake(trained)
    fresh.load_trainable_state_dict(trained.trainable_state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(*inputs(fresh)), trained(*inputs(trained)))
    with pytest.raises(ValueError, match=r"lora_A\.default\.weight has shape"):
        build(tiny_sd3_folder, lora_rank=2).load_trainable_state_dict(
            trained.trainable_state_dict()
        )


def test_everything_is_registered_once_and_moves_together(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder)
    names = [name for name, _ in policy.named_parameters(remove_duplicate=False)]
    assert {name.split(".")[0] for name in names} == {"transformer", "vae", "text_encoders"}
    unique = sum(1 for _ in policy.parameters())
    assert len(names) == unique
    policy.to("meta")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert next(getattr(policy.pipeline, part).parameters()).device.type == "meta"


def test_frozen_parts_stay_in_evaluation_mode(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder)
    assert not policy.training
    policy.train()
    assert policy.transformer.training
    assert not any(part.training for part in [policy.vae, *policy.text_encoders])


def test_the_global_random_state_is_left_alone(tiny_sd3_folder: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    policy = build(tiny_sd3_folder)
    policy(*inputs(policy))
    assert torch.equal(torch.get_rng_state(), before)


def test_naming_the_base_class_loads_no_diffusers() -> None:
    code = "import sys, aegpo.policies as p; p.Policy; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'StableDiffusion4'"):
        policies.StableDiffusion4  # noqa: B018
