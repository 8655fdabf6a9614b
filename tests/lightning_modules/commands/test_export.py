"""`aegpo export` on the tiny pipeline: what diffusers loads is what was trained, or nothing is."""

from __future__ import annotations

import itertools
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, StableDiffusion3Pipeline
from huggingface_hub import ModelCard
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import load_tiny_sd3
from tiny_training import tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.export.model_card import Facts, model_card
from aegpo.noise import KeyedNoise
from aegpo.policies.families.stable_diffusion import StableDiffusion
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.policies.pretrained import find_pipeline
from aegpo.sde import DDIM
from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.cli import main as entry
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.export.export import export

LORA_FILE = "pytorch_lora_weights.safetensors"
PROMPTS = ["a red circle", "two blue stars", "three green squares"]
STEPS = 5


def built(folder: Path, **policy: Any) -> AEGPOModule:
    """The tiny module, its policy with other arguments."""
    module = tiny_module(folder, num_steps=STEPS, seed=3, lr=0.02)
    module.policy_factory = partial(StableDiffusion3, str(folder), max_sequence_length=4, **policy)
    return module


def trained(tmp_path: Path, folder: Path, **policy: Any) -> tuple[AEGPOModule, str]:
    """Two iterations, logged; the module and its checkpoint."""
    module = built(folder, **policy)
    logger = CSVLogger(tmp_path, name="", version="log")
    trainer = tiny_trainer(
        tmp_path, [], max_epochs=1, logger=logger, num_sanity_val_steps=-1, log_every_n_steps=1
    )
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module, str(tmp_path / "last.ckpt")


SECRETS = {"base_url": "https://me:hidden@host/v1", "api_key": "hidden", "api_key_env": "sk-hidden"}


def exported(
    tmp_path: Path, folder: Path, checkpoint: str, weights: Any = "ema", **policy: Any
) -> Path:
    """Run the command on a fresh module; the folder that it wrote."""
    config = {
        "seed_everything": 3,
        "trainer": {"callbacks": [{"class_path": "callbacks.EntropyProbe", "init_args": {}}]},
        "model": {
            "init_args": {
                "policy": {"init_args": {"pretrained": str(folder)}},
                "reward": {"class_path": "tests.Redness", "init_args": {}},
                "step_selector": {"class_path": "x.EntropyPeaks", "init_args": {"top_k": 2}},
                "sde": {"class_path": "aegpo.sde.FlowSDE"},
                "evaluation_rewards": [{"class_path": "x.Judge", "init_args": SECRETS}],
                "objective": None,
                "clip_range": 1e-3,
                "num_steps": STEPS,
                "sampler": {"class_path": "aegpo.samplers.UniPC", "init_args": {"order": 3}},
            }
        },
        "data": {"init_args": {"val_file": "somewhere/held_out.jsonl"}},
    }
    out = tmp_path / "deep" / "export"
    # Logs are looked for beside the given configs.
    run = ConfiguredRun(config, [tmp_path / "nothing/config.yaml", tmp_path / "log/config.yaml"])
    trainer = tiny_trainer(tmp_path, [])
    module = built(folder, **policy)
    export(trainer, module, checkpoint, out=str(out), weights=weights, prompts=PROMPTS, run=run)
    return out


def pipeline_images(pipeline: StableDiffusion3Pipeline, guidance: float = 1.0) -> Tensor:
    """Images by diffusers alone; start noise as the evaluation of prompt 0, 1, 2 has it."""
    keys = torch.tensor([[row, 0, 0] for row in range(3)])
    noise = KeyedNoise(0).fixed().normal("start", keys, (4, 8, 8))
    return pipeline(
        PROMPTS,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        max_sequence_length=4,
        output_type="pt",
    ).images


