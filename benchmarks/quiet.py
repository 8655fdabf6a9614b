"""Only tables on standard output: what the libraries say of themselves is left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = {
    "lightning.pytorch": logging.WARNING,  # seeds, devices, tips, the length of a run
    "lightning.fabric": logging.WARNING,
    "bitsandbytes": logging.ERROR,  # a kernel for CPUs that nothing here uses
}


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, libraries log what is wrong and nothing else; warnings keep to standard error."""
    before = {name: logging.getLogger(name).level for name in LEVELS}
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
