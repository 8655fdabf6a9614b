from __future__ import annotations

from lightning_modules.arguments.configs import differing_hyperparameters, unknown_empty_keys


def test_differing_hyperparameters_by_hand() -> None:
    saved = {"_instantiator": "x", "_class_path": "a.M", "lr": 1, "sde": {"init_args": {"eta": 2}}}
    now = {"class_path": "a.M", "init_args": {"lr": 1, "sde": {"init_args": {"eta": 3}}}}
    assert differing_hyperparameters(saved, now) == [
        "model.sde.init_args.eta: the checkpoint was made with 2, this run uses 3"
    ]


def test_empty_keys_of_a_class_that_was_replaced_are_no_mistake() -> None:
    raw = {"model": {"class_path": "a.Old", "init_args": {"options": {}}}, "callbacks+": []}
    new = {"model": {"class_path": "a.New", "init_args": {}}, "callbacks": []}
    assert unknown_empty_keys(raw, new) == []
    new["model"]["class_path"] = "Old"
    assert unknown_empty_keys(raw, new) == ["model.init_args.options"]
