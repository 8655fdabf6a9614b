"""Training a CLIP: the loss, a short fit, and what the reward reads of the exported folder."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning
import open_clip
import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from aegpo.rewards.learned.open_clip_similarity import OpenCLIPSimilarity
from aegpo.shapes.pipeline import shapes_tokenizer
from aegpo.shapes.prompts import COLORS, SHAPES, Group, Scene
from aegpo.shapes.render import render_batch
from callbacks.export_pipeline import ExportPipeline
from lightning_modules.clip_module import CLIPModule

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 1},
}
SCENES = [Scene((Group(color, shape),)) for color in COLORS for shape in SHAPES]
CAPTIONS = [scene.text for scene in SCENES]


def module() -> CLIPModule:
    torch.manual_seed(0)
    return CLIPModule(
        copy.deepcopy(MODEL),
        shapes_tokenizer(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        warmup_steps=2,
    )


def batches(num: int) -> list[tuple[Tensor, list[str]]]:
    return [(render_batch(SCENES, seed), CAPTIONS) for seed in range(num)]


def test_loss_is_the_symmetric_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = module()
    monkeypatch.setattr(clip, "log", lambda *args, **kwargs: None)
    images, texts = clip.encode(*batches(1)[0])
    torch.testing.assert_close(images.norm(dim=1), torch.ones(24))
    logits = (images @ texts.T).double() / 0.07  # CLIP's first temperature
    expected = -(logits.log_softmax(0).diag().mean() + logits.log_softmax(1).diag().mean()) / 2
    loss = clip.training_step(batches(1)[0], 0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_temperature_stays_in_its_range() -> None:
    clip = module()
    for start, end in ((9.0, 100.0), (-1.0, 1.0), (2.0, 2.718281828**2)):
        clip.clip.logit_scale.data.fill_(start)
        clip.on_train_batch_end(None, None, 0)
        assert clip.clip.logit_scale.exp().item() == pytest.approx(end, rel=1e-5)


def test_retrieval_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, logged = module(), {}
    monkeypatch.setattr(clip, "log_dict", lambda values, **kwargs: logged.update(values))
    monkeypatch.setattr(clip, "log", lambda *args, **kwargs: None)
    # Pictures 0 and 1 are nearest to captions 0 and 1, picture 2 to caption 1, by a small margin;
    # caption 2 is nearest to picture 2.
    pictures = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0.8, 0.6]])
    monkeypatch.setattr(clip, "encode", lambda *batch: (pictures, torch.eye(3)))
    clip.validation_step((pictures, ["a", "b", "c"]), 0)
    assert logged["val/image_to_text"].item() == pytest.approx(2 / 3)
    assert logged["val/text_to_image"].item() == 1.0


def test_a_short_fit_learns_colors_and_the_reward_reads_the_export(tmp_path: Path) -> None:
    clip = module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ExportPipeline(str(tmp_path / "clip"), after_validation=False)],
    )
    data = batches(64)
    load = torch.utils.data.DataLoader
    trainer.fit(clip, load(data[:60], batch_size=None), load(data[60:], batch_size=None))
    # Chance is 1/24; who knows the colors but no shape is right in a quarter.
    assert trainer.callback_metrics["val/image_to_text"] > 0.2

    images = data[-1][0]
    with torch.no_grad():
        pictures, texts = clip.eval().encode(images, CAPTIONS)
    reward = OpenCLIPSimilarity(str(tmp_path / "clip"))
    reward.setup(torch.device("cpu"))
    scores = reward(images, CAPTIONS, [{}] * 24)
    # The file holds half precision.
    torch.testing.assert_close(scores, (pictures * texts).sum(1), rtol=0, atol=5e-3)
    assert reward.network.visual.preprocess_cfg["size"] == 32
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")
    expected = shapes_tokenizer()(CAPTIONS, padding="max_length").input_ids
    assert tokenizer(CAPTIONS).tolist() == expected


def test_a_tokenizer_whose_end_is_not_last_is_refused() -> None:
    vocab = {"a</w>": 0, "<|endoftext|>": 1, "<|startoftext|>": 2}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=10)
    with pytest.raises(ValueError, match="end token has id 1 of 3"):
        CLIPModule(copy.deepcopy(MODEL), tokenizer)
