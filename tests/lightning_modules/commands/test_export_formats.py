"""`aegpo export --format`: which there are is said at once, and each is checked like the first."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from local_hub import local_hub
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo import policies
from aegpo.policies.adapters.layouts import Form, Layout
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.evaluate.models import Source, loaded
from lightning_modules.commands.export.export import export
from lightning_modules.commands.export.formats import check_layout

PROMPTS = ["a red circle", "two blue stars"]


@pytest.mark.parametrize(
    ("policy", "arguments", "layout", "told"),
    [
        (
            "StableDiffusion3",
            {},
            "kohya",
            "it can for Flux, Flux2, Flux2Klein, QwenImage, StableDiffusion, StableDiffusionXL, "
            "ZImage; here there is diffusers, comfyui, merged",
        ),
        ("Sana", {}, "comfyui", "here there is diffusers, merged"),
        ("Flux", {"full_finetuning": True}, "kohya", "trained all weights, and there are no adapt"),
        ("Flux", {"quantize": "nf4"}, "merged", "quantize=nf4 stores the weights in fewer bits"),
    ],
)
def test_a_format_that_does_not_go_is_refused_before_anything_is_loaded(
    policy: str, arguments: dict[str, Any], layout: Layout, told: str
) -> None:
    factory = partial(getattr(policies, policy), "owner/name", **arguments)
    with pytest.raises(ValueError, match=rf"--format {layout} does not go with {policy}.*{told}"):
        check_layout(factory, layout)
    check_layout(factory, "diffusers")


def built(folder: Path, given: Path) -> AEGPOModule:
    """A run that trains on a base with a LoRA in it."""
    factory = partial(
        StableDiffusion3,
        pretrained=str(folder),
        max_sequence_length=4,
        lora_rank=2,
        lora_from=str(given),
        lora_into="reference",
    )
    return tiny_module(folder, num_steps=3, lr=0.02, policy=factory)


@pytest.fixture(scope="module")
def run(tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A LoRA file, and the checkpoint of a run on it."""
    folder = tmp_path_factory.mktemp("run")
    policy = StableDiffusion3(str(tiny_sd3_folder), lora_rank=3, max_sequence_length=4)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += 0.02
    policy.save_as(folder, Form("comfyui", "given"))
    module = built(tiny_sd3_folder, folder / "given.safetensors")
    trainer = tiny_trainer(folder, [], max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, tiny_data(folder))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "given.safetensors", str(folder / "last.ckpt")


@pytest.mark.parametrize("layout", ["comfyui", "merged"])
def test_the_card_loads_what_was_written_and_says_what_is_in_it(
    layout: Layout,
    run: tuple[Path, str],
    tiny_sd3_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, checkpoint = run
    config = {"model": {"init_args": {"policy": {"init_args": {}}}}}
    config["model"]["init_args"]["policy"]["init_args"]["pretrained"] = str(tiny_sd3_folder)
    out = tmp_path / "mine"
    module, trainer = built(tiny_sd3_folder, given), tiny_trainer(tmp_path, [])
    options: dict[str, Any] = {"prompts": PROMPTS, "run": ConfiguredRun(config), "format": layout}
    with local_hub(monkeypatch) as hub:
        export(trainer, module, checkpoint, out=str(out), push_to_hub="owner/name", **options)
    written = [file for file in out.rglob("*") if file.is_file()]
    files = {file.relative_to(out).as_posix(): file.read_bytes() for file in written}
    assert hub.files == files
    assert ("mine.safetensors" in files) == (layout == "comfyui")
    assert f"{out}: exported; mean pixel difference" in capsys.readouterr().out

    card = ModelCard.load(out / "README.md")
    assert f"began on `{given}` merged into the base" in card.content
    assert ("lora" in card.data.tags) == (layout == "comfyui")
    assert ("merged LoRA adapters" in card.content) == (layout == "merged")
    code = re.findall(r"```python\n(.*?)```", card.content, flags=re.DOTALL)[0]
    assert '"owner/name"' in code
    scope: dict[str, Any] = {}
    exec(code.replace("owner/name", str(out)), scope)
    assert scope["image"].size == (16, 16)

    # `aegpo evaluate` under this run's config lays it on the plain base, not on the run's.
    kind: Any = "lora" if layout == "comfyui" else "pipeline"
    with loaded(Source("tuned", kind, str(out)), module, "last", True) as (policy, _):
        theirs = policy.denoiser.state_dict()
    for name, tensor in scope["pipeline"].transformer.state_dict().items():
        ours = theirs[name.replace("default_0", "default")]
        torch.testing.assert_close(ours, tensor, rtol=0, atol=1e-6)
