from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pipelines import save_tiny_sd3

from aegpo.policies.conditioning import Conditioning
from aegpo.policies.embedding_cache import ConditioningCache, EmbeddingFolder
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3


def encode(texts: list[str]) -> Conditioning:
    values = torch.tensor([float(len(text)) for text in texts])
    return Conditioning(values[:, None, None].expand(-1, 3, 2), mask=torch.ones(len(texts), 3) > 0)


def refuse(texts: list[str]) -> Conditioning:
    raise AssertionError(f"{texts} should have been found")


def test_rows_outlive_the_process_and_keep_their_dtype(tmp_path: Path) -> None:
    first = ConditioningCache(4, EmbeddingFolder(tmp_path, ["model", 8]))
    row = first.get(["a red circle"], lambda texts: encode(texts).to("cpu"))
    later = ConditioningCache(4, EmbeddingFolder(tmp_path, ["model", 8]))
    found = later.get(["a red circle"], refuse)
    assert torch.equal(found.embeds, row.embeds) and found.embeds.dtype == row.embeds.dtype
    assert found.pooled is None and found.mask is not None and found.mask.dtype == torch.bool
    other = ConditioningCache(4, EmbeddingFolder(tmp_path, ["model", 16]))
    with pytest.raises(AssertionError, match="should have been found"):
        other.get(["a red circle"], refuse)


def test_a_broken_file_is_encoded_again(tmp_path: Path) -> None:
    ConditioningCache(4, EmbeddingFolder(tmp_path, [])).get(["a"], encode)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.warns(UserWarning, match="unreadable"):
        again = ConditioningCache(4, EmbeddingFolder(tmp_path, [])).get(["a"], encode)
    assert again.embeds[0, 0, 0] == 1
    assert len(ConditioningCache(4, EmbeddingFolder(tmp_path, [])).get(["a"], refuse)) == 1


def test_a_full_disk_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("aegpo.tensor_folder.save_file", full)
    with pytest.warns(UserWarning, match="no space left"):
        row = ConditioningCache(4, EmbeddingFolder(tmp_path, [])).get(["abc"], encode)
    assert row.embeds[0, 0, 0] == 3 and not list(tmp_path.iterdir())


def test_a_policy_finds_its_prompts_and_not_another_models(tmp_path: Path) -> None:
    cache = str(tmp_path / "embeddings")
    folder = save_tiny_sd3(tmp_path / "pipeline")

    def policy() -> StableDiffusion3:
        return StableDiffusion3(
            str(folder), max_sequence_length=4, guidance_scale=2.0, embedding_cache=cache
        )

    before = policy().encode(["a red circle"])
    again = policy()
    again.text_encoders[0].register_forward_pre_hook(lambda *_: pytest.fail("encoded again"))
    after = again.encode(["a red circle"])
    assert torch.equal(before.embeds, after.embeds)
    assert before.negative is not None and after.negative is not None
    assert torch.equal(before.negative.embeds, after.negative.embeds)
    # The folder is overwritten by another model: nothing of the old one may be found.
    save_tiny_sd3(folder, seed=1)
    assert not torch.equal(policy().encode(["a red circle"]).embeds, before.embeds)


def test_another_tokenizer_or_revision_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_sd3(tmp_path / "pipeline")
    policy = StableDiffusion3(str(folder), max_sequence_length=4)
    before = policy._text_settings()
    assert policy._text_settings() == before
    vocabulary = next((folder / "tokenizer_2").glob("*.json"))
    vocabulary.write_text(vocabulary.read_text() + " ")
    assert policy._text_settings() != before

    cache = tmp_path / "hub" / "models--owner--name"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    policy._source = "owner/name"
    seen = []
    for commit in ("a" * 40, "b" * 40):  # somebody uploads, and this machine downloads again
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text(commit)
        seen.append(policy._text_settings())
    assert seen[0] != seen[1]


def test_writers_of_one_process_number_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 7)  # as on two nodes that share the folder
    names: list[str] = []

    def save(parts: object, path: Path) -> None:
        names.append(path.name)
        path.write_bytes(b"")

    monkeypatch.setattr("aegpo.tensor_folder.save_file", save)
    for _ in range(2):
        EmbeddingFolder(tmp_path, []).save("a", encode(["a"]))
    assert len(set(names)) == 2
