"""The policy: a text-to-image model as rollout, update and probe see it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from aegpo.distributed import is_sharded
from aegpo.entropy.tokens import TokenLayout
from aegpo.evaluations import EvaluationCounter
from aegpo.image_size import Resolution, Size
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.embedding_cache import NEGATIVE, ConditioningCache
from aegpo.policies.fsdp.lockstep import Call, Idle, Lockstep
from aegpo.policies.trainable import copy_trainable_tensors, trainable_tensors
from aegpo.utilities.halving import halving

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Conditioning", "GuidanceGradient", "Policy", "TokenLayout"]

GuidanceGradient = Literal["both", "conditional"]
"""Which predictions of classifier-free guidance carry the gradient of an update."""


class Policy(nn.Module, abc.ABC):
    """A denoiser with its text encoders and its decoder.

    Everybody who needs a prediction (rollout, update, probe, evaluation) calls the policy itself,
    ``policy(latents, sigma, cond)``: one function, hence one prediction, one place where guidance
    is applied and one where model evaluations are counted. Only `predict` knows the model.

    Args:
        guidance_scale: Weight g of classifier-free guidance, ``uncond + g (cond - uncond)``
            (Ho & Salimans, arXiv 2207.12598). 1 switches guidance off, and with it the second
            evaluation per sample.
        max_batch: Most rows in one call of the denoiser; with guidance a sample is two rows. Halved
            for the rest of the run where memory runs out.
        decode_batch: Most latents in one call of the decoder; halved likewise.
        max_cached_prompts: Prompts whose embeddings are kept in CPU memory.
        guidance_gradient: Through which predictions the gradient of a guided one is taken: "both",
            which is its derivative, or the "conditional" one alone, where the other is evaluated
            without a graph: 4 units of work in place of 6, and half the activations.

    Attributes:
        evaluations: Model evaluations spent, by purpose.
        auto_checkpointing: Whether the training is to choose if activations are checkpointed.
        at_retry: Called before a prediction that ran out of memory begins anew, all its rows.
        lockstep: What keeps ranks together after `shard`; None before.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        guidance_scale: float = 1.0,
        max_batch: int = 64,
        decode_batch: int = 64,
        max_cached_prompts: int = 4096,
        guidance_gradient: GuidanceGradient = "both",
    ) -> None:
        super().__init__()
        if guidance_scale < 1:
            raise ValueError(f"guidance_scale={guidance_scale}; it must be 1 (no guidance) or more")
        if max_batch < (2 if guidance_scale != 1 else 1):
            raise ValueError(
                f"max_batch={max_batch}; one sample takes 1 row, or 2 rows with guidance"
            )
        if decode_batch < 1:
            raise ValueError(f"decode_batch={decode_batch}; it must be 1 or more")
        if guidance_gradient not in get_args(GuidanceGradient):
            raise ValueError(f"guidance_gradient={guidance_gradient!r}; choose both or conditional")
        if guidance_gradient == "conditional" and guidance_scale == 1:
            raise ValueError(
                "guidance_gradient='conditional' leaves out the unconditional prediction of "
                "guidance, which is off; raise the scale of classifier-free guidance, or remove it"
            )
        self.guidance_scale = guidance_scale
        self.guidance_gradient = guidance_gradient
        self.max_batch = max_batch
        self.decode_batch = decode_batch
        self.evaluations = EvaluationCounter()
        self.auto_checkpointing = False
        self.at_retry: list[Callable[[], None]] = []
        self.lockstep: Lockstep | None = None
        self._embeddings = ConditioningCache(max_cached_prompts)

    # What a model may say about itself.

    @property
    def made_with(self) -> dict[str, str | int | list[str]]:
        """What its trained tensors belong to: plain values that a checkpoint stores and compares.

        Returns:
            Values by the name of the argument that sets them.
        """
        return {"class_path": type(self).__name__}

    # What a model must say about itself.

    @property
    @abc.abstractmethod
    def denoiser(self) -> nn.Module:
        """The network that predicts at present: inside `reference` the reference's."""

    @property
    @abc.abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, (C, H, W)."""

    @abc.abstractmethod
    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Calls the denoiser once: the prediction without guidance, chunks or counting.

        Every model is a flow model here: latents are (1 - sigma) data + sigma noise. Whoever wraps
        another kind rescales (see `aegpo.policies.noise_schedule`), so that one set of SDE steps
        serves all.

        Args:
            latents: Noisy latents, shape (n, C, H, W).
            sigma: Noise level of each row in (0, 1], shape (n,).
            cond: n rows of conditioning.

        Returns:
            The velocity, noise - data, shape (n, C, H, W), in whatever dtype the model computes.
        """

    @abc.abstractmethod
    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs the text encoders; `encode` is the cached way to them.

        Args:
            texts: Distinct texts.

        Returns:
            One row per text, without `negative`.
        """

    @abc.abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Runs the decoder once; `decode` is the chunked way to it.

        Args:
            latents: Latents at the end of a trajectory, shape (n, C, H, W) fp32.

        Returns:
            Images, shape (n, 3, H, W), of any dtype; values may leave [0, 1].
        """

    @abc.abstractmethod
    def sigmas(self, num_steps: int) -> Tensor:
        """Noise levels as the model's own scheduler would run them.

        Args:
            num_steps: Denoising steps T, at least 1.

        Returns:
            Falling, shape (T + 1,) fp32 on the CPU: from 1 to 0 for a flow model. A diffusion model
            may start a little below 1 and end a little above 0, where its own scheduler does.
        """

    @abc.abstractmethod
    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """Where image and text tokens sit in the denoiser's joint attention.

        Args:
            cond: n rows of conditioning.

        Returns:
            The layout, its text mask with n rows.
        """

    @abc.abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Inside this context the policy predicts as it did before any training.

        Contexts may be nested. What was active before is active again afterwards, also after an
        exception, and no parameter's ``requires_grad`` is touched. Gradients are not switched
        off: use ``torch.no_grad`` for that.
        """

    @abc.abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what was trained to a folder that diffusers can load.

        Args:
            folder: Created if absent.
        """

    # What some models do otherwise.

    def initial_latents(self, noise: Tensor, sigma: float) -> Tensor:
        """Latents at the start of a trajectory: the noise itself, unless the model says otherwise.

        Args:
            noise: Standard normal, shape (n, C, H, W).
            sigma: First noise level of the schedule.

        Returns:
            Latents at that level, shape (n, C, H, W).
        """
        del sigma
        return noise

    def clean_latents(self, latents: Tensor) -> Tensor:
        """Data that the end of a trajectory stands for: the latents, unless the model says else.

        Args:
            latents: Latents at the schedule's last noise level, shape (n, C, H, W).

        Returns:
            What the model was trained to call data, shape (n, C, H, W).
        """
        return latents

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Classifier-free guidance, ``uncond + g (cond - uncond)``.

        Args:
            conditional: Predictions for the prompts, shape (n, C, H, W) fp32.
            unconditional: Predictions for the negative text, shape (n, C, H, W) fp32.

        Returns:
            The guided prediction, shape (n, C, H, W).
        """
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def encode_negative(self) -> Conditioning:
        """The row that guidance subtracts: the empty text, unless the model says otherwise."""
        return self.encode_texts([""])

    @property
    def checkpointing(self) -> bool:
        """Whether an update computes activations twice instead of keeping them."""
        return False

    def checkpoint_activations(self, wanted: bool) -> None:
        """Compute activations twice from now on, or keep them.

        Args:
            wanted: Whether to compute them twice.

        Raises:
            ValueError: If this policy cannot.
        """
        if wanted:
            raise ValueError(f"{type(self).__name__} knows no gradient checkpointing")

    def attention_kernels(self) -> AbstractContextManager[None]:
        """Inside this context the denoiser's attention runs the kernels that were asked for."""
        return nullcontext()

    def encoders_ready(self) -> AbstractContextManager[None]:
        """Inside this context the text encoders are where `encode_texts` needs them."""
        return nullcontext()

    def decoder_ready(self) -> AbstractContextManager[None]:
        """Inside this context the decoder is where `decode_latents` needs it."""
        return nullcontext()

    @property
    def buckets(self) -> tuple[Size, ...]:
        """Sizes in pixels of which each iteration draws its images in one; none for one size."""
        return ()

    def at_resolution(self, resolution: Resolution | None) -> AbstractContextManager[None]:
        """Inside this context images have another size.

        Args:
            resolution: Pixels of a square's side, or (height, width); None changes nothing.

        Returns:
            The context.

        Raises:
            ValueError: If this model has one size only, or does not take this one.
        """
        if resolution is not None:
            raise ValueError(f"{type(self).__name__} draws images of one size only")
        return nullcontext()

    def shard(self, mesh: DeviceMesh) -> None:
        """Spread the denoiser over ranks by FSDP2, once; from then on a call is one of all ranks.

        Args:
            mesh: All ranks, in one dimension.

        Raises:
            ValueError: If this policy cannot be spread.
        """
        del mesh
        raise ValueError(
            f"trainer.strategy=fsdp2 cannot spread a {type(self).__name__}; use ddp, or a policy "
            "of a diffusers pipeline"
        )

    # What follows from it.

    @contextmanager
    def together(self) -> Iterator[Idle]:
        """Inside, ranks may call the policy as often as each likes, also never.

        Every rank has to come here, whatever it holds, and no other collective may be inside. It
        costs nothing unless the denoiser is spread over ranks; see `Lockstep`.

        Yields:
            What has to join a loss after the context.
        """
        with nullcontext(Idle()) if self.lockstep is None else self.lockstep.stage() as idle:
            yield idle

    @property
    def idle(self) -> bool:
        """Whether the call of the denoiser that runs is padding; see `Lockstep`."""
        return self.lockstep is not None and self.lockstep.idle

    def call_kind(self) -> Call:
        """The kind of call that `predict` would be at present; see `Lockstep`."""
        return Call(reference=False, gradient=torch.is_grad_enabled())

    @property
    def device(self) -> torch.device:
        """Where the policy computes: the device of the denoiser."""
        return next(self.denoiser.parameters()).device

    @property
    def num_evaluations_per_sample(self) -> int:
        """Evaluations of the denoiser for one prediction: 2 with guidance, else 1."""
        return 1 if self.guidance_scale == 1 else 2

    def forward(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Predicts, with guidance if it is on.

        Rows are independent. At most `max_batch` of them meet in one call of the denoiser; with
        guidance a call holds conditional rows first and their unconditional twins after them,
        unless these need no gradient and those do (see `guidance_gradient`).

        Args:
            latents: Noisy latents, shape (n, C, H, W).
            sigma: Noise level of each row in (0, 1], shape (n,).
            cond: n rows of conditioning, with `negative` if guidance is on.

        Returns:
            The prediction, shape (n, C, H, W) fp32.

        Raises:
            ValueError: If the numbers of rows differ, latents have another shape than
                `latent_shape`, or guidance is on and `cond` has no `negative`.
        """
        self._check_rows(latents, sigma, cond)
        factor = self.num_evaluations_per_sample
        call = self._predict_guided if factor == 2 else self._call
        self.evaluations.add(len(latents))
        if factor == 2:
            self.evaluations.add(len(latents), graph=self.guidance_gradient == "both")

        def predict(samples: int) -> Tensor:
            predictions = []
            for start in range(0, len(latents), samples):
                rows = slice(start, start + samples)
                predictions.append(call(latents[rows], sigma[rows], cond.select(rows)).float())
            return torch.cat(predictions) if predictions else torch.zeros_like(latents).float()

        samples = self.max_batch // factor
        prediction, fits = halving(
            predict,
            len(latents),
            samples,
            setting="max_batch",
            undo=self._begin_anew,
            factor=factor,
            # With a graph it is an update's samples that are too many. Where every call gathers
            # weights, all ranks would have to begin anew.
            possible=not torch.is_grad_enabled() and not is_sharded(self.denoiser),
        )
        self.max_batch = self.max_batch if fits == samples else fits * factor
        return prediction

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encodes prompts; a text is encoded once and then remembered.

        Autocast is off inside, so that a row does not depend on who asked for it first.

        Args:
            prompts: B texts.

        Returns:
            B rows on the policy's device, with `negative` if guidance is on; 0 rows for a rank
            that has no prompt.

        Raises:
            ValueError: If it is given one text in the place of a list.
        """
        if isinstance(prompts, str):
            raise ValueError(f"encode needs a list of texts, got {prompts!r}")
        if len(prompts) == 0:  # rows of no text have the shape of any text's
            return self.encode([""]).select(slice(0, 0))
        device, guided = self.device, self.num_evaluations_per_sample == 2
        texts = [*prompts, NEGATIVE] if guided else list(prompts)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            known = self._embeddings.has(texts)
            with nullcontext() if known else self.encoders_ready():
                rows = self._embeddings.get(texts, self._encode_rows).to(device)
        if not guided:
            return rows
        empty = torch.full((len(prompts),), len(prompts), device="cpu")
        text = rows.select(slice(0, len(prompts)))
        return Conditioning(text.embeds, text.pooled, text.mask, negative=rows.select(empty))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turns latents into images, `decode_batch` at a time, without gradient.

        Args:
            latents: Latents at the end of a trajectory, shape (n, C, H, W).

        Returns:
            Images in [0, 1], shape (n, 3, H, W) fp32 on the latents' device.
        """
        if len(latents) == 0:  # only the decoder knows the size of an image
            return self.decode(latents.new_zeros(1, *latents.shape[1:]))[:0]

        def decode(size: int) -> Tensor:
            chunks = torch.split(latents, size)
            return torch.cat(
                [self.decode_latents(chunk.float()).float().clamp(0, 1) for chunk in chunks]
            )

        with torch.autocast(latents.device.type, enabled=False), self.decoder_ready():
            images, self.decode_batch = halving(
                decode, len(latents), self.decode_batch, setting="decode_batch"
            )
        return images

    def attention_layers(self) -> list[tuple[str, nn.Module]]:
        """The attention layers of the present denoiser, in the order of its modules.

        Returns:
            L names within the denoiser, each with the module that owns `processor` and `heads`.
        """
        return [
            (name, module)
            for name, module in self.denoiser.named_modules()
            if hasattr(module, "processor") and hasattr(module, "heads")
        ]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimizer should have, in the order of the modules."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """The trainable tensors alone, for a checkpoint; they share memory with the policy."""
        return trainable_tensors(self)

    def load_trainable_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `trainable_state_dict` returned; see `copy_trainable_tensors`."""
        copy_trainable_tensors(self, state)

    def _begin_anew(self, samples: int) -> None:
        del samples
        for told in self.at_retry:
            told()

    def _encode_rows(self, texts: list[str]) -> Conditioning:
        return self.encode_negative() if texts == [NEGATIVE] else self.encode_texts(texts)

    def _call(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """One call of the denoiser, when it is its turn."""
        if self.lockstep is not None:
            self.lockstep.take_turn(self.call_kind())
        with self.attention_kernels():
            return self.predict(latents, sigma, cond)

    def _predict_guided(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Classifier-free guidance, conditional and unconditional rows in one doubled call.

        With a gradient through the conditional ones alone there are two calls: a doubled one would
        keep, and go back through, the activations of all rows.
        """
        if cond.negative is None:
            raise ValueError(
                f"guidance_scale={self.guidance_scale} needs conditioning with `negative` rows; "
                "take it from this policy's own `encode`"
            )
        text = Conditioning(cond.embeds, cond.pooled, cond.mask)
        if self.guidance_gradient == "conditional" and torch.is_grad_enabled():
            conditional = self._call(latents, sigma, text)
            with torch.no_grad():
                unconditional = self._call(latents, sigma, cond.negative)
            return self.guide(conditional.float(), unconditional.float())
        both = Conditioning.cat([text, cond.negative])
        prediction = self._call(torch.cat([latents, latents]), torch.cat([sigma, sigma]), both)
        conditional, unconditional = prediction.float().chunk(2)
        return self.guide(conditional, unconditional)

    def _check_rows(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> None:
        if latents.shape[1:] != self.latent_shape:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, expected (n, "
                f"{', '.join(map(str, self.latent_shape))})"
            )
        if sigma.shape != latents.shape[:1] or len(cond) != len(latents):
            raise ValueError(
                f"{len(latents)} latents, sigma of shape {tuple(sigma.shape)} and {len(cond)} "
                "rows of conditioning; all must have one row per latent"
            )
