"""Trains an open_clip model on pictures and captions."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import open_clip
import torch
from lightning.pytorch.cli import OptimizerCallable
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aegpo.rewards.learned.clip_pixels import clip_pixels
from aegpo.rewards.learned.open_clip_model import pixel_settings
from lightning_modules.training.cosine_decay import cosine_decay

MAX_LOGIT_SCALE = math.log(100.0)
"""Upper end of the learned log temperature (section 2.5 of CLIP, arXiv 2103.00020)."""


class CLIPModule(lightning.LightningModule):
    """CLIP (arXiv 2103.00020) as open_clip builds it, with open_clip's contrastive loss.

    Batches are ``(images (n, 3, H, W) in [0, 1], n captions)``. Every caption of a batch must be
    wrong for all pictures but its own. On several devices each contrasts its own batch.

    Args:
        model_cfg: The model in open_clip's own terms: "embed_dim", "vision_cfg" and "text_cfg".
            Vocabulary and context length come from the tokenizer.
        tokenizer: Tokenizer of the captions; its end token must be the last of its vocabulary,
            where the text tower reads the text's feature.
        optimizer: Optimizer of all parameters; its learning rate is the schedule's peak.
        warmup_steps: Optimizer steps of the linear rise of the learning rate.

    Raises:
        ValueError: If the tokenizer's end token is not the last one, or images are not square.
    """

    def __init__(
        self,
        model_cfg: dict[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__()
        if tokenizer.eos_token_id != len(tokenizer) - 1:
            raise ValueError(
                f"the tokenizer's end token has id {tokenizer.eos_token_id} of {len(tokenizer)} "
                "tokens; open_clip's text tower needs it last, as in CLIP's vocabulary"
            )
        text_cfg = {
            **model_cfg["text_cfg"],
            "vocab_size": len(tokenizer),
            "context_length": tokenizer.model_max_length,
            # Any name makes open_clip look for the tokenizer in the folder beside the weights.
            "hf_tokenizer_name": "tokenizer",
        }
        self.model_cfg = {**model_cfg, "text_cfg": text_cfg}
        self.clip = open_clip.CLIP(**self.model_cfg).train()
        self.preprocess_cfg = asdict(PreprocessCfg(size=self.clip.visual.image_size))
        self.pixel_settings = pixel_settings(self.preprocess_cfg)
        self.tokenizer = tokenizer
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.loss = open_clip.ClipLoss()

    def encode(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Features of pictures and captions.

        Args:
            images: ``(n, 3, H, W)`` in [0, 1].
            captions: n texts.

        Returns:
            Unit vectors of the pictures and of the captions, both ``(n, embed_dim)``.
        """
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return (
            self.clip.encode_image(clip_pixels(images, **self.pixel_settings), normalize=True),
            self.clip.encode_text(tokens.to(images.device), normalize=True),
        )

    def training_step(self, batch: tuple[Tensor, list[str]], batch_index: int) -> Tensor:
        """The contrastive loss of a batch.

        Args:
            batch: ``(images (n, 3, H, W) in [0, 1], n captions)``.
            batch_index: Unused.

        Returns:
            The loss, a scalar.
        """
        loss: Tensor = self.loss(*self.encode(*batch), self.clip.logit_scale.exp())
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch[1]))
        self.log("train/logit_scale", self.clip.logit_scale.exp(), batch_size=len(batch[1]))
        return loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps the temperature in its range."""
        self.clip.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def validation_step(self, batch: tuple[Tensor, list[str]], batch_index: int) -> None:
        """Logs the share of pictures that find their caption in the batch, and the reverse.

        Args:
            batch: ``(images (n, 3, H, W) in [0, 1], n captions)``.
            batch_index: Unused.
        """
        images, captions = self.encode(*batch)
        similarity = images @ captions.T  # (pictures, captions)
        own = torch.arange(len(similarity), device=similarity.device)
        retrieved = {
            "val/image_to_text": (similarity.argmax(1) == own).float().mean(),
            "val/text_to_image": (similarity.argmax(0) == own).float().mean(),
        }
        self.log_dict(retrieved, prog_bar=True, batch_size=len(own))
        loss = self.loss(images, captions, self.clip.logit_scale.exp())
        self.log("val/loss", loss, batch_size=len(own))

    def configure_optimizers(self) -> Any:
        """The optimizer with its warm-up and cosine decay, stepped every batch."""
        optimizer = self.optimizer(self.clip.parameters())
        num_steps = int(self.trainer.estimated_stepping_batches)
        return cosine_decay(optimizer, self.warmup_steps, num_steps)

    def export(self, folder: str | Path) -> None:
        """Writes model, weights (fp16) and tokenizer as open_clip's ``local-dir:`` reads them.

        Args:
            folder: Folder to write.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_cfg": self.model_cfg, "preprocess_cfg": self.preprocess_cfg}
        text = json.dumps(config, indent=2) + "\n"
        (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
        weights = {
            name: value.half() if value.is_floating_point() else value
            for name, value in self.clip.state_dict().items()
        }
        save_file(weights, folder / "open_clip_model.safetensors")
        self.tokenizer.save_pretrained(folder)
