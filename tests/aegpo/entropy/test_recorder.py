"""EntropyRecorder on real diffusers transformers, tiny and untrained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from alongside import Alongside
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aegpo.entropy.recorder import EntropyRecorder
from aegpo.entropy.tokens import TokenLayout

IMAGE, TEXT = 16, 6


@dataclass
class FakePolicy:
    """A transformer, its layout, and a model call like a policy's, in chunks and with guidance."""

    model: nn.Module
    image_first: bool
    num_evaluations_per_sample: int = 1
    max_batch: int = 64
    text: Tensor = field(
        default_factory=lambda: torch.randn(8, TEXT, 12, generator=torch.Generator().manual_seed(5))
    )
    mask: Tensor | None = None
    at_retry: list[Callable[[], None]] = field(default_factory=list)
    idle: bool = False

    @property
    def denoiser(self) -> nn.Module:
        return self.model

    def attention_layers(self) -> list[tuple[str, nn.Module]]:
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if hasattr(module, "processor") and hasattr(module, "heads")
        ]

    def layout(self, rows: Tensor) -> TokenLayout:
        mask = None if self.mask is None else self.mask[rows]
        return TokenLayout(IMAGE, TEXT, self.image_first, mask)

    def __call__(self, latents: Tensor, time: float, rows: Tensor) -> Tensor:
        chunks = zip(latents.split(self.max_batch), rows.split(self.max_batch), strict=True)
        return torch.cat([self.predict(x, time, self.text[row]) for x, row in chunks])

    def predict(self, latents: Tensor, time: float, text: Tensor) -> Tensor:
        if self.num_evaluations_per_sample == 2:
            latents = torch.cat([latents, latents])
            text = torch.cat([text, torch.zeros_like(text)])
        n = len(latents)
        arguments: dict[str, Any] = {
            "encoder_hidden_states": text,
            "pooled_projections": text[:, 0, :10],
            "timestep": torch.full((n,), time),
            "return_dict": False,
        }
        if not self.image_first:
            latents = latents.reshape(n, 4, IMAGE).transpose(1, 2)
            arguments |= {"txt_ids": torch.zeros(TEXT, 3), "img_ids": torch.zeros(IMAGE, 3)}
            arguments["img_ids"][:, 1] = torch.arange(IMAGE)
        return self.model(latents, **arguments)[0]


