"""The child process of `make gpu`: tries items of one part, one after the other.

    python benchmarks/gpu/run_items.py PART_JSON SETTINGS_JSON ITEM...

Standard output carries rows of JSON only; all that libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]


def main() -> None:
    """Try the items."""
    root = BENCHMARKS.parent
    sys.path[:0] = [str(BENCHMARKS), str(root), str(root / "tests/helpers")]
    from gpu.parts import Part, Settings, emit_line

    part = Part(**json.loads(sys.argv[1]))
    settings = Settings(**json.loads(sys.argv[2]))
    sys.stdout = sys.stderr
    import torch

    cuda = torch.cuda.is_available() and not settings.tiny
    if cuda and settings.cap_gib is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, settings.cap_gib * 2**30 / total))
    function = part.resolve()
    for item in sys.argv[3:]:
        emit = emit_line(item)
        emit("begin", "")
        start = time.perf_counter()
        try:
            function(item, settings, emit)
        except Exception as error:
            traceback.print_exc()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            emit("error", f"{type(error).__name__}: {reason}"[:200], False)
        emit("end", round(time.perf_counter() - start, 1))
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
