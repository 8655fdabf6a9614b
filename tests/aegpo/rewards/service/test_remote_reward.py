"""A reward elsewhere scores as it would here; what fails on the way costs as little as can be."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from alongside import Alongside
from free_port import free_port
from served_rewards import (
    CPU,
    DIGEST,
    Mean,
    Misbehavior,
    breaks_off,
    hangs,
    misbehaving,
    says,
    served,
)
from torch import Tensor

from aegpo.rewards import (
    GroupDiversity,
    JpegCompressibility,
    RemoteReward,
    ShapesMatch,
    WeightedSum,
)
from aegpo.rewards.base import Reward
from aegpo.rewards.checks.check import check_reward
from aegpo.rewards.checks.samples import shapes_samples
from aegpo.rewards.guarded import guarded_scores
from aegpo.rewards.service import asking, endpoints

SAMPLES = shapes_samples(4)
IMAGES, PROMPTS, METADATA = SAMPLES.images, SAMPLES.prompts, SAMPLES.metadata
ROUNDED = (IMAGES * 255).round() / 255
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (asking, endpoints):
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(asking, "TOLD_AFTER", 60.0)


def remote(*addresses: str, **settings: Any) -> RemoteReward:
    limits = {"timeout": 20.0, "patience": 60.0}
    return RemoteReward(list(addresses), **{"batch": 3, "retries": 2, **limits, **settings})


def ready(*addresses: str, **settings: Any) -> RemoteReward:
    reward = remote(*addresses, **settings)
    reward.setup(CPU)
    return reward


def ask(reward: Reward, images: Tensor = ROUNDED) -> Tensor:
    return reward(images, PROMPTS, METADATA)


def said(*scores: float) -> Misbehavior:
    return says(200, f'{{"scores": {list(scores)}}}')


@pytest.mark.parametrize("local", [ShapesMatch(), JpegCompressibility(), Mean()])
def test_a_served_reward_is_the_local_one_to_the_bit_on_8_bit_images(local: Reward) -> None:
    with served(local) as (url, _):
        there = ready(url)
        # On some processors a product's last bit hangs on how many images it is of: 3 a request.
        places = [slice(first, first + 3) for first in range(0, len(ROUNDED), 3)]
        alike = torch.cat([local(ROUNDED[rows], PROMPTS[rows], METADATA[rows]) for rows in places])
        assert torch.equal(ask(there), alike)
        torch.testing.assert_close(alike, ask(local), rtol=1e-6, atol=1e-6)
        # In between, what crosses is the nearest of 256 levels.
        assert torch.equal(ask(there, IMAGES), alike)
        assert torch.equal(ask(there, IMAGES * 3 - 1), ask(there, (IMAGES * 3 - 1).clamp(0, 1)))
        assert (there.range, there.deterministic) == (local.range, local.deterministic)
        assert ask(there, IMAGES.bfloat16()).dtype == torch.float32


def test_parts_and_groups_arrive() -> None:
    local = WeightedSum([ShapesMatch(), JpegCompressibility()], [1.0, 0.0])
    with served(local) as (url, _):
        there = ready(url, parts={"shapes_match": 1.0, "jpeg_compressibility": 0.0})
        assert there.part_weights == local.part_weights
        expected = local.with_parts(ROUNDED, PROMPTS, METADATA)
        got = guarded_scores(there, ROUNDED, PROMPTS, METADATA)
        close = {"rtol": 1e-6, "atol": 1e-6}  # of three images a request, not of all at once
        torch.testing.assert_close(got.total, expected.total, **close)
        torch.testing.assert_close(got.parts, expected.parts, **close)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [PROMPTS[row] for row in order]
    with served(GroupDiversity()) as (url, service):
        there = ready(url, groupwise=True, batch=8)
        local = GroupDiversity()
        assert torch.equal(
            there(ROUNDED[order], prompts, METADATA), local(ROUNDED[order], prompts, METADATA)
        )
        assert service.scorer.requests == 2  # two groups of four in each
        broken = ROUNDED.clone()
        broken[5] = torch.inf
        with pytest.warns(UserWarning, match="4 of 16 images not scored: 4 x an image with values"):
            scores = ask(there, broken)
        assert torch.equal(scores.isfinite(), ask(local, broken).isfinite())


def test_any_number_of_endpoints_and_any_order_of_answers_score_the_same() -> None:
    with ExitStack() as stack:
        places = [stack.enter_context(served(Mean(seconds))) for seconds in (0.0, 0.02, 0.05)]
        urls = [url for url, _ in places]
        expected = ask(ready(urls[0]))
        for many in ([urls[1]], urls[:2], urls, urls[::-1], [NOWHERE, *urls]):
            reward = remote(*many, concurrency=2)
            assert torch.equal(ask(reward), expected) and torch.equal(ask(reward), expected)
        assert all(service.scorer.requests > 0 for _, service in places)
        asked = sum(service.scorer.images for _, service in places)
        assert asked == 16 * 11  # nothing twice where nothing fails


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, NOWHERE)
    with served(Mean()) as (url, _):
        assert torch.equal(ask(ready(url)), ask(Mean()))


def test_nothing_waits_behind_a_slow_endpoint() -> None:
    with served(Mean(0.3)) as (slow, one), served(Mean()) as (fast, other):
        ask(ready(slow, fast, batch=1, concurrency=1))
        assert other.scorer.images > one.scorer.images


FAULTS: dict[str, tuple[tuple[Misbehavior, ...], str]] = {
    "broken": ((says(500, '{"error": "no\\nluck"}'),), r"answers 500: no luck, after 3 tries"),
    "short": ((said(),), r"cannot be used: its answer has 0 scores for"),  # right for no request
    "long": ((said(*[1.0] * 4),), r"cannot be used: its answer has 4 scores for"),
    "page": ((says(200, "<html>hello</html>"),), "cannot be used: its answer is no JSON"),
    "hanging": ((hangs,), r"has not answered within 0\.5 s, after 3 tries"),
    "cut": ((breaks_off,), "broke off"),
    "refusing": ((says(401, '{"error": "no key"}'),), "answers 401: no key$"),
    "elsewhere": ((says(302, "", Location=NOWHERE),), "answers 302"),
    "another": ((says(409, '{"error": "it has x"}'),), "answers 409: it has x"),
    "full": ((says(503, "full", Retry_After="600"),), r"answers 503: full; patience=0\.05 is over"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_endpoint_that_fails_costs_nothing_beside_another_and_its_images_alone(
    fault: str,
) -> None:
    answers, reason = FAULTS[fault]
    settings = {"timeout": 0.5 if fault == "hanging" else 20.0, "patience": 0.05}
    with served(Mean()) as (url, service), misbehaving(*answers) as (bad, asked):
        beside = remote(bad, url, **settings, concurrency=1)
        assert torch.equal(ask(beside), ask(Mean()))
        assert asked and not beside.failures
        if fault != "hanging":  # there the service may be too slow, too, and be asked again
            assert service.scorer.images == 16
        alone = remote(bad, **settings, batch=16)
        with pytest.warns(UserWarning, match=f"16 of 16 images not scored: 16 x {bad} {reason}"):
            scores = ask(alone)
        assert bool(scores.isnan().all()) and alone.failures.total() == 16


def test_nobody_there_is_told_once_and_for_all_requests_together() -> None:
    reward = remote(f"http://127.0.0.1:{free_port()}", batch=1, concurrency=2)
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"cannot be reached \(.*efused\), after 3 tries") as told:
        assert bool(ask(reward).isnan().all())
    assert len(told) == 1 and reward.failures.total() == 16
    assert time.monotonic() - began < 5  # not sixteen times its tries


@pytest.mark.parametrize(
    "passing",
    [
        (says(500), says(500)),
        (says(503, "", Retry_After="0.01"),) * 9,
        (says(429), breaks_off, says(200, "{}"), says(503, "", Retry_After="Mon, 1 Jan 2035")),
    ],
)
def test_what_passes_leaves_nothing_behind(passing: tuple[Misbehavior, ...]) -> None:
    with misbehaving(*passing, said(*range(16))) as (url, asked):
        reward = remote(url, batch=16, retries=2)
        assert ask(reward).tolist() == list(range(16))
        assert len(asked) == len(passing) + 1 and len(set(asked)) == 1
        assert not reward.failures and reward.endpoints[0].faults == 0


def test_a_service_that_is_started_late_is_waited_for() -> None:
    with ExitStack() as stack:
        port = free_port()
        reward = remote(f"http://127.0.0.1:{port}", retries=60)
        started = threading.Timer(0.3, lambda: stack.enter_context(served_at(port)))
        started.start()
        assert torch.equal(ask(reward), ask(Mean()))
        started.join(30)
        assert not started.is_alive()


@pytest.mark.parametrize("fault", [says(503, "", Retry_After="0.01"), says(500), breaks_off])
def test_who_waits_is_told_why_unless_another_answers(
    fault: Misbehavior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "TOLD_AFTER", 0.0)
    told = "waiting for a reward: http://127.*; it is asked again"
    with (
        misbehaving(fault, fault, said(*range(16))) as (url, _),
        pytest.warns(UserWarning, match=told),
    ):
        assert ask(remote(url, batch=16)).tolist() == list(range(16))
    with misbehaving(fault) as (bad, asked), served(Mean()) as (good, _):
        ask(remote(bad, good, concurrency=1))  # a warning would be an error
        assert asked


def served_at(port: int) -> Any:
    from served_rewards import listening

    from aegpo.rewards.service.server import RewardService, bound_socket

    return listening(RewardService(Mean(), CPU, DIGEST).app(), bound_socket("127.0.0.1", port))


def test_a_full_queue_puts_off_and_loses_nothing() -> None:
    with served(Mean(0.02), waiting=0) as (url, service):
        reward = ready(url, batch=1, concurrency=6)
        assert torch.equal(ask(reward), ask(Mean()))
        assert service.put_off > 0 and service.scorer.images == 16
        assert not reward.failures


class Faulty(Mean):
    """Raises for the prompts of one category, and has no score for another."""

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        if any(one["category"] == METADATA[0]["category"] for one in metadata):
            raise KeyError("no such color")
        none = torch.tensor([one["category"] == METADATA[-1]["category"] for one in metadata])
        return super().__call__(images, prompts, metadata).masked_fill(none, torch.inf)


def test_a_fault_of_the_reward_costs_what_it_costs_here_and_is_told() -> None:
    with served(Faulty()) as (url, service):
        there = ready(url, batch=6)
        with pytest.warns(UserWarning) as told:
            scores = guarded_scores(there, ROUNDED, PROMPTS, METADATA).total
        with pytest.warns(UserWarning):
            local = guarded_scores(Faulty(), ROUNDED, PROMPTS, METADATA).total
        assert torch.equal(scores.isnan(), local.isnan()) and int(scores.isnan().sum()) == 8
        assert torch.equal(scores.nan_to_num(), local.nan_to_num())
        text = "\n".join(str(one.message) for one in told)
        assert f"reward 'remote' at {url}: reward 'faulty' raised KeyError('no such color')" in text
        assert service.scorer.missing == 8


class TooLarge(Mean):
    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(images, prompts, metadata)


class AlwaysTooLarge(Mean):
    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_service_without_memory_halves_and_says_so_where_nothing_fits() -> None:
    few = ROUNDED[:3], PROMPTS[:3], METADATA[:3]
    with served(TooLarge()) as (url, _), pytest.warns(UserWarning, match="images in a request: 1"):
        assert torch.equal(ready(url)(*few), Mean()(*few))
    with (
        served(AlwaysTooLarge()) as (url, _),
        pytest.warns(UserWarning, match="answers 500: out of memory: CUDA out of memory, after 1"),
    ):
        one = ready(url, retries=0)(ROUNDED[:1], PROMPTS[:1], METADATA[:1])
        assert bool(one.isnan().all())


def test_broken_images_are_not_sent_and_cost_themselves() -> None:
    images = ROUNDED.clone()
    images[3, 0, 0, 0] = torch.nan
    with served(Mean()) as (url, service):
        reward = ready(url)
        with pytest.warns(UserWarning, match="1 of 16 images not scored: 1 x an image with values"):
            scores = ask(reward, images)
        assert scores.isnan().nonzero().tolist() == [[3]] and service.scorer.images == 15
        assert torch.equal(scores.nan_to_num(), ask(Mean(), images).nan_to_num())


def test_who_gives_up_is_not_scored_for() -> None:
    with served(Mean(0.4), waiting=8) as (url, service):
        reward = remote(url, batch=1, concurrency=4, timeout=0.1, retries=0)
        with pytest.warns(UserWarning, match="has not answered within 0.1 s"):
            assert bool(ask(reward).isnan().all())
        limit = time.monotonic() + 20
        while service.held or service.scorer.busy:
            assert time.monotonic() < limit
            time.sleep(0.02)
        assert service.scorer.images < 4  # those that had begun


def test_a_key_opens_and_a_wrong_one_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGHT", "s3cret")
    monkeypatch.setenv("WRONG", "other")
    monkeypatch.setenv("ODD", "ключ")
    with served(Mean(), key="s3cret") as (url, service):
        assert torch.equal(ask(ready(url, api_key_env="RIGHT")), ask(Mean()))
        for settings in ({"api_key_env": "WRONG"}, {}):
            with pytest.raises(ConnectionError, match="answers 401: the key is missing or wrong"):
                ready(url, **settings)
            with pytest.warns(UserWarning, match="16 x http.* answers 401") as told:
                ask(remote(url, **settings))
            assert "other" not in str(told[0].message)
        assert service.scorer.images == 16
    for name in ("UNSET", "ODD", "s3cret"):
        with pytest.raises(ValueError, match="names no environment variable") as refused:
            remote(NOWHERE, api_key_env=name)
        assert "s3cret" not in str(refused.value)


def test_metadata_that_cannot_be_sent_is_said() -> None:
    about = [{"tensor": torch.zeros(1)}] * 16
    with (
        served(Mean()) as (url, _),
        pytest.warns(UserWarning, match="metadata of a prompt cannot be sent as JSON"),
    ):
        scores = guarded_scores(remote(url), ROUNDED, PROMPTS, about).total
    assert bool(scores.isnan().all())


def test_setup_refuses_what_is_not_described_and_says_what_to_set() -> None:
    with served(Mean()) as (url, _), served(Mean(), digest="f" * 16) as (other, _):
        with pytest.raises(ValueError, match=f"{other} serves configuration ffff.*{DIGEST}"):
            ready(url, other)
        with pytest.raises(ValueError, match="digest says beef"):
            ready(url, digest="beef")
        with pytest.raises(ValueError, match="set groupwise: false"):
            ready(url, groupwise=True)
        with pytest.raises(ValueError, match="set parts: null"):
            ready(url, parts={"a": 1.0})
        with pytest.raises(ValueError, match=r"takes 256 images at a time.*set batch: 256"):
            ready(url, batch=300)
        with pytest.warns(
            UserWarning,
            match=r"'remote': http://127.0.0.1:9 cannot be reached \(.*; it goes on with http",
        ):
            reward = ready(NOWHERE, url)
        # One that comes back with another configuration is asked, and not believed.
        reward.endpoints = remote(other, url).endpoints
        assert torch.equal(ask(reward), ask(Mean()))
    with served(GroupDiversity()) as (url, _), pytest.raises(ValueError, match="groupwise: true"):
        ready(url)
    parts = r'set parts: \{"mean": 2.0\}'
    with served(WeightedSum([Mean()], [2.0])) as (url, _), pytest.raises(ValueError, match=parts):
        ready(url)
    with (
        misbehaving(says(200)) as (url, _),
        pytest.raises(ConnectionError, match=r"answers 404.*start it with `aegpo serve-reward"),
    ):
        ready(url)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoints": []}, "one address or more"),
        ({"endpoints": ["http://a:1", "http://a:1/"]}, "each once"),
        ({"endpoints": "a:1"}, "is no address; give one such as http://127.0.0.1:8190"),
        ({"endpoints": "http://a:1?key=x"}, "is no address"),
        ({"endpoints": "http://"}, "is no address"),
        ({"endpoints": "http://a:99999"}, "is no address"),
        ({"endpoints": "http://me:pass@a:1"}, r"http://\*\*\*@a:1' holds a password"),
        ({"batch": 0}, "batch=0"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0}, "timeout=0 must be above 0"),
        ({"patience": -1}, "patience=-1"),
        ({"parts": {"a": float("nan")}}, "finite weights"),
    ],
)
def test_arguments_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoteReward(**{"endpoints": NOWHERE, **settings})


def test_it_works_in_a_notebook_in_threads_and_as_a_copy() -> None:
    with served(Mean()) as (url, _):
        reward = ready(url)

        async def cell() -> Tensor:
            return ask(reward)

        expected = ask(Mean())
        assert torch.equal(asyncio.run(cell()), expected)
        for copied in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
            assert torch.equal(ask(copied), expected)
        askers = [Alongside(lambda: ask(reward)) for _ in range(3)]
        assert all(torch.equal(one.result(), expected) for one in askers)


@pytest.fixture
def good() -> Iterator[RemoteReward]:
    with served(ShapesMatch()) as (url, _):
        yield remote(url)


def test_it_passes_the_checks_of_a_reward(good: RemoteReward) -> None:
    with pytest.warns(UserWarning, match="not finite"):  # the check of a NaN image
        findings = list(check_reward(good, SAMPLES, CPU))
    assert {finding.name: finding.detail for finding in findings if finding.status != "ok"} == {}
