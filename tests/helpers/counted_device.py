"""A second device in this process, on which whatever makes the host wait for it is counted.

Its tensors hold what they are on the CPU, and every operation on them is the CPU's own, so that
numbers are real; only their device is another one ("lazy", which torch knows and does not compute
on here). A program that does not look at values, and copies nothing but by `non_blocking`, could
run ahead of a GPU as far as its memory allows.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "lazy"
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique")
"""Operations whose result, or its shape, the host has to know."""
OURS = ("aegpo", "lightning_modules", "diffusers", "peft")


class Apart(Tensor):
    """A tensor of the device; `held` is what it is."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Apart:
        made: Apart = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        return made

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Apart({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, lambda what: None)


class Waits(TorchDispatchMode):
    """Counts what the host waits for, by what it is and the line of the program.

    Attributes:
        found: How often each was met.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self._note)

    def _note(self, what: str) -> None:
        frames = [
            frame
            for frame in traceback.extract_stack()
            if any(f"/{name}/" in frame.filename for name in OURS)
        ]
        where = "/".join(frames[-1].filename.split("/")[-2:]) if frames else "nowhere"
        self.found[f"{what} in {where}:{frames[-1].lineno if frames else 0}"] += 1


@contextmanager
def counted(*modules: nn.Module) -> Iterator[Waits]:
    """Inside, modules lie on the device; what they hold is computed on as ever.

    Args:
        modules: Networks, for good: their parameters are replaced.

    Yields:
        What is counted.
    """
    for module in (part for whole in modules for part in whole.modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                apart = nn.Parameter(Apart(parameter.data), parameter.requires_grad)
                module._parameters[name] = apart
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Apart(buffer)
    lifting = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # or `torch.tensor` would look for its kernels
    try:
        # torch has no autocast for the device, and nothing here asks for it.
        without = patch.multiple(
            torch,
            autocast=lambda *_, **__: nullcontext(),
            is_autocast_enabled=lambda *_: False,
        )
        with without, Waits() as waits:
            yield waits
    finally:
        torch._C._set_only_lift_cpu_tensors(lifting)


def _run(func: Any, args: Any, kwargs: dict[str, Any], note: Callable[[str], None]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    apart = any(isinstance(tensor, Apart) for tensor in tensors)
    device = kwargs.get("device")
    there = device is not None and torch.device(device).type == NAME
    back = apart and device is not None and not there
    if not apart and not there:
        return func(*args, **kwargs)
    name = func._schema.name.partition("::")[2]
    for what in _waits(name, args, kwargs, apart, there, back):
        note(what)
    if there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    written = [
        given
        for given, said in zip(args, func._schema.arguments, strict=False)
        if said.alias_info is not None and said.alias_info.is_write
    ]
    if written and isinstance(out, Tensor):
        return written[0]
    return out if back else tree_map(_apart, out)


def _waits(
    name: str, args: Any, kwargs: dict[str, Any], apart: bool, there: bool, back: bool
) -> Iterator[str]:
    """What of one operation the host waits for."""
    if apart and name.startswith(READS):
        yield f"{name} reads a value"
    if apart and name.startswith("index"):
        chosen = [leaf for leaf in tree_leaves(args[1:2]) if isinstance(leaf, Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in chosen):
            yield "a mask chooses"
        if any(not isinstance(index, Apart) for index in chosen):
            yield "an index comes from the host"
    copies = name in ("_to_copy", "copy_")
    if copies and back:
        yield "a copy to the host"
    if copies and there and not apart and not kwargs.get("non_blocking"):
        yield "a copy from the host"
    if name == "copy_" and not all(isinstance(one, Apart) for one in args[:2]):
        yield "a copy across"


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Apart) else value


def _apart(value: Any) -> Any:
    return Apart(value) if isinstance(value, Tensor) else value