def sharpened(model: nn.Module) -> nn.Module:
    """Untrained attention is nearly uniform; larger queries and keys make it uneven."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("to_q.", "to_k.", "add_q", "add_k")):
            parameter.data *= 6
    return model.eval()


def sd3(dual: tuple[int, ...] = (), patch_size: int = 2) -> FakePolicy:
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=patch_size, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12,
        caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=8,
        dual_attention_layers=dual, qk_norm="rms_norm" if dual else None,
    )  # fmt: skip
    return FakePolicy(sharpened(model), image_first=True)


def flux() -> FakePolicy:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return FakePolicy(sharpened(model), image_first=False)


POLICIES = {"sd3": sd3, "sd3.5": lambda: sd3(dual=(0,)), "flux": flux}


@pytest.fixture(scope="module", params=list(POLICIES))
def policy(request: pytest.FixtureRequest) -> FakePolicy:
    return POLICIES[request.param]()


@pytest.fixture(scope="module")
def sd3_policy() -> FakePolicy:
    return sd3()


def latents(policy: FakePolicy, n: int, seed: int = 1) -> Tensor:
    side = 8 if policy.image_first else 4
    return torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(seed))


@contextmanager
def captured() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """An independent look at the queries and keys of every attention call."""
    original, calls = F.scaled_dot_product_attention, []

    def capture(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((query, key))
        return original(query, key, *args, **kwargs)

    F.scaled_dot_product_attention = capture
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = original


def expected_entropy(
    calls: list[tuple[Tensor, Tensor]], policy: FakePolicy, tokens: str, rows: Tensor
) -> Tensor:
    """Mean entropy (n, L) by an explicit float64 softmax over the tokens, sample by sample."""
    asks, looks = tokens.split("_to_")
    columns = []
    for query, key in calls:
        joint = query.shape[2] != IMAGE
        if not joint and "text" in tokens:
            continue
        values = []
        for sample, row in enumerate(rows.tolist()):
            real = torch.ones(TEXT, dtype=torch.bool) if policy.mask is None else policy.mask[row]
            kinds = ["text"] * TEXT if joint else []
            kinds = ["image"] * IMAGE + kinds if policy.image_first else kinds + ["image"] * IMAGE
            texts = iter(real.tolist())
            keep = [kind == "image" or next(texts) for kind in kinds]
            asked = [i for i, k in enumerate(kinds) if keep[i] and asks in ("all", k)]
            looked = [i for i, k in enumerate(kinds) if keep[i] and looks in ("all", k)]
            q, k = query[sample, :, asked].double(), key[sample, :, looked].double()
            p = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
            values.append(-(p * p.log()).sum(dim=-1).mean() / math.log(len(looked)))
        columns.append(torch.stack(values))
    return torch.stack(columns, dim=1)


PADDING = torch.arange(TEXT) < torch.tensor([6, 2, 4, 1, 5, 3, 6, 2])[:, None]
TOKEN_SETS = ["all_to_all", "image_to_all", "image_to_text", "image_to_image", "text_to_image"]


@pytest.mark.parametrize("tokens", TOKEN_SETS)
@pytest.mark.parametrize("mask", [None, PADDING], ids=["whole", "padded"])
def test_all_rows_equal_the_explicit_softmax(
    policy: FakePolicy, tokens: Any, mask: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "mask", mask)
    rows = torch.tensor([0, 2, 4])
    x = latents(policy, 3)
    with torch.no_grad(), captured() as calls:
        plain = policy(x, 700.0, rows)
    recorder = EntropyRecorder(tokens=tokens, rows=None)
    with torch.no_grad(), recorder.record(policy) as recording:
        recording.begin(0, torch.tensor([0, 1, 2]), policy.layout(rows))
        watched = policy(x, 700.0, rows)
    assert torch.equal(plain, watched)
    expected = expected_entropy(calls, policy, tokens, rows)
    torch.testing.assert_close(
        recording.per_prompt_layer()[..., 0].double(), expected, rtol=0, atol=2e-6
    )
    torch.testing.assert_close(
        recording.curve()[:, 0].double(), expected.mean(1), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(
        recording.per_layer()[:, 0].double(), expected.mean(0), rtol=0, atol=2e-6
    )
    names = [name for name, _ in policy.attention_layers()]
    if "text" in tokens:
        names = [name for name in names if not name.endswith("attn2")]
    assert recording.layer_names == names
    assert expected.std() > 1e-4  # else the comparison would prove little


def trajectory(
    policy: FakePolicy, recorder: EntropyRecorder, prompts: Tensor, steps: int = 3
) -> Any:
    """Record a few steps over rows of prompts."""
    x = latents(policy, len(prompts))
    with torch.no_grad(), recorder.record(policy) as recording:
        for step in range(steps):
            recording.begin(step, prompts, policy.layout(prompts))
            policy(x, 900.0 - 300 * step, prompts)
    return recording


@pytest.mark.parametrize("tokens", ["image_to_all", "text_to_image"])
def test_chunks_and_guidance_change_nothing(tokens: Any, sd3_policy: FakePolicy) -> None:
    prompts = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    recorder = EntropyRecorder(tokens=tokens, rows=3)
    sd3_policy.mask = PADDING
    try:
        whole = trajectory(sd3_policy, recorder, prompts).per_prompt_layer()
        assert whole.shape == (4, 2, 3)
        sd3_policy.max_batch = 3
        chunked = trajectory(sd3_policy, recorder, prompts).per_prompt_layer()
        torch.testing.assert_close(chunked, whole)
        sd3_policy.num_evaluations_per_sample = 2
        guided = trajectory(sd3_policy, recorder, prompts).per_prompt_layer()
        torch.testing.assert_close(guided, whole)
    finally:
        sd3_policy.mask, sd3_policy.max_batch = None, 64
        sd3_policy.num_evaluations_per_sample = 1


def test_rows_of_a_prompt_are_averaged_over_rows_and_rollouts(sd3_policy: FakePolicy) -> None:
    recorder = EntropyRecorder(rows=None)
    x = latents(sd3_policy, 3)

    def seen(rows: list[int], prompts: list[int]) -> Tensor:
        text = torch.tensor([0])
        with torch.no_grad(), recorder.record(sd3_policy) as recording:
            for row, prompt in zip(rows, prompts, strict=True):
                recording.begin(0, torch.tensor([prompt]), sd3_policy.layout(text))
                sd3_policy(x[row : row + 1], 500.0, text)
        return recording.curve()[:, 0]

    alone = torch.cat([seen([row], [0]) for row in range(3)])
    expected = torch.stack([alone[:2].mean(), alone[2]])
    torch.testing.assert_close(seen([0, 1, 2], [0, 0, 1]), expected)
    torch.testing.assert_close(seen([2, 1, 0], [1, 0, 0]), expected)


def test_padding_content_changes_nothing_once_masked(sd3_policy: FakePolicy) -> None:
    """Attention itself sees padding; the entropy of layer 0 must not."""
    prompts = torch.arange(4)  # 6, 2, 4 and 1 real text tokens
    before = sd3_policy.text.clone()
    first = sd3_policy.attention_layers()[0][0]
    try:
        for tokens in ("image_to_all", "image_to_text", "text_to_image", "all_to_all"):
            recorder = EntropyRecorder(layers=[first], tokens=tokens, rows=5)
            values = []
            for scale in (0.0, 9.0):
                filler = scale * torch.randn(TEXT, 12, generator=torch.Generator().manual_seed(3))
                sd3_policy.text = torch.where(PADDING[:, :, None], before, filler)
                sd3_policy.mask = PADDING
                values.append(trajectory(sd3_policy, recorder, prompts, 1).per_layer())
            torch.testing.assert_close(values[0], values[1])
            sd3_policy.mask = None
            assert (
                trajectory(sd3_policy, recorder, prompts, 1).per_layer() - values[1]
            ).abs() > 1e-3
    finally:
        sd3_policy.text, sd3_policy.mask = before, None


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 6),
    image=st.integers(1, 6),
    text=st.integers(1, 4),
    heads=st.integers(1, 3),
    tokens=st.sampled_from(["image_to_all", "text_to_image", "all_to_all"]),
    padded=st.booleans(),
)
def test_sampled_rows_are_unbiased(
    rows: int, image: int, text: int, heads: int, tokens: Any, padded: bool
) -> None:
    """The mean over many seeds is the exact mean, within five standard errors."""
    generator = torch.Generator().manual_seed(rows + 10 * image + 100 * text)
    query, key = 2 * torch.randn(2, 2, heads, image + text, 4, generator=generator)
    mask = torch.arange(text) < torch.tensor([[text], [1]]) if padded else None
    layout = TokenLayout(image, text, True, mask)

    def estimate(count: int | None, seed: int) -> Tensor:
        recorder = EntropyRecorder(tokens=tokens, rows=count, seed=seed)
        values = recorder._measure("layer", query, key, None, None, False, layout)
        assert values is not None
        return values

    exact = estimate(None, 0)
    draws = torch.stack([estimate(rows, seed) for seed in range(150)])
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert bool(((draws.mean(dim=0) - exact).abs() <= 5 * error + 1e-6).all())
    assert bool(((draws >= 0) & (draws <= 1)).all())


def test_rows_are_drawn_per_layer_and_head_without_repeats_and_stay() -> None:
    recorder = EntropyRecorder(rows=8, seed=3)
    device = torch.device("cpu")
    drawn = recorder._draw("a", 3, 64, 8, device)
    assert all(len(set(head)) == 8 for head in drawn.tolist())
    assert len({tuple(head) for head in drawn.tolist()}) == 3
    assert torch.equal(drawn, EntropyRecorder(rows=8, seed=3)._draw("a", 3, 64, 8, device))
    assert not torch.equal(drawn, recorder._draw("b", 3, 64, 8, device))
    assert not torch.equal(drawn, EntropyRecorder(rows=8, seed=4)._draw("a", 3, 64, 8, device))


def test_sampling_leaves_the_global_generator_alone(sd3_policy: FakePolicy) -> None:
    before = torch.get_rng_state()
    trajectory(sd3_policy, EntropyRecorder(rows=4), torch.tensor([0, 1]))
    assert torch.equal(torch.get_rng_state(), before)


def hooks(policy: FakePolicy) -> list[int]:
    return [
        len(getattr(module, name))
        for module in policy.model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    ]


def test_the_model_and_torch_are_left_as_found(policy: FakePolicy) -> None:
    original, before = F.scaled_dot_product_attention, hooks(policy)
    processors = [module.processor for _, module in policy.attention_layers()]
    prompts = torch.tensor([0, 1])
    recorder = EntropyRecorder(rows=4)
    curve = trajectory(policy, recorder, prompts).curve()
    for error in (RuntimeError("boom"), KeyboardInterrupt()):
        with pytest.raises(type(error), match=str(error) or None), recorder.record(policy):
            assert hooks(policy) != before
            layer = policy.attention_layers()[0][1]
            for enter in list(layer._forward_pre_hooks.values()):
                enter(layer, ())
            assert F.scaled_dot_product_attention is not original  # while the layer runs
            raise error
        assert F.scaled_dot_product_attention is original and hooks(policy) == before
    assert [module.processor for _, module in policy.attention_layers()] == processors
    torch.testing.assert_close(trajectory(policy, recorder, prompts).curve(), curve, rtol=0, atol=0)


def test_an_exception_inside_the_model_leaves_it_usable(sd3_policy: FakePolicy) -> None:
    original, before = F.scaled_dot_product_attention, hooks(sd3_policy)
    recorder, prompts = EntropyRecorder(), torch.tensor([0])
    expected = trajectory(sd3_policy, recorder, prompts).curve()

    def explode(module: nn.Module, args: Any) -> None:
        raise ZeroDivisionError("inside")

    handle = sd3_policy.attention_layers()[-1][1].to_out[0].register_forward_pre_hook(explode)
    with pytest.raises(ZeroDivisionError, match="inside"):
        trajectory(sd3_policy, recorder, prompts)
    handle.remove()
    assert F.scaled_dot_product_attention is original and hooks(sd3_policy) == before
    torch.testing.assert_close(trajectory(sd3_policy, recorder, prompts).curve(), expected)


def test_a_second_recording_is_refused(sd3_policy: FakePolicy) -> None:
    recorder = EntropyRecorder()
    with recorder.record(sd3_policy):
        refused = pytest.raises(RuntimeError, match="another entropy recording")
        with refused, EntropyRecorder().record(sd3_policy):
            pass
        assert any(hooks(sd3_policy))  # the first one still watches
    with recorder.record(sd3_policy):
        pass


def test_only_calls_without_gradient_in_the_same_thread_count(sd3_policy: FakePolicy) -> None:
    prompts, x = torch.tensor([0, 1]), latents(sd3_policy, 2)

    def elsewhere() -> None:
        with torch.no_grad():
            sd3_policy(x, 100.0, prompts)

    with EntropyRecorder(rows=None).record(sd3_policy) as recording:
        recording.begin(0, prompts, sd3_policy.layout(prompts))
        with torch.enable_grad():
            sd3_policy(x, 300.0, prompts)
        Alongside(elsewhere).result()
        with torch.inference_mode():
            sd3_policy(x, 500.0, prompts)
    with torch.no_grad(), EntropyRecorder(rows=None).record(sd3_policy) as alone:
        alone.begin(0, prompts, sd3_policy.layout(prompts))
        sd3_policy(x, 500.0, prompts)
    torch.testing.assert_close(recording.curve(), alone.curve(), rtol=0, atol=0)


def test_layers_are_chosen_by_name_or_stride(policy: FakePolicy) -> None:
    names = [name for name, _ in policy.attention_layers()]
    prompts = torch.tensor([0])
    whole = trajectory(policy, EntropyRecorder(), prompts)
    every_second = trajectory(policy, EntropyRecorder(layers=2), prompts)
    assert every_second.layer_names == names[::2]
    torch.testing.assert_close(every_second.per_layer(), whole.per_layer()[::2])
    last = trajectory(policy, EntropyRecorder(layers=[names[-1]]), prompts)
    torch.testing.assert_close(last.per_layer(), whole.per_layer()[-1:])
    refused = pytest.raises(ValueError, match=f"nowhere; there are: {names[0]}")
    with refused, EntropyRecorder(layers=["nowhere"]).record(policy):
        pass


class OwnSoftmax:
    """A processor that, like a fused kernel, never calls torch's attention."""

    _attention_backend = "flash_hub"

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        text = kwargs.get("encoder_hidden_states")
        return hidden_states if text is None else (hidden_states, text)


