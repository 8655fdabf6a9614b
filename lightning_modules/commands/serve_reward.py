"""``aegpo serve-reward``: a reward behind HTTP, for `aegpo.rewards.RemoteReward` elsewhere."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
from typing import Any

from aegpo.rewards.base import Reward
from aegpo.rewards.service.keys import key_from
from aegpo.rewards.service.server import RewardService, bound_socket, serve
from aegpo.rewards.service.wire import Limits, config_digest
from lightning_modules.arguments.messages import debugging, explain_exception
from lightning_modules.arguments.parser import OneLineParser
from lightning_modules.commands.check_reward import find_device, spelled_out


def main(args: list[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; a mistake is one line and status 2, lost requests status 1.

    Args:
        args: Arguments after `serve-reward` instead of those of the process.
    """
    parser = _parser()
    parsed = parser.parse_args(spelled_out(sys.argv[2:] if args is None else args))
    limits = _checked(parser, parsed)
    listening: socket.socket | None = None
    try:
        key = None if parsed.api_key_env is None else key_from(parsed.api_key_env)
        if key is None and not _loopback(parsed.host):
            parser.error(
                f"--host {parsed.host} lets others in; put a key into an environment variable and "
                "name it with --api_key_env"
            )
        listening = bound_socket(parsed.host, parsed.port)  # before minutes of loading
        digest = config_digest(parsed.reward.as_dict())
        reward = parser.instantiate(parsed).reward
        reward.time_limit = parsed.time_limit or reward.time_limit
        device = find_device(parsed.device)
        reward.setup(device)
    except Exception as error:  # a user's reward may raise anything
        if listening is not None:
            listening.close()
        if debugging():
            raise
        parser.error(explain_exception(error))
    assert listening is not None
    service = RewardService(reward, device, digest, key, parsed.queue, limits)
    place = _address(listening.getsockname())

    def started() -> None:
        print(f"serving {reward.name}, configuration {digest}, at {place} on {device}", flush=True)

    whole = asyncio.run(serve(service, [listening], parsed.grace, started))
    scorer = service.scorer
    print(
        f"scored {scorer.images} images in {scorer.requests} requests, {scorer.missing} missing; "
        f"put off {service.put_off} requests"
    )
    if not whole or scorer.busy:
        print("left a request without an answer: its reward did not return in time")
    sys.stdout.flush()
    if scorer.busy:  # torch does not take it well when its threads are cut off at Python's end
        os._exit(1)
    if not whole:
        raise SystemExit(1)


def _parser() -> Any:
    parser = OneLineParser(
        prog="aegpo serve-reward",
        usage="aegpo serve-reward CLASS [--init_args.KEY VALUE ...] [options]",
        description="Put a reward behind HTTP, for aegpo.rewards.RemoteReward elsewhere.",
    )
    parser.add_argument("--config", action="config", help="file with these keys, as of `fit`")
    parser.add_subclass_arguments(Reward, "reward", help="the reward; CLASS is short for it")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="where it listens; beyond this machine: a key"
    )
    parser.add_argument("--port", type=int, default=8190, help="port; 0 for any that is free")
    parser.add_argument(
        "--api_key_env", type=str | None, help="environment variable that holds the key"
    )
    parser.add_argument(
        "--device", type=str | None, help="cpu, cuda, ...; what there is if left out"
    )
    parser.add_argument(
        "--queue", type=int, default=16, help="requests that may wait; the next is put off (503)"
    )
    parser.add_argument("--max_images", type=int, default=256, help="images of a request")
    parser.add_argument(
        "--max_pixels", type=int, default=2048 * 2048, help="width times height of an image"
    )
    parser.add_argument("--max_megabytes", type=int, default=256, help="length of a request")
    parser.add_argument(
        "--time_limit", type=float | None, help="seconds an image after which a call is given up"
    )
    parser.add_argument(
        "--grace", type=float, default=30.0, help="seconds to finish requests in when it is ended"
    )
    return parser


def _checked(parser: Any, parsed: Any) -> Limits:
    """Refuse numbers that cannot be; what a request may hold."""
    if parsed.reward is None:
        parser.error("name a reward, for instance aegpo serve-reward aegpo.rewards.ShapesMatch")
    limits = Limits(parsed.max_images, parsed.max_pixels, parsed.max_megabytes)
    if min(limits.images, limits.pixels, limits.megabytes) < 1 or parsed.queue < 0:
        parser.error("--max_images, --max_pixels and --max_megabytes must be at least 1, --queue 0")
    if parsed.grace < 0 or not (parsed.time_limit is None or parsed.time_limit > 0):
        parser.error("--grace must be at least 0 and --time_limit above 0")
    return limits


def _loopback(host: str) -> bool:
    """Whether only this machine can connect there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(name: Any) -> str:
    host, port = name[0], name[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