def policy_images(module: AEGPOModule) -> Tensor:
    """The trained policy's own images, by an Euler loop written out here."""
    policy = module.policy
    keys = torch.tensor([[row, 0, 0] for row in range(3)])
    latents = KeyedNoise(0).fixed().normal("start", keys, policy.latent_shape)
    sigmas, cond = policy.sigmas(STEPS), policy.encode(PROMPTS)
    with torch.no_grad():
        for now, then in itertools.pairwise(sigmas):
            latents = latents + (then - now) * policy(latents, now.expand(3), cond)
        return policy.decode(latents)


@pytest.fixture(scope="module")
def lora_run(tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a run with default adapters."""
    return trained(tmp_path_factory.mktemp("run"), tiny_sd3_folder)[1]


def test_adapters_come_back_in_diffusers_alone(
    tiny_sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = {"lora_rank": 3, "lora_alpha": 5, "guidance_scale": 2.0}
    module, checkpoint = trained(tmp_path, tiny_sd3_folder, **policy)
    out = exported(tmp_path, tiny_sd3_folder, checkpoint, **policy)
    assert {file.name for file in out.iterdir()} == {
        *("README.md", "config.yaml", "base_and_tuned.png", "scores.png", LORA_FILE)
    }
    assert re.search(r"mean pixel difference \d\.\de-0[6-9] ", capsys.readouterr().out)
    pipeline = load_tiny_sd3(tiny_sd3_folder)
    base = pipeline_images(pipeline, 2.0)
    pipeline.load_lora_weights(out)
    config = pipeline.transformer.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (3, 5)
    images = pipeline_images(pipeline, 2.0)
    torch.testing.assert_close(images, policy_images(module), rtol=0, atol=1e-4)
    assert (images - base).abs().max() > 1e-2


def test_a_whole_pipeline_comes_back_in_diffusers_alone(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    module, checkpoint = trained(tmp_path, tiny_sd3_folder, full_finetuning=True)
    out = exported(tmp_path, tiny_sd3_folder, checkpoint, full_finetuning=True)
    images = pipeline_images(load_tiny_sd3(out))
    torch.testing.assert_close(images, policy_images(module), rtol=0, atol=1e-4)
    assert (images - pipeline_images(load_tiny_sd3(tiny_sd3_folder))).abs().max() > 1e-2
    scope = run_card_code(out)
    assert torch.equal(
        scope["pipeline"].transformer.proj_out.weight, module.policy.transformer.proj_out.weight
    )
    assert "lora" not in ModelCard.load(out / "README.md").data.tags


def test_half_precision_is_judged_by_its_own_tolerance(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    _, checkpoint = trained(tmp_path, tiny_sd3_folder, dtype="bfloat16")
    policy = {"dtype": "bfloat16", "resolution": (24, 16)}
    out = exported(tmp_path, tiny_sd3_folder, checkpoint, **policy)
    card = (out / "README.md").read_text()
    assert "torch_dtype=torch.bfloat16" in card
    # Sizes are no part of the weights: what was trained on squares is exported for an oblong.
    assert "height=24" in card and "width=16" in card
    run_card_code(out, (16, 24))


def run_card_code(out: Path, size: tuple[int, int] = (16, 16)) -> dict[str, Any]:
    """Run the Python of the model card; its variables."""
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
    assert len(code) == 1
    scope: dict[str, Any] = {}
    exec(code[0], scope)
    assert scope["image"].size == size  # PIL's width, height
    return scope


def test_the_card_says_what_was_done(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    module, checkpoint = trained(tmp_path, tiny_sd3_folder, sigma_spacing="uniform")
    out = exported(tmp_path, tiny_sd3_folder, checkpoint, sigma_spacing="uniform")
    scope = run_card_code(out)
    adapter = scope["pipeline"].transformer.peft_config["default_0"]
    assert adapter.r == module.policy.transformer.peft_config["default"].r

    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.base_model is None  # a folder here means nothing on the hub
    assert {"lora", "aegpo"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.task_type, result.metric_type) == ("text-to-image", "redness")
    assert (result.dataset_name, result.dataset_type) == ("held_out.jsonl", "held_out.jsonl")
    assert card.data.model_name == "export"
    text = card.content
    spent = module.policy.evaluations
    log = (tmp_path / "log/metrics.csv").read_text().splitlines()
    column = log[0].split(",").index("val/redness")
    before, after = (line.split(",")[column] for line in log[1:] if line.split(",")[column])
    assert result.metric_value == round(float(after), 4) != round(float(before), 4)
    for expected in (
        *("Seed 3", "for 2 iterations", "`EntropyPeaks(top_k=2)`", "`FlowSDE()`", "`Redness()`"),
        *(
            "`clip_range=0.001`",
            "| sampler | `UniPC(order=3)` |",
            "`EntropyProbe`",
            f"| {spent.total:,} (rollout ",
        ),
        f"| redness | {float(before):.4f} (iteration 0) | {float(after):.4f} (iteration 2) |",
        f"torch {torch.__version__.split('+')[0]}",
    ):
        assert expected in text, expected
    for picture in ("base_and_tuned.png", "scores.png"):
        assert f"({picture})" in text
        with Image.open(out / picture) as image:
            assert image.width > 300
    published = (out / "config.yaml").read_text()
    assert yaml.safe_load(published)["seed_everything"] == 3
    assert "https://***@host/v1" in text and "https://***@host/v1" in published
    assert "hidden" not in text + published


@pytest.mark.parametrize(("weights", "scale"), [("ema", 0.5), ("last", 1.0)])
def test_averaged_or_last_weights(
    weights: str, scale: float, lora_run: str, tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    saved = torch.load(lora_run, weights_only=True)
    last = {name.removeprefix("policy."): value for name, value in saved["state_dict"].items()}
    saved["aegpo"]["averaged"] = {name: value / 2 for name, value in last.items()}
    torch.save(saved, tmp_path / "averaged.ckpt")
    out = exported(tmp_path, tiny_sd3_folder, str(tmp_path / "averaged.ckpt"), weights)
    tensors = load_file(out / LORA_FILE)
    name = "transformer.transformer_blocks.1.attn.to_q.lora_B"
    expected = scale * last[f"{name}.default.weight"]
    assert torch.equal(tensors[f"{name}.weight"], expected) and expected.abs().max() > 0
    card = ModelCard.load(out / "README.md")
    assert ("averaged over the training" in card.content) == (weights == "ema")


@pytest.mark.parametrize(("weights", "ranked"), [("ema", True), ("last", False)])
def test_the_hub_ranks_by_scores_of_these_weights_alone(weights: str, ranked: bool) -> None:
    def results(scores: dict[int, float]) -> Any:
        facts = Facts(
            **{"name": "n", "base": "owner/base", "full": True, "config": {}, "code": ""},
            **{"check": "", "iteration": 4, "averaged": weights == "ema", "evaluations": {}},
            **{"scored": weights == "ema", "training_evaluations": 0, "seed": 0, "pictures": {}},
            scores={"one": scores, "two": {}},
        )
        card = ModelCard(str(model_card(facts)))
        assert card.data.base_model == "owner/base"
        return card.data.eval_results

    assert (results({0: 0.25, 4: 0.5}) is not None) == ranked
    for other in ({0: 0.25, 3: 0.5}, {0: 0.25}, {4: float("nan")}, {}):
        assert results(other) is None


def double_alpha(folder: Path) -> None:
    """Corrupt the scale in the file's metadata; no tensor changes."""
    with safe_open(folder / LORA_FILE, "pt") as file:
        metadata = file.metadata()
    adapter = json.loads(metadata["lora_adapter_metadata"])
    (name,) = (key for key in adapter if key.endswith(".lora_alpha"))
    adapter[name] *= 2
    metadata["lora_adapter_metadata"] = json.dumps(adapter)
    save_file(load_file(folder / LORA_FILE), folder / LORA_FILE, metadata)


def drop_a_layer(folder: Path) -> None:
    """Leave layers' adapters out, as a key that matches nothing is."""
    tensors = load_file(folder / LORA_FILE)
    with safe_open(folder / LORA_FILE, "pt") as file:
        metadata = file.metadata()
    kept = {name: tensor for name, tensor in tensors.items() if ".to_q.lora" not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / LORA_FILE, metadata)


@pytest.mark.parametrize("corrupt", [double_alpha, drop_a_layer])
def test_a_corrupted_export_is_refused_and_not_published(
    corrupt: Any,
    lora_run: str,
    tiny_sd3_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = StableDiffusion3.save_pretrained

    def corrupted(policy: StableDiffusion3, folder: Path) -> None:
        write(policy, folder)
        corrupt(folder)

    monkeypatch.setattr(StableDiffusion3, "save_pretrained", corrupted)
    with pytest.raises(ValueError, match=r"the export is not the trained model.*accepted 1e-04"):
        exported(tmp_path, tiny_sd3_folder, lora_run)
    assert not list((tmp_path / "deep").iterdir())


def test_a_pipeline_that_is_called_differently_is_refused(
    lora_run: str, tiny_sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = StableDiffusion3.pipeline_arguments
    monkeypatch.setattr(
        StableDiffusion3, "pipeline_arguments", lambda *a: right(*a) | {"guidance_scale": 1.5}
    )
    with pytest.raises(ValueError, match=r"differ by 0\.0e\+00 of the largest"):
        exported(tmp_path, tiny_sd3_folder, lora_run)
    assert not list((tmp_path / "deep").iterdir())


def unet(folder: Path) -> AEGPOModule:
    policy = partial(StableDiffusion, str(folder), lora_rank=4, guidance_scale=3.0)
    return tiny_module(folder, num_steps=3, seed=3, lr=0.02, policy=policy, sde=DDIM())


@pytest.fixture(scope="module")
def unet_run(tiny_sd15_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of SD 1.5 after an iteration."""
    folder = tmp_path_factory.mktemp("unet")
    trainer = tiny_trainer(folder, [], max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(unet(tiny_sd15_folder), datamodule=tiny_data(folder))
    trainer.save_checkpoint(folder / "last.ckpt")
    return str(folder / "last.ckpt")


def exported_unet(tmp_path: Path, folder: Path, checkpoint: str) -> Path:
    out = tmp_path / "deep" / "export"
    config = {"model": {"init_args": {"policy": {"init_args": {"pretrained": str(folder)}}}}}
    arguments: Any = {"out": str(out), "weights": "last", "prompts": PROMPTS}
    arguments["run"] = ConfiguredRun(config)
    export(tiny_trainer(tmp_path, []), unet(folder), checkpoint, **arguments)
    return out


def test_the_card_of_a_unet_says_which_scheduler_draws_its_images(
    unet_run: str, tiny_sd15_folder: Path, tmp_path: Path
) -> None:
    out = exported_unet(tmp_path, tiny_sd15_folder, unet_run)
    card = (out / "README.md").read_text()
    assert "from diffusers import DDIMScheduler, StableDiffusionPipeline\n" in card
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    scheduler = scope["pipeline"].scheduler
    assert isinstance(scheduler, DDIMScheduler) and scheduler.config.beta_end == 0.012
    assert not (scheduler.config.clip_sample or scheduler.config.set_alpha_to_one)
    assert scope["image"].size == (32, 32)


def test_a_unet_under_its_own_scheduler_is_another_model_and_refused(
    unet_run: str, tiny_sd15_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "sampling_scheduler", lambda policy, own: own)
    with pytest.raises(ValueError, match=r"not the trained model.* differ by 0\.0e\+00 of the"):
        exported_unet(tmp_path, tiny_sd15_folder, unet_run)
    assert not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize("corrupt", [double_alpha, drop_a_layer])
def test_a_corrupted_unet_is_refused(
    corrupt: Any,
    unet_run: str,
    tiny_sd15_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = StableDiffusion.save_pretrained

    def corrupted(policy: StableDiffusion, folder: Path) -> None:
        write(policy, folder)
        corrupt(folder)

    monkeypatch.setattr(StableDiffusion, "save_pretrained", corrupted)
    with pytest.raises(ValueError, match=r"the export is not the trained model"):
        exported_unet(tmp_path, tiny_sd15_folder, unet_run)
    assert not list((tmp_path / "deep").iterdir())


def test_wrong_requests_are_refused_in_words(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    def refused(checkpoint: str | None, out: Path) -> None:
        module, trainer = built(tiny_sd3_folder), tiny_trainer(tmp_path, [])
        export(trainer, module, checkpoint, out=str(out), prompts=PROMPTS)

    with pytest.raises(ValueError, match="give --ckpt_path last"):
        refused(None, tmp_path / "new")
    (tmp_path / "mine.txt").write_text("dear to me")
    with pytest.raises(ValueError, match="exists and is not empty"):
        refused("last", tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        refused("last", tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "dear to me"


@pytest.mark.slow
def test_export_and_sample_from_the_command_line_without_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shapes = Path(__file__).parents[3] / "configs/shapes.yaml"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na green square\n")

    def aegpo(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["aegpo", *words])
        try:
            entry.main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
        return 0

    small = {"batch_size": 2, "batches_per_epoch": 1, "val_images": 2, "train_file": str(prompts)}
    overlay = {"trainer": {"max_epochs": 1}, "data": {"init_args": small | {"shares": None}}}
    overlay["data"]["init_args"] |= {"val_file": str(prompts), "test_file": None}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(overlay))
    assert aegpo("fit", "--config", str(shapes), "--config", "small.yaml") == 0
    prompts.unlink()
    logged = sorted(file.name for file in Path("runs/shapes").iterdir())

    run = ("--config", "runs/shapes/config.yaml", "--ckpt_path", "last")
    assert aegpo("export", *run, "--out", "lora") == 0
    config = yaml.safe_load(Path("lora/config.yaml").read_text())
    assert set(config) == {"seed_everything", "trainer", "model", "data"}
    typed = (tmp_path / "small.yaml").read_text()
    paths = set(re.findall(rf"{re.escape(str(tmp_path))}\S*", Path("lora/config.yaml").read_text()))
    assert all(path in typed for path in paths)
    card = Path("lora/README.md").read_text()
    assert 'find_pipeline("shapes")' in card and "| shapes\\_judge | " in card
    assert str(tmp_path) not in card

    # In every format plain diffusers draws the same image.
    for form in ("comfyui", "merged"):
        assert aegpo("export", *run, "--out", form, "--format", form) == 0
    capsys.readouterr()
    assert aegpo("export", *run, "--out", "kohya", "--format", "kohya") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --format kohya does not go with StableDiffusion3: ")
    assert not Path("kohya").exists()
    absent: Any = {"text_encoder_3": None, "tokenizer_3": None}
    images = []
    for source, adapters in (
        (find_pipeline("shapes"), None),
        ("merged", None),
        (find_pipeline("shapes"), "lora"),
        (find_pipeline("shapes"), "comfyui"),
    ):
        pipeline = StableDiffusion3Pipeline.from_pretrained(source, **absent)
        if adapters:
            pipeline.load_lora_weights(adapters)
        start = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": 0}
        images.append(
            pipeline("a red circle", generator=start, output_type="pt", **settings).images
        )
    base, *tuned = images
    assert (tuned[0] - base).abs().max() > 1e-4
    for image in tuned[1:]:
        torch.testing.assert_close(image, tuned[0], rtol=0, atol=1e-4)

    # The same folder again is refused on one line, before anything is loaded.
    capsys.readouterr()
    assert aegpo("export", *run, "--out", "lora") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --out lora exists")

    assert aegpo("sample", *run, "--prompts", "a red circle", "two red crosses", "--out", "s") == 0
    assert len(list(Path("s").glob("*/*.png"))) == 2 * 2 * 4
    assert sorted(file.name for file in Path("runs/shapes").iterdir()) == logged
    assert not Path("lightning_logs").exists()
