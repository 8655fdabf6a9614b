"""Pretraining the pipeline: the loss, the text path, and a run through export and reload."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.utils.data import DataLoader

from aegpo.shapes.pipeline import (
    BASE,
    MAX_TEXT_TOKENS,
    WORDS,
    load_pipeline,
    shapes_pipeline,
    shapes_tokenizer,
)
from aegpo.shapes.splits import SPLITS, split
from callbacks.export_pipeline import ExportPipeline
from lightning_modules.flow_matching_module import FlowMatchingModule, encode_tokens
from lightning_modules.training.cosine_decay import cosine_decay


def tiny_pipeline() -> StableDiffusion3Pipeline:
    return shapes_pipeline(
        vae="untrained", num_layers=2, num_heads=1, head_dim=32, text_hidden_size=32
    )


def tokens(pipeline: StableDiffusion3Pipeline, texts: list[str]) -> Tensor:
    return pipeline.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids


def draw(pipeline: StableDiffusion3Pipeline, prompts: list[str], num_steps: int) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompts,
        num_inference_steps=num_steps,
        guidance_scale=1.0,
        max_sequence_length=0,
        output_type="pt",
    ).images


class ConstantVelocity(nn.Module):
    """Stands in for the transformer: predicts zero everywhere and remembers what it was given."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config
        self.seen: dict[str, Tensor] = {}

    def forward(self, latents: Tensor, **arguments: Tensor) -> tuple[Tensor]:
        self.seen = {"latents": latents, **arguments}
        return (torch.zeros_like(latents),)


def test_every_prompt_of_the_world_is_one_token_a_word() -> None:
    tokenizer = tiny_pipeline().tokenizer
    texts = [scene.text for name in SPLITS for scene in split(name)]
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    assert lengths == [len(text.split()) + 2 for text in texts]
    assert max(lengths) == MAX_TEXT_TOKENS
    # Different words must not share a token either.
    assert len({tuple(tokenizer(word).input_ids) for word in WORDS}) == len(WORDS)


def test_token_path_equals_the_pipelines_own_encoding() -> None:
    pipeline = tiny_pipeline()
    texts = ["a red circle", "three blue crosses", ""]
    expected, _, expected_pooled, _ = pipeline.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )
    embeds, pooled = encode_tokens(pipeline, tokens(pipeline, texts))
    torch.testing.assert_close(embeds, expected, rtol=0, atol=0)
    torch.testing.assert_close(pooled, expected_pooled, rtol=0, atol=0)


