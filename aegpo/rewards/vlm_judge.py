"""A vision-language model as the judge, behind any server that speaks OpenAI's chat protocol.

vLLM, SGLang, llama.cpp, Ollama and hosted services do; UnifiedReward (arXiv 2503.05236) and other
open judges are served this way.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.judge_answer import match_score, read_score
from aegpo.utilities.images import to_pixels
from aegpo.utilities.secrets import without_secrets

TEMPLATE = """\
This image was made from the following text.

Text: {prompt}

Judge how well the image shows what the text says: every object, number, color, position and style
that it names. {low} means that it has nothing to do with the text, {high} that all of it is right.
Do not explain. Answer with a single line:
Final Score: <a number from {low} to {high}>"""
"""What the judge is asked unless another template is given."""


class VLMJudge(Reward):
    """Asks a served vision-language model for a number and scales it to [0, 1].

    Each image is one chat request with the filled-in template and the image as a PNG; several run
    side by side. An image whose request fails after all retries, or whose answer holds no number
    on the scale, is missing (NaN), never zero; `failures` counts why.

    Args:
        base_url: Address of the server up to the version, such as ``http://localhost:8000/v1``.
        model: Name under which the server knows the model.
        api_key_env: Name of the environment variable that holds the key; null for a server that
            needs none. The key itself never stands in a configuration.
        template: Question, in which ``{prompt}``, ``{low}`` and ``{high}`` are replaced.
        pattern: Regular expression with one group, the number, whose last match in the answer
            counts; null for the score that the answer means (`judge_answer.read_score`).
        scale: Lowest and highest number that the template asks for; they become 0 and 1.
        image_size: Longest side in pixels at which larger images are sent; null for as they are.
        max_tokens: Longest answer; models that think before they answer need more.
        temperature: Sampling temperature of the answer.
        timeout: Seconds until a request is given up and tried again.
        retries: Further tries of a request that timed out or met a busy or broken server; waits
            between them grow.
        concurrency: Requests at a time.

    Raises:
        ValueError: If an argument cannot be, or the environment variable is not set.
    """

    name = "vlm_judge"
    range = (0.0, 1.0)
    deterministic = False

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        template: str = TEMPLATE,
        pattern: str | None = None,
        scale: tuple[float, float] = (1.0, 5.0),
        image_size: int | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        timeout: float = 60.0,
        retries: int = 2,
        concurrency: int = 8,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url={without_secrets(base_url)!r} is no address; give one such as "
                "http://localhost:8000/v1"
            )
        if "{prompt}" not in template:
            raise ValueError("template has no {prompt}, so the judge would not know the text")
        if not scale[0] < scale[1] or not all(map(math.isfinite, scale)):
            raise ValueError(f"scale={scale} must be a lower and a higher number")
        if min(max_tokens, concurrency, 1 if image_size is None else image_size) < 1:
            raise ValueError(
                f"max_tokens={max_tokens}, concurrency={concurrency} and image_size={image_size} "
                "must each be at least 1"
            )
        if not timeout > 0 or retries < 0:
            raise ValueError(f"timeout={timeout} must be above 0 and retries={retries} at least 0")
        self.base_url = base_url
        self.model = model
        self.api_key_env = api_key_env
        self.template = template
        self.pattern = None if pattern is None else _number_pattern(pattern)
        self.scale = scale
        self.image_size = image_size
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.timeout = timeout
        self.retries = retries
        self.concurrency = concurrency
        self.failures: Counter[str] = Counter()
        """How many images were not scored so far, by reason."""
        self._client: Any = None
        self._api_key()  # a missing key is told before anything is loaded

    def setup(self, device: torch.device) -> None:
        """Connect to the server.

        Args:
            device: Not used; the judge computes elsewhere.

        Raises:
            ModuleNotFoundError: If the openai package is not installed.
            ConnectionError: If the server does not answer or refuses the key.
        """
        del device
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{self.name} needs openai, which is not installed; run: pip install 'aegpo[vlm]'"
            ) from error
        self._client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self._api_key(),
            timeout=self.timeout,
            max_retries=self.retries,
        )
        address = without_secrets(self.base_url)
        try:
            served = [model.id for model in self._client.models.list()]
        except (
            openai.APIConnectionError,
            openai.AuthenticationError,
            openai.PermissionDeniedError,
        ) as error:
            raise ConnectionError(
                f"the judge at {address} cannot be used ({_one_line(error)}); start the server, or "
                "check base_url and api_key_env"
            ) from error
        except openai.OpenAIError:
            return  # not every server lists its models
        if served and self.model not in served:
            warnings.warn(
                f"the judge at {address} does not list model={self.model!r}; it has "
                f"{', '.join(served[:5])}",
                stacklevel=2,
            )

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Ask for a number for each image; see `Reward.__call__`.

        Args:
            images: (N, 3, H, W) in [0, 1].
            prompts: N texts.
            metadata: N dicts, not read.

        Returns:
            (N,) fp32 on the images' device, in [0, 1]; NaN where no number could be had, or the
            image has a value that is not finite.

        Raises:
            RuntimeError: Before `setup`.
        """
        if self._client is None:
            raise RuntimeError("VLMJudge is not connected yet; call setup(device) first")
        pixels, finite = to_pixels(images)
        with ThreadPoolExecutor(self.concurrency) as pool:
            answers = list(pool.map(self._ask, pixels, prompts, finite))
        reasons = Counter(answer for answer in answers if isinstance(answer, str))
        if reasons:
            self.failures += reasons
            told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
            warnings.warn(
                f"{self.name}: {reasons.total()} of {len(prompts)} images were not scored: {told}",
                stacklevel=2,
            )
        scores = [math.nan if isinstance(answer, str) else answer for answer in answers]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def _ask(self, picture: npt.NDArray[np.uint8], prompt: str, finite: bool) -> float | str:
        """Score of one picture, or why there is none."""
        import openai

        if not finite:
            return "an image with values that are not finite"
        content = [
            {"type": "text", "text": self._question(prompt)},
            {"type": "image_url", "image_url": {"url": self._data_url(picture)}},
        ]
        try:
            response = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=self.max_tokens,
                temperature=self.temperature,
            )
        except openai.OpenAIError as error:
            return _one_line(error)
        except ValueError as error:  # a body that is no JSON
            return f"an answer outside the protocol ({_one_line(error)})"
        return self._read(response)

    def _question(self, prompt: str) -> str:
        # Not str.format: a template may hold braces of its own. The prompt last: it may, too.
        filled = self.template.replace("{low}", f"{self.scale[0]:g}")
        return filled.replace("{high}", f"{self.scale[1]:g}").replace("{prompt}", prompt)

    def _data_url(self, picture: npt.NDArray[np.uint8]) -> str:
        image = Image.fromarray(picture)
        if self.image_size is not None:
            image.thumbnail((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"

    def _read(self, response: Any) -> float | str:
        """Scaled number in an answer, or why there is none."""
        try:
            text = response.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):
            return "an answer outside the protocol"
        if self.pattern is None:
            read = read_score(text, self.scale)
        else:
            read = match_score(self.pattern, text, self.scale)
        if read is None:
            return "an answer without a number where the pattern or the word score stands"
        if read.problem:
            return f"an answer {read.problem}"
        low, high = self.scale
        return (read.number - low) / (high - low)

    def _api_key(self) -> str:
        if self.api_key_env is None:
            return "none"  # the client insists on one
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ValueError(  # what was given is not repeated: it may be the key
                "api_key_env names no environment variable that is set; give the name of the "
                "variable that holds the key, not the key"
            )
        return key


def _number_pattern(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(
            f"pattern={pattern!r} has {compiled.groups} groups; it needs one, the number"
        )
    return compiled


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