def test_a_backend_that_bypasses_torch_is_named() -> None:
    policy = sd3()
    name, module = policy.attention_layers()[1]
    module.processor = OwnSoftmax()
    prompts = torch.tensor([0])
    message = f"{name} ran without .*OwnSoftmax, attention backend flash_hub"
    with pytest.raises(RuntimeError, match=message):
        trajectory(policy, EntropyRecorder(), prompts)
    assert not any(hooks(policy))
    other = [layer for layer, _ in policy.attention_layers() if layer != name]
    assert trajectory(policy, EntropyRecorder(layers=other), prompts).layer_names == other


def test_diffusers_native_backends_are_seen() -> None:
    policy, prompts = flux(), torch.tensor([0])
    expected = trajectory(policy, EntropyRecorder(), prompts).curve()
    with attention_backend("native"):  # what the model sets below it also sets for all others
        policy.model.set_attention_backend("_native_math")
        curve = trajectory(policy, EntropyRecorder(), prompts).curve()
    torch.testing.assert_close(curve, expected)


def test_calls_that_do_not_fit_what_was_announced(sd3_policy: FakePolicy) -> None:
    recorder, x = EntropyRecorder(), latents(sd3_policy, 2)
    two = torch.tensor([0, 1])

    def run(begin: Tensor | None, called: list[int], step: int = 0) -> Any:
        with torch.no_grad(), recorder.record(sd3_policy) as recording:
            if begin is not None:
                recording.begin(step, begin, sd3_policy.layout(begin))
            if called:
                sd3_policy(x[: len(called)], 500.0, torch.tensor(called))
        return recording

    with pytest.raises(RuntimeError, match=r"without recording\.begin"):
        run(None, [0])
    with pytest.raises(RuntimeError, match="announced 1 rows"):
        run(two[:1], [0, 1])
    with pytest.raises(RuntimeError, match="attended 1 of 2 rows"):
        run(two, [0])
    with pytest.raises(RuntimeError, match="attended 0 of 2 rows"):
        run(two, [])
    with pytest.raises(RuntimeError, match="no attention was recorded"):
        run(None, []).curve()
    with pytest.raises(RuntimeError, match="prompt 0 of 2 was not seen at step 0"):
        run(torch.tensor([1]), [1]).curve()
    with pytest.raises(RuntimeError, match="not seen at step 0 of 3"):
        run(two, [0, 1], step=2).curve()
    with pytest.raises(ValueError, match="give a step >= 0"):
        run(two, [0, 1], step=-1)

    def announce(layout: TokenLayout) -> None:
        with torch.no_grad(), recorder.record(sd3_policy) as recording:
            recording.begin(0, two, layout)
            sd3_policy(x, 500.0, two)

    with pytest.raises(ValueError, match="text_mask has 8 rows for 2 rows"):
        announce(TokenLayout(IMAGE, TEXT, True, PADDING))
    with pytest.raises(ValueError, match="attn: attention of 22 queries"):
        announce(TokenLayout(IMAGE, TEXT + 1, True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "every k-th"),
        ({"layers": True}, "every k-th"),
        ({"layers": []}, "every k-th"),
        ({"layers": "some"}, "every k-th"),
        ({"rows": 0}, "at least one query row"),
        ({"tokens": "nothing"}, "choose from"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropyRecorder(**arguments)


def test_it_is_built_from_yaml() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EntropyRecorder, "recorder")
    for text, layers, rows in (("all", "all", None), ("4", 4, 16), ("[a, b]", ["a", "b"], 1)):
        given = [
            "--recorder.layers",
            text,
            "--recorder.rows",
            "null" if rows is None else str(rows),
        ]
        built = parser.instantiate_classes(parser.parse_args(given)).recorder
        assert (built.layers, built.rows, built.tokens) == (layers, rows, "image_to_all")
