"""A diffusers pipeline as a policy: everything that no single model family has to itself."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from aegpo.image_size import Resolution, Size, accepted_size, distinct_sizes
from aegpo.noise import run_seed
from aegpo.policies.adapters.factors import (
    Factors,
    lay_on,
    lora_config,
    peft_names,
    read_factors,
    start_from,
    summed,
)
from aegpo.policies.adapters.given import find_lora, fingerprint, read_lora
from aegpo.policies.adapters.layouts import Form, Layout, WriteLayout
from aegpo.policies.adapters.start import Said, adapters_at_start
from aegpo.policies.base import GuidanceGradient
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.embedding_cache import EmbeddingFolder
from aegpo.policies.exportable import Exportable
from aegpo.policies.fsdp.lockstep import Call, Lockstep
from aegpo.policies.fsdp.sharding import shard_module
from aegpo.policies.lora import ADAPTER, adapters_disabled, add_lora, lora_state_dict
from aegpo.policies.pretrained import (
    Quantization,
    find_pipeline,
    load_denoiser,
    load_pipeline,
    quietly,
)
from aegpo.policies.speed.compiled_blocks import compile_blocks
from aegpo.utilities.attention_kernels import (
    attention_kernels,
    check_attention_backend,
    checkpointed,
    use_attention_backend,
)
from aegpo.utilities.hub import cached_revision


class DiffusersPolicy(Exportable):
    """A diffusers pipeline whose denoiser is trained, by LoRA or wholly.

    Text encoders and autoencoder are frozen. A family of models is a subclass that says which
    pipeline it drives and how one call of its denoiser, its text encoders and its decoder looks.

    Args:
        pretrained: Hub id or folder of a saved pipeline, or "shapes" for the bundled one.
        lora_rank: Rank of the adapters; 32 by default.
        lora_alpha: Adapters are scaled by lora_alpha / lora_rank; twice the rank by default.
        lora_targets: Layers that get adapters: names of the model's groups ("attention",
            "feed_forward", ...) or ends of layer names; the attention by default.
        lora_from: A LoRA to begin with, in any layout that diffusers reads: a .safetensors file, a
            folder with one, or a hub id (owner/name, owner/name/file.safetensors).
        lora_into: Where it goes. Into the "policy", whose adapters start as it, with its rank,
            alpha and layers, beside the reference that is `pretrained` alone; or into the
            "reference", on whose merged weights new adapters are trained.
        lora_seed: Seed of the adapters' initial weights; None for the run's `seed_everything`.
        full_finetuning: Train all weights of the denoiser instead of adapters. The reference is
            then a second denoiser, read again from `pretrained` when it is first needed.
        guidance_scale: Weight of classifier-free guidance; 1 is no guidance and half the cost.
        guidance_gradient: Through which of guidance's two predictions an update takes its gradient:
            "both", or the "conditional" one alone, for 4 units of work in place of 6 and half the
            activations. Predictions are the same; the gradient is no longer theirs.
        negative_prompt: Text that guidance leads away from.
        resolution: Pixels of the images: one number for squares, or [height, width]; or a list of
            such pairs, of which each iteration draws all its images in one (buckets; the first is
            that of all other images). The model's own by default.
        max_batch: Most rows in one call of the denoiser; with guidance a sample is two rows.
        decode_batch: Most latents in one call of the decoder.
        max_cached_prompts: Prompts whose embeddings are kept in CPU memory.
        dtype: Of the frozen weights; whatever is trained is float32.
        quantize: Store the denoiser's frozen weights in 4 bits ("nf4") or 8 ("int8"), by
            bitsandbytes; needs a GPU, and adapters to train.
        gradient_checkpointing: Compute activations twice instead of storing them; "auto" where
            they do not fit into memory, which is measured at the first update.
        offload: Keep text encoders and decoder in CPU memory while they are idle.
        embedding_cache: Folder where embeddings of prompts are kept for later runs.
        compile: Compile the denoiser's repeated blocks by `torch.compile`.
        attention_backend: What computes the denoiser's attention, by diffusers' names: "native",
            "_native_flash", "_native_efficient", "_native_math", "_native_cudnn", or, where the
            model leaves the choice to diffusers, "flash", "flex", "sage" and others. By default
            torch chooses among its own but cuDNN's, which has to be asked for.

    Raises:
        FileNotFoundError: If `pretrained` cannot be found or lacks a part.
        ValueError: If it is another kind of pipeline, or an argument is out of range.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    """The pipeline that the class can drive."""
    denoiser_name: ClassVar[str] = "transformer"
    """The part of the pipeline that is trained."""
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """The parts of the pipeline that encode text."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that a saved pipeline of this kind may lack."""
    load_options: ClassVar[Mapping[str, Any]] = {}
    """Further arguments with which the pipeline is loaded; None for a part leaves it out."""
    lora_groups: ClassVar[Mapping[str, Sequence[str]]]
    """LoRA targets by group: names of groups and the ends of layer names they stand for."""
    lora_layouts: ClassVar[Mapping[Layout, WriteLayout]] = {}
    """Layouts of other programs for its adapters which diffusers reads back, and who makes them."""
    text_arguments: ClassVar[tuple[str, ...]] = ("negative_prompt", "max_sequence_length")
    """Attributes that change what the text encoders return."""

    vae: nn.Module
    text_encoders: nn.ModuleList

    def __init__(  # noqa: PLR0913  # settings that all families share
        self,
        pretrained: str,
        lora_rank: int | None = None,
        lora_alpha: int | None = None,
        lora_targets: list[str] | None = None,
        lora_from: str | None = None,
        lora_into: Literal["policy", "reference"] = "policy",
        lora_seed: int | None = None,
        full_finetuning: bool = False,
        guidance_scale: float = 1.0,
        guidance_gradient: GuidanceGradient = "both",
        negative_prompt: str = "",
        resolution: int | tuple[int, int] | list[tuple[int, int]] | None = None,
        max_batch: int = 64,
        decode_batch: int = 64,
        max_cached_prompts: int = 4096,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        quantize: Quantization | None = None,
        gradient_checkpointing: bool | Literal["auto"] = False,
        offload: bool = False,
        embedding_cache: str | None = None,
        compile: bool = False,
        attention_backend: str | None = None,
    ) -> None:
        super().__init__(
            guidance_scale, max_batch, decode_batch, max_cached_prompts, guidance_gradient
        )
        if full_finetuning and lora_targets is not None:
            raise ValueError("full_finetuning=True trains no adapters; remove lora_targets")
        if lora_into not in ("policy", "reference"):
            raise ValueError(f"lora_into={lora_into!r}; choose policy or reference")
        if quantize not in (None, "nf4", "int8"):
            raise ValueError(f"quantize={quantize!r}; choose nf4, int8 or null")
        if full_finetuning and quantize is not None:
            raise ValueError(
                f"full_finetuning=True trains all weights, but quantize={quantize!r} freezes them; "
                "train adapters, or leave quantize out"
            )
        if quantize is not None and lora_from is not None and lora_into == "reference":
            raise ValueError(
                f"lora_into=reference adds lora_from to the weights, which quantize={quantize!r} "
                "stores in fewer bits; merge it first (aegpo export --format merged), or leave "
                "quantize out"
            )
        check_attention_backend(attention_backend)
        self.attention_backend = attention_backend
        self.full_finetuning = full_finetuning
        self.quantize: Quantization | None = quantize
        self.negative_prompt = negative_prompt
        self.offload = offload
        self._source = find_pipeline(pretrained)
        self._frozen_dtype: torch.dtype = getattr(torch, dtype)

        # The pipeline is no module: it shares the modules registered below, and so follows `.to`.
        self.pipeline = self.load_clean_pipeline()
        if self._frozen_dtype == torch.float16 and self.pipeline.vae.config.get("force_upcast"):
            self.pipeline.vae.float()  # SDXL's overflows below; its pipeline upcasts it, too
        self.register_module(self.denoiser_name, getattr(self.pipeline, self.denoiser_name))
        encoders = nn.ModuleList(
            encoder
            for name in self.encoder_names
            if (encoder := getattr(self.pipeline, name, None)) is not None
        )
        # What is offloaded is hidden from the module registry, and so from `.to`.
        register = object.__setattr__ if offload else setattr
        register(self, "vae", self.pipeline.vae)
        register(self, "text_encoders", encoders)
        self.vae.requires_grad_(False)
        self.text_encoders.requires_grad_(False)
        given = [] if resolution is None else distinct_sizes(resolution)
        latent_sizes = [self._latent_size_of(size) for size in given]
        self._buckets = tuple(given) if len(given) > 1 else ()
        self._latent_size = latent_sizes[0] if given else self.default_latent_size
        self._embedding_cache = embedding_cache

        denoiser = self.trained
        denoiser.requires_grad_(False)
        use_attention_backend(denoiser, attention_backend)
        file = None if lora_from is None else find_lora(lora_from)
        lora = {} if file is None else read_lora(self.pipeline, self.denoiser_name, file)
        self._beneath = lora if lora_into == "reference" else {}
        self._beneath_from = (str(lora_from), fingerprint(file)) if file and self._beneath else None
        if full_finetuning:
            lay_on(denoiser.float().requires_grad_(True), lora)
        else:
            lay_on(denoiser, self._beneath)
            said = Said(lora_rank, lora_alpha, lora_targets)
            start = adapters_at_start(
                denoiser, self.lora_groups, said, {} if self._beneath else lora, lora_from
            )
            self.lora_targets = start.targets
            add_lora(denoiser, start.layers, start.rank, start.alpha, run_seed(lora_seed))
            start_from(denoiser, ADAPTER, start.factors)
        self.auto_checkpointing = gradient_checkpointing == "auto"
        self.checkpoint_activations(gradient_checkpointing is True)
        if compile:
            compile_blocks(denoiser)
        self._compiled = compile
        self._denoiser_class = type(denoiser)
        self._mesh: DeviceMesh | None = None
        # A list hides the reference from the module registry: it is no part of a checkpoint.
        self._reference: list[ModelMixin] = []
        self._inside_reference = False
        self.eval()

    @property
    def made_with(self) -> dict[str, str | int | list[str]]:
        """Family, source and how its tensors are trained; see `Policy.made_with`."""
        made = super().made_with | {
            "pretrained": str(self._source),
            "full_finetuning": self.full_finetuning,
            "lora_beneath": self._beneath_from[1] if self._beneath_from else "",
        }
        if self._beneath_from:
            made["lora_from"] = self._beneath_from[0]
        if self.full_finetuning:
            return made
        config = self.trained.peft_config[ADAPTER]
        adapters = {"lora_rank": config.r, "lora_alpha": config.lora_alpha}
        return made | adapters | {"lora_targets": sorted(self.lora_targets)}

    # What a family of models must say, beside `predict`, `encode_texts` and `token_layout`.

    @abc.abstractmethod
    def blank_conditioning(self, num_rows: int) -> Conditioning:
        """Rows as `encode_texts` gives them for the longest texts, without running an encoder.

        Args:
            num_rows: Number of rows n.

        Returns:
            n rows of zeros on the policy's device, all tokens real, without `negative`.
        """

    # What most families have in common.

    @property
    def latent_channels(self) -> int:
        """Channels of a latent before any packing: those of the denoiser's input."""
        return int(self.trained.config.in_channels)

    @property
    def default_latent_size(self) -> Size:
        """Height and width of the model's own latents: the denoiser's `sample_size`."""
        return Size.of(self.trained.config.sample_size)

    @property
    def latent_multiple(self) -> int:
        """What latent height and width must be a multiple of: the patch of a transformer."""
        return int(getattr(self.trained.config, "patch_size", None) or 1)

    @property
    def largest_latent_size(self) -> int | None:
        """Largest latent height and width, or None where the model sets no limit."""
        return None

    def sampling_scheduler(self, scheduler: Any) -> Any:
        """The scheduler under which a pipeline draws what the policy draws.

        Args:
            scheduler: The pipeline's own.

        Returns:
            The same, unless the model says otherwise and sets `replaces_scheduler`.
        """
        return scheduler

    @classmethod
    def classifier_free_guidance(cls, arguments: Mapping[str, Any]) -> float:
        """The attribute `guidance_scale` that constructor arguments lead to.

        Args:
            arguments: Arguments of the constructor, defaults among them.

        Returns:
            Weight of classifier-free guidance, as far as it is known without the model.
        """
        return float(arguments["guidance_scale"])

    # What follows from it.

    @property
    def trained(self) -> ModelMixin:
        """The denoiser that is trained, also inside `reference`."""
        return getattr(self, self.denoiser_name)

    @property
    def denoiser(self) -> ModelMixin:
        """The trained denoiser, or inside `reference` after full fine-tuning its frozen copy."""
        return self._reference[0] if self._inside_reference else self.trained

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the denoiser's inputs are cast to: the dtype of most of its weights."""
        return torch.float32 if self.full_finetuning else self._frozen_dtype

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, (C, H, W)."""
        return (self.latent_channels, *self._latent_size)

    @property
    def num_image_tokens(self) -> int:
        """Image tokens of one latent: patches of `latent_multiple` squared."""
        return self._latent_size.area // self.latent_multiple**2

    @property
    def image_size(self) -> Size:
        """Height and width of the images in pixels."""
        pixels = int(self.pipeline.vae_scale_factor)
        return Size(self._latent_size.height * pixels, self._latent_size.width * pixels)

    @property
    def buckets(self) -> tuple[Size, ...]:
        """See `Policy.buckets`."""
        return self._buckets

    def load_clean_pipeline(self) -> DiffusionPipeline:
        """Loads `pretrained` anew: the base as diffusers has it, on the CPU, without adapters."""
        quantized = {self.denoiser_name: self.quantize} if self.quantize else None
        return load_pipeline(
            self._source,
            self.pipeline_class,
            self._frozen_dtype,
            self.optional_parts,
            self.load_options,
            quantized,
        )

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encodes prompts, or finds them in `embedding_cache`; see `Policy.encode`."""
        if self._embedding_cache is not None and self._embeddings.folder is None:
            self._embeddings.folder = EmbeddingFolder(self._embedding_cache, self._text_settings())
        return super().encode(prompts)

    def train(self, mode: bool = True) -> DiffusersPolicy:
        """As for any module, but the frozen parts stay in evaluation mode (T5 has dropout)."""
        super().train(mode)
        self.vae.eval()
        self.text_encoders.eval()
        return self

    @property
    def checkpointing(self) -> bool:
        """See `Policy.checkpointing`."""
        return bool(self.trained.is_gradient_checkpointing)

    def checkpoint_activations(self, wanted: bool) -> None:
        """See `Policy.checkpoint_activations`."""
        if wanted:
            self.trained.enable_gradient_checkpointing(checkpointed(self.attention_backend))
        elif self.checkpointing:
            self.trained.disable_gradient_checkpointing()

    def attention_kernels(self) -> AbstractContextManager[None]:
        """Inside, attention is computed by `attention_backend`, and by cuDNN if asked for only."""
        return attention_kernels(self.attention_backend, self.device)

    @contextmanager
    def encoders_ready(self) -> Iterator[None]:
        """Inside, the text encoders are on the policy's device; see `offload`."""
        with self._awake(self.text_encoders), attention_kernels(None, self.device):
            yield

    @contextmanager
    def decoder_ready(self) -> Iterator[None]:
        """Inside, the decoder is on the policy's device; see `offload`."""
        with self._awake(self.vae), attention_kernels(None, self.device):
            yield

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The pretrained model: adapters switched off, or a frozen copy for full fine-tuning.

        The copy is read from `pretrained`, not taken from the weights of the moment, so it is the
        same whenever it is first needed, also after a resume. It then stays in memory.
        """
        if not self.full_finetuning:
            with adapters_disabled(self.trained):
                yield
            return
        if not self._reference:
            loaded = load_denoiser(self._source, self._denoiser_class, self.denoiser_name)
            lay_on(loaded, self._beneath)
            use_attention_backend(loaded, self.attention_backend)
            if self._mesh is not None:
                shard_module(loaded, self._mesh)
            self._reference.append(loaded)
        self._reference[0].to(self.device)
        before, self._inside_reference = self._inside_reference, True
        try:
            yield
        finally:
            self._inside_reference = before

    def shard(self, mesh: DeviceMesh) -> None:
        """Spread denoiser and reference over ranks; encoders and decoder stay whole.

        See `Policy.shard`.
        """
        auto = self.auto_checkpointing
        if self.quantize is not None or self._compiled or auto:
            given = "gradient_checkpointing=auto" if auto else "compile=true"
            given = f"quantize={self.quantize}" if self.quantize else given
            raise ValueError(
                f"trainer.strategy=fsdp2 spreads weights over ranks, which does not go with "
                f"model.policy.{given}; leave one of them out"
            )
        if self._mesh is None:
            self._mesh = mesh
            shard_module(self.trained, mesh)
            for copy in self._reference:
                shard_module(copy, mesh)
            self.lockstep = Lockstep(self._idle_call, self.device)

    def call_kind(self) -> Call:
        """See `Policy.call_kind`: a reference that is a copy has weights of its own."""
        return super().call_kind()._replace(reference=self._inside_reference)

    def _idle_call(self, call: Call) -> Tensor:
        """Predict one blank row, uncounted."""
        latents = torch.zeros(1, *self.latent_shape, device=self.device)
        before, self._inside_reference = self._inside_reference, False
        try:
            with (
                self.reference() if call.reference else nullcontext(),
                self.attention_kernels(),
            ):
                # Any noise level within the schedule of any model: 0 times infinity is no 0.
                return self.predict(
                    latents, latents.new_full((1,), 0.5), self.blank_conditioning(1)
                )
        finally:
            self._inside_reference = before

    def encode_negative(self) -> Conditioning:
        """The row that guidance subtracts: `negative_prompt`."""
        return self.encode_texts([self.negative_prompt])

    @property
    def beneath(self) -> Mapping[str, Factors]:
        """See `Exportable.beneath`."""
        return self._beneath

    @property
    def beneath_from(self) -> str | None:
        """See `Exportable.beneath_from`."""
        return self._beneath_from[0] if self._beneath_from else None

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes adapters as a diffusers LoRA file, or after full fine-tuning a whole pipeline.

        Load the first with ``pipeline.load_lora_weights(folder)``: rank and alpha travel in the
        file's metadata. Load the second as any pipeline. A LoRA that was merged into the reference
        is part of what is written: it belongs on `pretrained`.

        Args:
            folder: Created if absent.
        """
        if self.full_finetuning:
            with quietly(Path(folder)):
                self.pipeline.save_pretrained(folder, safe_serialization=True)
            return
        state, config = lora_state_dict(self.trained), self.trained.peft_config[ADAPTER]
        if self._beneath:
            factors = self._whole_update()
            state, config = peft_names(factors), lora_config(factors)
        layers: dict[str, Any] = {
            f"{self.denoiser_name}_lora_layers": state,
            f"{self.denoiser_name}_lora_adapter_metadata": config.to_dict(),
        }
        self.pipeline_class.save_lora_weights(folder, **layers)

    @classmethod
    def layouts(cls, arguments: Mapping[str, Any]) -> tuple[Layout, ...]:
        """See `Exportable.layouts`: no adapters after full fine-tuning, no sum in few bits."""
        if arguments.get("full_finetuning"):
            return ("diffusers", "merged")
        whole: tuple[Layout, ...] = () if arguments.get("quantize") else ("merged",)
        return ("diffusers", *cls.lora_layouts, *whole)

    def save_as(self, folder: str | Path, form: Form) -> None:
        """See `Exportable.save_as`."""
        if form.layout == "diffusers" or self.full_finetuning:
            self.save_pretrained(folder)
        elif form.layout == "merged":
            merged = self.load_clean_pipeline()
            lay_on(getattr(merged, self.denoiser_name), self._whole_update())
            with quietly(Path(folder)):
                merged.save_pretrained(folder, safe_serialization=True)
        else:
            tensors = self.lora_layouts[form.layout](self._whole_update(), self.trained)
            on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(on_cpu, Path(folder) / f"{form.name}.safetensors", {"format": "pt"})

    def _whole_update(self) -> dict[str, Factors]:
        """What the policy adds to `pretrained`."""
        own = read_factors(self.trained, ADAPTER)
        return summed(self._beneath, own) if self._beneath else own

    def load_exported(self, folder: str | Path) -> DiffusionPipeline:
        """The pretrained pipeline with the folder's adapters, or the folder's own pipeline."""
        if (Path(folder) / "model_index.json").is_file():
            pipeline = load_pipeline(
                Path(folder),
                self.pipeline_class,
                self._frozen_dtype,
                self.optional_parts,
                self.load_options,
            )
        else:
            pipeline = self.load_clean_pipeline()
            pipeline.load_lora_weights(find_lora(folder, "--out"), adapter_name=ADAPTER)
        pipeline.scheduler = self.sampling_scheduler(pipeline.scheduler)
        return pipeline

    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """Steps, guidance, size and what the text encoders are told."""
        arguments: dict[str, Any] = {
            "num_inference_steps": num_steps,
            "guidance_scale": self.guidance_scale,
            "height": self.image_size.height,
            "width": self.image_size.width,
        }
        texts = {name: getattr(self, name, None) for name in self.text_arguments}
        return arguments | {name: value for name, value in texts.items() if value not in (None, "")}

    @contextmanager
    def at_resolution(self, resolution: Resolution | None) -> Iterator[None]:
        """Inside, latents and images have another size; see `Policy.at_resolution`."""
        before = self._latent_size
        self._latent_size = before if resolution is None else self._latent_size_of(resolution)
        try:
            yield
        finally:
            self._latent_size = before

    def _text_settings(self) -> list[object]:
        """What embeddings depend on: the model, its files or revision, and arguments."""
        arguments = [getattr(self, name, None) for name in self.text_arguments]
        settings = [type(self).__name__, self._frozen_dtype, arguments]
        if not isinstance(self._source, Path):  # another upload is another model under this name
            return [*settings, self._source, cached_revision(self._source)]
        tokenizers = [name for name in self.pipeline.components if name.startswith("tokenizer")]
        files = [
            (name, path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for name in (*self.encoder_names, *tokenizers)
            for path in sorted((self._source / name).glob("*"))
        ]
        return [*settings, self._source.resolve(), files]

    @contextmanager
    def _awake(self, part: nn.Module) -> Iterator[None]:
        if self.offload:
            part.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                part.to("cpu")

    def _latent_size_of(self, resolution: Resolution) -> Size:
        """Latent height and width for a resolution in pixels."""
        pixels, limit = int(self.pipeline.vae_scale_factor), self.largest_latent_size
        largest = None if limit is None else pixels * limit
        size = accepted_size(resolution, pixels * self.latent_multiple, largest)
        return Size(size.height // pixels, size.width // pixels)


def scaled_decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Undoes the latent scaling of an AutoencoderKL and runs its decoder.

    Args:
        vae: The autoencoder; `shift_factor` counts as 0 where it has none.
        latents: Clean latents in the denoiser's scale, shape (n, C, h, w).

    Returns:
        Images, shape (n, 3, H, W) fp32; values may leave [0, 1].
    """
    config: Any = vae.config
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    dtype: Any = vae.dtype
    images: Tensor = vae.decode(latents.to(dtype), return_dict=False)[0]  # type: ignore[operator]
    return images.float() / 2 + 0.5
