"""Which kernels compute attention: diffusers' names for them, and cuDNN's only where asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models import AttentionBackendName, ModelMixin, attention_backend
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

NATIVE = "native"
"""All of torch's own kernels but cuDNN's."""
OF_TORCH = {
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_math": SDPBackend.MATH,
}
"""Kernels of `F.scaled_dot_product_attention` by diffusers' names; every model can run them."""
_NO_KERNEL = ("No available kernel", "No viable backend")


def check_attention_backend(name: str | None) -> None:
    """Refuses a name that diffusers does not know or cannot run here, before anything loads.

    Args:
        name: One of diffusers' `AttentionBackendName`, or None.

    Raises:
        ValueError: If it is unknown, or a library that it needs is missing.
    """
    names = [backend.value for backend in AttentionBackendName]
    if name is not None and name not in names:
        raise ValueError(f"attention_backend={name!r}; choose null or one of {', '.join(names)}")
    if name is not None:
        try:
            with attention_backend(name):
                pass
        except (RuntimeError, ImportError, OSError) as error:
            raise ValueError(f"attention_backend={name!r} cannot run here: {error}") from error


def use_attention_backend(model: ModelMixin, name: str | None) -> None:
    """Tells those layers that leave the choice to diffusers' dispatcher.

    The others call torch's attention themselves, and follow `attention_kernels`.

    Args:
        model: Changed in place.
        name: The backend; None changes nothing.

    Raises:
        ValueError: If a layer computes attention without the dispatcher and the backend is none
            of torch's own.
    """
    if name is None:
        return
    processors = [module.processor for module in model.modules() if hasattr(module, "processor")]
    direct = [one for one in processors if not hasattr(one, "_attention_backend")]
    if direct and name != NATIVE and name not in OF_TORCH:
        raise ValueError(
            f"attention_backend={name!r}: the layers of {type(model).__name__} call torch's "
            f"attention themselves; choose null, {NATIVE}, {', '.join(OF_TORCH)}"
        )
    if len(direct) < len(processors):
        with attention_backend(name):  # which puts back what is active beyond this model
            model.set_attention_backend(name)


def attention_kernels(name: str | None, device: torch.device) -> AbstractContextManager[None]:
    """Inside, `F.scaled_dot_product_attention` runs what was asked for, and never cuDNN unasked.

    cuDNN is torch's first choice on recent cards, and its backward has open faults there (FLUX.1
    dies in it; pytorch#122695, #134001, #196678). The switches are torch's global ones, and are
    afterwards what they were. What a compiled graph runs is fixed when it is traced.

    Args:
        name: The policy's `attention_backend`; None for torch's choice.
        device: Where attention is computed.

    Returns:
        The context; on a CPU without a kernel's name one that does nothing.
    """
    if name in OF_TORCH:
        return _only(name)
    return _without_cudnn() if device.type == "cuda" else nullcontext()


@contextmanager
def _only(name: str) -> Iterator[None]:
    with sdpa_kernel(OF_TORCH[name]):
        try:
            yield
        except RuntimeError as error:
            if not str(error).startswith(_NO_KERNEL):
                raise
            raise ValueError(
                f"attention_backend={name!r} has no kernel for this device, dtype or mask; choose "
                f"null or {NATIVE}, which take another where one does not fit"
            ) from error


@contextmanager
def _without_cudnn() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    others = (
        torch.backends.cuda.flash_sdp_enabled()
        or torch.backends.cuda.mem_efficient_sdp_enabled()
        or torch.backends.cuda.math_sdp_enabled()
    )
    # Somebody who switched all others off has asked for it.
    torch.backends.cuda.enable_cudnn_sdp(before and not others)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def checkpointed(name: str | None) -> Callable[..., Any]:
    """Gradient checkpointing whose second forward, in the backward pass, runs the same kernels.

    Args:
        name: The policy's `attention_backend`.

    Returns:
        What diffusers' `enable_gradient_checkpointing` takes: a function of a block and its inputs.
    """

    def run(block: Any, *inputs: Any) -> Any:
        # Under a compiler the second forward is part of the graph, kernels and all.
        if torch.compiler.is_compiling():
            return checkpoint(block.__call__, *inputs, use_reentrant=False)
        device = next(value.device for value in inputs if isinstance(value, Tensor))
        return checkpoint(
            block.__call__,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), attention_kernels(name, device)),
        )

    return run
