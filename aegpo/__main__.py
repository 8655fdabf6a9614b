"""``python -m aegpo``: the same program as the console script ``aegpo``.

A program, not part of the library: nothing imports this file, and it is the one file in ``aegpo``
that may name ``lightning_modules`` (import-linter's contracts in ``pyproject.toml`` say so too).
"""

from lightning_modules.cli.main import main

if __name__ == "__main__":
    main()
