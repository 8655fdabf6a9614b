"""What fails in a user's own file is told with its cause, its file and its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from user_folder import refusal

REWARDS = {
    "syntax_error.py": "from user_module import Reward\nclass Mine(Reward:\n    pass\n",
    "name_error.py": "from user_module import Reward\nx = {}['a']\n",
    "lacks_module.py": "import not_there_at_all\n",
    "divides.py": (
        "from user_module import MyReward\n"
        "class Mine(MyReward):\n"
        "    def __init__(self):\n"
        "        self.x = 1 / 0\n"
    ),
    "says_why.py": (
        "from user_module import MyReward\n"
        "class Mine(MyReward):\n"
        "    def __init__(self):\n"
        "        raise ValueError('give it more')\n"
    ),
    "leaves.py": (
        "import sys\n"
        "from user_module import MyReward\n"
        "class Mine(MyReward):\n"
        "    def __init__(self):\n"
        "        sys.exit()\n"
    ),
    "abstract.py": "from user_module import Reward\nclass Mine(Reward): pass\n",
}
CAUSES = {
    "syntax_error": "syntax_error.Mine cannot be imported: SyntaxError: ",
    "name_error": "name_error.Mine cannot be imported: KeyError: 'a' (name_error.py, line 2)",
    "lacks_module": "No module named 'not_there_at_all' (lacks_module.py, line 1)",
    "divides": "error: ZeroDivisionError: division by zero (divides.py, line 4)",
    "says_why": "error: give it more (says_why.py, line 4)",
    "leaves": "error: sys.exit() was called (leaves.py, line 5)",
    "abstract": "abstract.Mine lacks the method __call__",
}


@pytest.mark.parametrize("module", CAUSES)
@pytest.mark.parametrize("how", ["argument", "file"])
def test_a_reward_that_fails_is_told_with_file_and_line(
    user_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    how: str,
) -> None:
    (user_folder / f"{module}.py").write_text(REWARDS[f"{module}.py"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    path = f"{module}.Mine"
    config = f"model: {{init_args: {{reward: {{class_path: {path}}}}}}}"
    (user_folder / "own.yaml").write_text(config)
    given = ("--model.reward", path) if how == "argument" else ("--config", "own.yaml")
    line = refusal(capsys, "fit", "--config", "base.yaml", *given)
    assert CAUSES[module] in line
    if module == "syntax_error":
        assert line.endswith("(syntax_error.py, line 2)")


@pytest.mark.parametrize("option", ["--trainer.callbacks", "--trainer.callbacks+"])
@pytest.mark.parametrize("body", ["1 / 0", "raise OSError(5, 'gone', 'a.txt')"])
def test_a_callback_that_fails_is_told_with_file_and_line(
    user_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    body: str,
) -> None:
    head = "import lightning\nclass Mine(lightning.Callback):\n    def __init__(self):\n"
    code = f"{head}        {body}\n"
    (user_folder / "own_callback.py").write_text(code)
    monkeypatch.delitem(sys.modules, "own_callback", raising=False)
    line = refusal(capsys, "fit", "--config", "base.yaml", option, "own_callback.Mine")
    told = "ZeroDivisionError: division by zero (own_callback.py, line 4)"
    assert (told if body == "1 / 0" else "gone: a.txt") in line
