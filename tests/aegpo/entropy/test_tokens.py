"""Token sets on layouts small enough to write the answer down."""

from __future__ import annotations

import pytest
import torch

from aegpo.entropy.tokens import TokenLayout, check_token_set, select_tokens

PADDED_4 = torch.tensor([[True, True, True, False], [True, True, False, False]])
PADDED = torch.tensor([[True, True, False], [True, False, False]])


def test_image_first_without_padding() -> None:
    layout = TokenLayout(num_image=2, num_text=3, image_first=True)
    expected = {
        "all_to_all": ([0, 1, 2, 3, 4], None),
        "image_to_all": ([0, 1], None),
        "image_to_text": ([0, 1], [[False, False, True, True, True]]),
        "image_to_image": ([0, 1], [[True, True, False, False, False]]),
        "text_to_image": ([2, 3, 4], [[True, True, False, False, False]]),
    }
    for tokens, (queries, keys) in expected.items():
        chosen = select_tokens(tokens, layout, 5, 5)
        assert chosen is not None
        assert chosen.queries.tolist() == queries
        assert chosen.query_mask is None
        assert (None if chosen.key_mask is None else chosen.key_mask.tolist()) == keys


def test_padding_is_neither_asked_nor_looked_at() -> None:
    layout = TokenLayout(2, 3, image_first=True, text_mask=PADDED)
    chosen = select_tokens("all_to_all", layout, 5, 5)
    assert chosen is not None and chosen.query_mask is not None and chosen.key_mask is not None
    real = [[True, True, True, True, False], [True, True, True, False, False]]
    assert chosen.query_mask.tolist() == real
    assert chosen.key_mask.tolist() == real
    chosen = select_tokens("text_to_image", layout, 5, 5)
    assert chosen is not None and chosen.query_mask is not None and chosen.key_mask is not None
    assert chosen.query_mask.tolist() == PADDED.tolist()
    assert chosen.key_mask.tolist() == [[True, True, False, False, False]]
    chosen = select_tokens("image_to_all", layout, 5, 5)
    assert chosen is not None and chosen.query_mask is None and chosen.key_mask is not None
    assert chosen.key_mask.tolist() == real


def test_text_first() -> None:
    layout = TokenLayout(2, 3, image_first=False, text_mask=PADDED)
    chosen = select_tokens("image_to_text", layout, 5, 5)
    assert chosen is not None and chosen.key_mask is not None
    assert chosen.queries.tolist() == [3, 4]
    assert chosen.key_mask.tolist() == [
        [True, True, False, False, False],
        [True, False, False, False, False],
    ]


def test_image_only_attention_has_no_text_to_speak_of() -> None:
    layout = TokenLayout(4, 3, image_first=True, text_mask=PADDED)
    for tokens in ("all_to_all", "image_to_all", "image_to_image"):
        chosen = select_tokens(tokens, layout, 4, 4)
        assert chosen is not None and chosen.key_mask is None
        assert chosen.queries.tolist() == [0, 1, 2, 3]
    assert select_tokens("image_to_text", layout, 4, 4) is None
    assert select_tokens("text_to_image", layout, 4, 4) is None


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (2, 5), (2, 3)])
def test_other_attention_is_refused(queries: int, keys: int) -> None:
    with pytest.raises(ValueError, match=f"{queries} queries over {keys} keys"):
        select_tokens("image_to_all", TokenLayout(2, 3, True), queries, keys)


def test_select_follows_rows() -> None:
    layout = TokenLayout(2, 3, True, PADDED)
    chosen = layout.select(torch.tensor([1, 1, 0])).text_mask
    assert chosen is not None and chosen.tolist() == PADDED[[1, 1, 0]].tolist()
    plain = TokenLayout(2, 3, True)
    assert plain.select(slice(0, 1)) == plain


