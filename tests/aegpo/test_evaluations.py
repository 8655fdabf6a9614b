"""Who pays for a model evaluation."""

from __future__ import annotations

import pytest
import torch

from aegpo.evaluations import PURPOSES, EvaluationCounter, evaluations_by_purpose


def test_the_innermost_purpose_pays_and_updates_cost_three():
    counter = EvaluationCounter()
    counter.add(1)
    with counter.charge("update"):
        counter.add(10)
        with counter.charge("reference"):
            counter.add(5)
        counter.add(2)
    with counter.charge("rollout"):
        counter.add(7)
    with counter.charge("validation"):
        counter.add(100)
    expected = dict.fromkeys(PURPOSES, 0)
    expected |= {"other": 1, "update": 36, "reference": 5, "rollout": 7, "validation": 100}
    assert counter.counts == expected
    assert counter.total == 36 + 5 + 7
    assert counter.purpose == "other"


def test_the_purpose_is_restored_after_an_exception():
    counter = EvaluationCounter()
    with pytest.raises(RuntimeError), counter.charge("rollout"), counter.charge("probe"):
        raise RuntimeError
    assert counter.purpose == "other"


def test_unknown_purpose():
    unknown = pytest.raises(ValueError, match="'probes'; choose one of rollout, probe")
    with unknown, EvaluationCounter().charge("probes"):
        pass


def test_state_survives_a_round_trip():
    counter, restored = EvaluationCounter(), EvaluationCounter()
    with counter.charge("probe"):
        counter.add(3)
    state = evaluations_by_purpose(counter, torch.device("cpu"))
    restored.load_state_dict(state)
    assert restored.counts == counter.counts and restored.total == 3
    with restored.charge("probe"):
        restored.add(1)
    assert state["probe"] == 3  # the checkpoint is a copy
    with pytest.raises(ValueError, match="purposes"):
        restored.load_state_dict({"probe": 1})
