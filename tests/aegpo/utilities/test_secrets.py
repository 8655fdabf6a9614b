"""What is published of a config holds no password, wherever it stood."""

from __future__ import annotations

from typing import Any

import pytest

from aegpo.utilities.secrets import without_secrets


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"base_url": "https://me:hidden@host:8/v1"}, {"base_url": "https://***@host:8/v1"}),
        ("see http://hidden@host and ssh://a:hidden@b/c", "see http://***@host and ssh://***@b/c"),
        ("https://host/v1?api_key=hidden&size=3", "https://host/v1?api_key=***&size=3"),
        ("https://store/a.ckpt?x=1&X-Amz-Signature=hidden", None),
        ({"reward": [{"init_args": {"api_key": "hidden"}}]}, None),
        ({"hf_token": "hidden", "password": "hidden", "client_secret": "hidden"}, None),
        ({"api_key_env": "hidden-key"}, {"api_key_env": "***"}),
        ("use sk-hidden0123456789abcdef", "use ***"),
        ({"anything": ["hf_hidden0123456789"]}, {"anything": ["***"]}),
    ],
)
def test_a_secret_is_hidden(given: Any, shown: Any) -> None:
    hidden = without_secrets(given)
    assert "hidden" not in str(hidden) and "***" in str(hidden)
    assert shown is None or hidden == shown


def test_everything_else_stays() -> None:
    config = {
        "api_key_env": "JUDGE_KEY",
        "api_key": None,
        "recorder": {"tokens": "all_to_all", "max_tokens": 64, "token_set": "image"},
        "tokenizer": "owner/name",
        "train_file": "s3://bucket/key/a@b.txt",
        "url": "https://host/path?size=3&keys=all#part",
        "lr": 1e-3,
        "scale": [1.0, 5.0],
    }
    assert without_secrets(config) == config