def test_wrong_layouts_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="num_image must be >= 1"):
        TokenLayout(0, 3, True)
    with pytest.raises(ValueError, match=r"bool of shape \(n, 4\)"):
        TokenLayout(2, 4, True, PADDED)
    with pytest.raises(ValueError, match="must be bool"):
        TokenLayout(2, 3, True, PADDED.float())
    with pytest.raises(ValueError, match="choose from all_to_all"):
        check_token_set("image_to_sound")


def test_sets_about_text_need_text() -> None:
    empty = TokenLayout(2, 3, True, torch.tensor([[True, True, True], [False, False, False]]))
    for tokens in ("image_to_text", "text_to_image"):
        with pytest.raises(ValueError, match="no real text token"):
            check_token_set(tokens, empty)
        with pytest.raises(ValueError, match="no real text token"):
            check_token_set(tokens, TokenLayout(2, 0, True))
    check_token_set("image_to_all", empty)


def test_a_unet_has_levels_and_cross_attention() -> None:
    layout = TokenLayout(16, 4, True, PADDED_4, image_sizes=(4,), cross_layers=("attn2",))
    for size in (16, 4):
        own = select_tokens("image_to_all", layout, size, size, "down.attn1")
        assert own is not None and own.key_mask is None and len(own.queries) == size
        assert select_tokens("image_to_text", layout, size, size, "down.attn1") is None
    # At the level of four image tokens cross-attention has the lengths of a self-attention.
    for tokens in ("image_to_text", "image_to_all", "all_to_all"):
        cross = select_tokens(tokens, layout, 4, 4, "down.attn2")
        assert cross is not None and cross.key_mask is PADDED_4 and len(cross.queries) == 4
    assert select_tokens("image_to_image", layout, 4, 4, "down.attn2") is None
    with pytest.raises(ValueError, match="5 keys, but the text has 4"):
        select_tokens("image_to_text", layout, 16, 5, "down.attn2")
    # 16 + 4 tokens would be joint attention, which such a model has not.
    with pytest.raises(ValueError, match="known are image-only attention over 16, 4"):
        select_tokens("all_to_all", layout, 20, 20, "down.attn1")
    check_token_set("image_to_text", layout)
    with pytest.raises(ValueError, match="no attention of this model has text queries"):
        check_token_set("text_to_image", layout)


def test_layers_of_text_alone_are_not_measured() -> None:
    layout = TokenLayout(16, 4, True, text_layers=("context_refiner",))
    assert select_tokens("all_to_all", layout, 4, 4, "context_refiner.0.attention") is None
    assert select_tokens("all_to_all", layout, 20, 20, "layers.0.attention") is not None


def test_a_ragged_call_ends_before_the_last_text_token() -> None:
    mask = torch.tensor([[False, True, True, False, False], [False, True, False, False, False]])
    layout = TokenLayout(2, 5, image_first=True, text_mask=mask, ragged=True)
    chosen = select_tokens("image_to_text", layout, 5, 5)
    assert chosen is not None and chosen.key_mask is not None
    assert chosen.queries.tolist() == [0, 1]
    assert chosen.key_mask.tolist() == [
        [False, False, False, True, True],
        [False, False, False, True, False],
    ]
    # One token after the image is padding in every row: no text, and no key of an image.
    assert select_tokens("image_to_text", layout, 3, 3) is None
    assert select_tokens("text_to_image", layout, 3, 3) is None
    image = select_tokens("image_to_all", layout, 3, 3)
    assert image is not None and image.key_mask is not None
    assert image.queries.tolist() == [0, 1]
    assert image.key_mask.tolist() == [[True, True, False]] * 2
    with pytest.raises(ValueError, match="does not fit"):
        select_tokens("image_to_all", layout, 8, 8)
    with pytest.raises(ValueError, match="does not fit"):
        select_tokens("image_to_all", TokenLayout(2, 5, True, mask), 5, 5)
    with pytest.raises(ValueError, match="image_first"):
        TokenLayout(2, 5, image_first=False, ragged=True)
