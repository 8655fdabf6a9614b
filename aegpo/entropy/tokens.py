"""Which tokens ask and which are looked at: token sets over image and text tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

TokenSet = Literal["all_to_all", "image_to_all", "image_to_text", "image_to_image", "text_to_image"]
"""Queries and keys of an entropy, as in "image_to_text": image queries over text keys only."""


@dataclass(frozen=True)
class TokenLayout:
    """Where image and text tokens lie in a denoiser's joint attention, for n rows.

    Args:
        num_image: Image tokens I per row, >= 1.
        num_text: Text tokens S per row, padding included, >= 0.
        image_first: True for [image, text] (SD3), False for [text, image] (FLUX).
        text_mask: Real text tokens, shape (n, S) bool, False for padding and for the zeros that
            stand in for an absent T5; None if all are real.
        image_sizes: Other numbers of image tokens that self-attention meets, as at the lower levels
            of a UNet.
        cross_layers: Ends of the names of layers where image tokens look at text tokens only
            ("attn2" of a UNet). A model that has them has no joint attention.
        text_layers: Parts of the names of layers where text looks at text; they have no image
            tokens and are never measured.
        ragged: Whether a call may end before the last text token, where no row of it has text: a
            model may pad to the longest text of a call instead of all S tokens (Z-Image).

    Raises:
        ValueError: If a count is out of range, the mask has another dtype or width, or `ragged` is
            without `image_first`.
    """

    num_image: int
    num_text: int
    image_first: bool
    text_mask: Tensor | None = None
    image_sizes: tuple[int, ...] = ()
    cross_layers: tuple[str, ...] = ()
    text_layers: tuple[str, ...] = ()
    ragged: bool = False

    def __post_init__(self) -> None:
        if self.num_image < 1 or self.num_text < 0:
            raise ValueError(
                f"a layout of {self.num_image} image and {self.num_text} text tokens; "
                "num_image must be >= 1 and num_text >= 0"
            )
        if self.ragged and not self.image_first:
            raise ValueError("a ragged layout must have image_first=True: its text ends the call")
        mask = self.text_mask
        if mask is not None and (
            mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != self.num_text
        ):
            raise ValueError(
                f"text_mask is {mask.dtype} of shape {tuple(mask.shape)}; "
                f"it must be bool of shape (n, {self.num_text})"
            )

    def select(self, rows: Tensor | slice) -> TokenLayout:
        """The layout of some rows, in the order of ``rows`` (n', int64 or a slice)."""
        if self.text_mask is None:
            return self
        return replace(self, text_mask=self.text_mask[rows])

    def cut(self, num_text: int) -> TokenLayout:
        """The layout of a call that has only the first `num_text` text tokens."""
        mask = None if self.text_mask is None else self.text_mask[:, :num_text]
        return replace(self, num_text=num_text, text_mask=mask)


@dataclass(frozen=True)
class TokenSelection:
    """A token set made concrete for one attention call.

    Args:
        queries: Positions of the query tokens that are asked, shape (P,) int64.
        query_mask: Which of them are real, shape (n, P) bool; None if all are.
        key_mask: Which keys count, shape (n or 1, M) bool; None if all do.
    """

    queries: Tensor
    query_mask: Tensor | None
    key_mask: Tensor | None


def check_token_set(tokens: str, layout: TokenLayout | None = None) -> None:
    """Refuse an unknown token set, or one that a layout cannot serve.

    Args:
        tokens: Name of the token set.
        layout: Layout to serve, or None to check the name alone.

    Raises:
        ValueError: If the name is unknown, the set needs text and a row has no real text token, or
            text asks where there is cross-attention only.
    """
    if tokens not in get_args(TokenSet):
        raise ValueError(
            f"unknown token set {tokens!r}; choose from {', '.join(get_args(TokenSet))}"
        )
    if layout is None or tokens not in ("image_to_text", "text_to_image"):
        return
    if tokens == "text_to_image" and layout.cross_layers:
        raise ValueError(
            f"token set {tokens!r}: no attention of this model has text queries, its image tokens "
            "look at text in cross-attention; use image_to_text"
        )
    if layout.num_text == 0 or (
        layout.text_mask is not None and not bool(layout.text_mask.any(dim=1).all())
    ):
        raise ValueError(
            f"token set {tokens!r} needs text, but a row has no real text token; "
            "use image_to_all or image_to_image"
        )


def absent_token_sets(layout: TokenLayout) -> dict[str, str]:
    """Token sets that a layout does not have.

    Args:
        layout: Where the tokens lie.

    Returns:
        The reason by token set.
    """
    absent = {}
    for tokens in get_args(TokenSet):
        try:
            check_token_set(tokens, layout)
        except ValueError as error:
            absent[tokens] = str(error)
    return absent


def select_tokens(
    tokens: TokenSet, layout: TokenLayout, num_queries: int, num_keys: int, layer: str = ""
) -> TokenSelection | None:
    """Find a token set in one attention call.

    Three kinds of call are known: joint attention over all I + S tokens, image-only self-attention
    (the second attention of SD3.5's blocks, or a UNet's at each of its levels), and cross-attention
    of image tokens over S text tokens. In the latter two a token set is what there is of it: image
    queries over all keys of a cross-attention are over the text.

    Args:
        tokens: Name of the token set.
        layout: Where image and text lie; ``text_mask`` has one row per row of the call.
        num_queries: Query tokens of the call.
        num_keys: Key tokens of the call, M.
        layer: Name of the attention layer, by which cross-attention is told from self-attention.

    Returns:
        The selection on the mask's device (CPU without a mask), or None if the call has no such
        tokens.

    Raises:
        ValueError: If the lengths fit no known kind of call.
    """
    if layout.ragged and 0 < num_keys - layout.num_image < layout.num_text:
        layout = layout.cut(num_keys - layout.num_image)
    image, text = layout.num_image, layout.num_text
    if any(part in layer for part in layout.text_layers):
        return None
    if layer.endswith(layout.cross_layers):
        return _select_cross(tokens, layout, num_queries, num_keys, layer)
    joint = 0 if layout.cross_layers else image + text
    image_sizes = (image, *layout.image_sizes)
    if num_queries != num_keys or num_keys not in (*image_sizes, joint):
        raise ValueError(
            f"attention of {num_queries} queries over {num_keys} keys does not fit a layout of "
            f"{image} image and {text} text tokens; known are "
            + (f"joint attention over {joint} tokens and " if joint else "")
            + f"image-only attention over {', '.join(map(str, image_sizes))}"
        )
    if tokens in ("image_to_text", "text_to_image") and (
        num_keys in image_sizes or _is_textless(layout)
    ):
        return None
    device = torch.device("cpu") if layout.text_mask is None else layout.text_mask.device
    if num_keys in image_sizes:
        return TokenSelection(torch.arange(num_keys, device=device), None, None)

    asks, _, looks = tokens.partition("_to_")
    real = _real_tokens(layout)
    asked, seen = _range(asks, layout), _range(looks, layout)
    # Made where they are used: a copy, or a choice by a mask, would wait for the device.
    positions = torch.arange(image + text, device=device)
    query_mask = None if real is None or asks == "image" else real[:, asked.start : asked.stop]
    key_mask: Tensor | None = None
    if looks != "all":
        key_mask = ((positions >= seen.start) & (positions < seen.stop))[None]
    if real is not None and looks != "image":
        key_mask = real if key_mask is None else real & key_mask
    return TokenSelection(positions[asked.start : asked.stop], query_mask, key_mask)


def _range(which: str, layout: TokenLayout) -> range:
    """Positions of "all", "image" or "text" tokens, which lie side by side."""
    both = layout.num_image + layout.num_text
    first = layout.num_image if layout.image_first else layout.num_text
    if which == "all":
        return range(both)
    return range(first) if (which == "image") is layout.image_first else range(first, both)


def _is_textless(layout: TokenLayout) -> bool:
    return layout.ragged and layout.text_mask is not None and not bool(layout.text_mask.any())


def _select_cross(
    tokens: TokenSet, layout: TokenLayout, num_queries: int, num_keys: int, layer: str
) -> TokenSelection | None:
    """Image queries over the real text tokens, for the token sets that have them."""
    if num_keys != layout.num_text:
        raise ValueError(
            f"cross-attention {layer} has {num_keys} keys, but the text has {layout.num_text} "
            "tokens"
        )
    if tokens in ("image_to_image", "text_to_image"):
        return None
    return TokenSelection(torch.arange(num_queries, device="cpu"), None, layout.text_mask)


def _real_tokens(layout: TokenLayout) -> Tensor | None:
    """Tokens that are not padding, (n, I + S) bool, or None if none is padding."""
    if layout.text_mask is None:
        return None
    text = layout.text_mask
    image = text.new_ones(len(text), layout.num_image)
    return torch.cat([image, text] if layout.image_first else [text, image], dim=1)