def test_velocity_error_by_hand() -> None:
    module = FlowMatchingModule(tiny_pipeline())
    module.transformer = ConstantVelocity(module.transformer.config)
    module.pipeline.transformer = module.transformer
    latents = torch.full((3, 4, 8, 8), 2.0)
    noise = torch.full((3, 4, 8, 8), -1.0)
    sigma = torch.tensor([0.0, 0.25, 1.0])
    error = module.velocity_error(
        latents, tokens(module.pipeline, ["a red circle"] * 3), sigma, noise
    )
    # The velocity is eps - x_0 = -3 wherever sigma is; the prediction is 0.
    torch.testing.assert_close(error, torch.full((3,), 9.0))
    seen = module.transformer.seen
    torch.testing.assert_close(seen["latents"][:, 0, 0, 0], torch.tensor([2.0, 1.25, -1.0]))
    torch.testing.assert_close(seen["timestep"], torch.tensor([0.0, 250.0, 1000.0]))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_conditioning_dropout_takes_its_share(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = FlowMatchingModule(tiny_pipeline(), conditioning_dropout=share)
    seen: list[Tensor] = []

    def remember(latents: Tensor, token_ids: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        seen.append(token_ids)
        return latents.flatten(1).mean(1)

    monkeypatch.setattr(module, "velocity_error", remember)
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    torch.manual_seed(0)
    ids = tokens(module.pipeline, ["a red circle"]).expand(4000, -1)
    module.training_step((torch.zeros(4000, 4, 8, 8), ids), 0)
    dropped = (seen[0] == module.empty_prompt).all(1).float().mean().item()
    assert dropped == pytest.approx(share, abs=0.03)  # 4 standard deviations of 4000 draws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditioning_dropout": 1.0}, r"conditioning_dropout=1\.0"),
        ({"logit_std": 0.0}, r"logit_std=0\.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowMatchingModule(tiny_pipeline(), **arguments)


def test_schedule_rises_then_falls_to_zero() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    configured = cosine_decay(optimizer, warmup_steps=2, run_steps=6)
    assert configured["optimizer"] is optimizer
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        configured["lr_scheduler"]["scheduler"].step()
    # By hand: 2 * (0, 1/2), then 1 + cos(pi k / 4) for k = 0 to 4.
    half = 2**0.5 / 2
    assert rates == pytest.approx([0.0, 1.0, 2.0, 1 + half, 1.0, 1 - half, 0.0])
    for wrong in (6, -1):
        with pytest.raises(ValueError, match=f"warmup_steps={wrong}"):
            cosine_decay(optimizer, warmup_steps=wrong, run_steps=6)
    with pytest.raises(ValueError, match="decay_steps=5 is below the run's 6 steps"):
        cosine_decay(optimizer, warmup_steps=2, run_steps=6, decay_steps=5)


def test_decay_steps_end_the_run_while_it_still_learns() -> None:
    pipeline = tiny_pipeline()
    data = list(zip(torch.ones(4, 4, 8, 8), tokens(pipeline, ["a red circle"] * 4), strict=True))

    def last_rate(decay_steps: int | None) -> float:
        module = FlowMatchingModule(
            pipeline,
            optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
            warmup_steps=0,
            decay_steps=decay_steps,
        )
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(data, batch_size=2))
        assert trainer.global_step == 2
        rate: float = trainer.optimizers[0].param_groups[0]["lr"]
        return rate

    assert last_rate(None) == pytest.approx(0.0)
    assert last_rate(4) == pytest.approx(0.5)


def test_a_short_fit_learns_and_exports_a_loadable_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline = tiny_pipeline()
    module = FlowMatchingModule(
        pipeline, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), warmup_steps=2
    )
    before = {name: value.clone() for name, value in module.named_parameters()}
    latents = torch.ones(64, 4, 8, 8)
    data = list(zip(latents, tokens(pipeline, ["a red circle"] * 64), strict=True))
    loader = DataLoader(data, batch_size=32)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=15,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExportPipeline(str(tmp_path / "out"), after_validation=False)],
    )
    ids = tokens(pipeline, ["a red circle"] * 16)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(16, 4, 8, 8, generator=generator)
    sigma = torch.linspace(0.1, 0.9, 16)
    with torch.no_grad():
        first = module.velocity_error(latents[:16], ids, sigma, noise).mean().item()
    trainer.fit(module, loader)
    with torch.no_grad():
        last = module.velocity_error(latents[:16], ids, sigma, noise).mean().item()
    assert last < 0.7 * first
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert {name.split(".")[0] for name in changed} == {
        "transformer",
        "text_encoder",
        "text_encoder_2",
    }

    loaded = load_pipeline(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for name, weight in loaded.transformer.state_dict().items():
        torch.testing.assert_close(weight, pipeline.transformer.state_dict()[name], rtol=0, atol=0)
    images = draw(loaded, ["a red circle"] * 2, 2)
    assert images.shape == (2, 3, 32, 32)
    assert torch.isfinite(images).all()


def test_the_bundled_base_is_whole_small_and_silent_about_where_it_was_made() -> None:
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert all(path.suffix in (".json", ".safetensors") for path in files)
    for path in files:
        if path.name == "config.json":
            assert json.loads(path.read_text()).get("_name_or_path", "") == ""
    pipeline = load_pipeline()
    assert pipeline.tokenizer.model_max_length == MAX_TEXT_TOKENS
    # The saved vocabulary is the one that the code would build: retraining keeps the token ids.
    assert pipeline.tokenizer.get_vocab() == shapes_tokenizer().get_vocab()


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pipeline in"):
        load_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"shapes_vae\.yaml"):
        shapes_pipeline(vae=str(tmp_path))
    with pytest.raises(ValueError, match="second last layer"):
        shapes_pipeline(vae="untrained", text_layers=1)
    for patch_size in (0, 3):
        with pytest.raises(ValueError, match="divisor of that"):
            shapes_pipeline(vae="untrained", patch_size=patch_size)


@pytest.mark.parametrize(("patch_size", "tokens"), [(1, 64), (2, 16), (8, 1)])
def test_patches_are_the_image_tokens(patch_size: int, tokens: int) -> None:
    pipeline = shapes_pipeline(
        vae="untrained", num_layers=2, num_heads=1, text_hidden_size=32, patch_size=patch_size
    )
    seen: list[int] = []
    pipeline.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, __, given: seen.append(given["hidden_states"].shape[1]), with_kwargs=True
    )
    assert draw(pipeline, ["a red circle"], 1).shape == (1, 3, 32, 32)
    assert seen == [tokens]


def test_export_refuses_a_module_that_cannot() -> None:
    with pytest.raises(TypeError, match="LightningModule has none"):
        ExportPipeline("anywhere").setup(None, lightning.LightningModule(), "fit")
