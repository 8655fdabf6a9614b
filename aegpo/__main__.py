"""``python -m aegpo``: the same program as the console script ``aegpo``.

A program, not part of the library: nothing imports this file, and it is the one file in ``aegpo``
that may name ``lightning_modules`` (``tests/test_layering.py`` says so too).
"""

from lightning_modules.entry import main

if __name__ == "__main__":
    main()
