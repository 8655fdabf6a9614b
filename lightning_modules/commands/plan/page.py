"""The page that `aegpo plan` prints."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aegpo.evaluations import TRAINING
from aegpo.planning.counts import Range
from lightning_modules.commands.plan.run_plan import RunPlan, sum_ranges

WIDTH = 78


def page(plan: RunPlan) -> RenderableType:
    """Lay a plan out, 80 columns wide.

    Args:
        plan: The plan.

    Returns:
        What a `rich.console.Console` prints.
    """
    return Group(_work(plan), _evaluations(plan), _memory(plan), _time(plan))


def number(value: Range | float, decimals: int = 0) -> str:
    """Write a count, or both bounds of one.

    Args:
        value: The count.
        decimals: Digits after the point.

    Returns:
        "1,200" or "1,200–1,300".
    """
    bounds = value if isinstance(value, Range) else Range.exactly(value)
    low, high = (f"{bound:,.{decimals}f}" for bound in (bounds.low, bounds.high))
    return low if low == high else f"{low}–{high}"


def duration(seconds: float) -> str:
    """Write seconds in the smallest unit of which there are fewer than 120.

    Args:
        seconds: Seconds.

    Returns:
        "90 s", "14 min", "5.5 h" or "3.2 days".
    """
    for limit, unit, name, digits in (
        (120, 1, "s", 0),
        (7200, 60, "min", 0),
        (172800, 3600, "h", 1),
    ):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86400:.1f} days"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, width=WIDTH, padding=(0, 1, 0, 0))
    table.add_column(title, no_wrap=True, ratio=1)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _work(plan: RunPlan) -> Table:
    """What happens, in one iteration and in the run."""
    one, length = plan.iteration, plan.length
    count = length.iterations
    table = _table("What the run does", "an iteration", "the run")

    def row(name: str, each: Range | float, shown: str = "") -> None:
        each = each if isinstance(each, Range) else Range.exactly(each)
        total = "" if count is None else number(Range(each.low * count.low, each.high * count.high))
        table.add_row(name, shown or number(each), total)

    epochs = "no end" if count is None else number(count * (1 / max(1, length.per_epoch)), 1)
    table.add_row("iterations", "", "no end" if count is None else number(count))
    table.add_row(f"epochs of {length.per_epoch:,} iterations", "", epochs.replace(".0", ""))
    row("prompts", plan.batch_size)
    row("images", one.images)
    if one.trained != one.images:
        row("images that are trained on", one.trained)
    mean = f"{one.images.high / plan.batch_size:g}"
    of_one = number(one.group) + (f", {mean} on average" if one.group.low < one.group.high else "")
    table.add_row("images of one prompt", of_one, "")
    table.add_row(
        "stochastic steps K of one prompt",
        f"{number(one.stochastic_steps)} of {plan.num_steps}",
        "",
    )
    table.add_row("steps without noise", plan.sampler, "")
    if plan.warmup is not None:
        first = plan.warmup
        table.add_row(f"first {first.end} iterations", f"{first.num_steps} by {first.sampler}", "")
    row("transitions", one.transitions)
    row("samples in an inner epoch's updates", one.samples)
    row("optimizer steps", plan.updates)
    if length.validations is not None:
        table.add_row("validations", f"{length.val_images} images", number(length.validations))
    return table


def _evaluations(plan: RunPlan) -> Table:
    """Model evaluations by purpose."""
    shares = "one process" if plan.processes == 1 else f"each of {plan.processes}"
    table = _table("Model evaluations", "an iteration", "the run", shares)
    spent = plan.evaluations
    names = {"update": "update (3 a sample)", "reference": "reference policy"}
    for purpose in (*TRAINING, "sum"):
        if spent is None or plan.length.iterations is None:
            each = plan.iteration.evaluations.get(purpose)
            each = sum_ranges(plan.iteration.evaluations.values()) if each is None else each
            table.add_row(names.get(purpose, purpose), number(each), "", "")
            continue
        total = sum_ranges(spent[p] for p in TRAINING) if purpose == "sum" else spent[purpose]
        most = plan.length.iterations.high
        table.add_row(
            "cost/evaluations" if purpose == "sum" else names.get(purpose, purpose),
            number(Range(total.low / most, total.high / plan.length.iterations.low)),
            number(total),
            number(total * (1 / plan.processes)),
        )
    if spent is not None:
        held_out = spent["validation"]
        table.add_row(
            "validation, not in the sum",
            "",
            number(held_out),
            number(held_out * (1 / plan.processes)),
        )
    return table


def _memory(plan: RunPlan) -> RenderableType:
    """Memory of one process."""
    if plan.memory is None or plan.size is None:
        return Padding(Text(f"Memory is unknown: {plan.unknown}"), (0, 0, 1, 1))
    unit, scale = ("GiB", 2**30) if plan.memory.peak >= 2**30 else ("MiB", 2**20)
    table = _table(
        f"Memory of one process: {plan.size.trainable:,} parameters trained, "
        f"{plan.size.frozen:,} frozen",
        unit,
    )
    for name, size in plan.memory.stays.items():
        table.add_row(name, f"{size / scale:.2f}")
    for name, size in plan.memory.takes_turns.items():
        table.add_row(f"  in turn: {name} (estimate)", f"{size / scale:.2f}")
    table.add_row("peak, without rewards and CUDA (estimate)", f"{plan.memory.peak / scale:.2f}")
    if plan.memory.left_out:
        return Group(table, Padding(Text(f"Not estimated: {plan.memory.left_out}"), (0, 0, 1, 1)))
    return table


def _time(plan: RunPlan) -> RenderableType:
    """How long it takes, or how to find out."""
    notes = []
    if plan.rate is None:
        notes.append(
            "Time is unknown. Measure it: aegpo fit … --trainer.max_epochs 1, then\n"
            "aegpo plan … --measured <its log folder>; or give --rate (evaluations/second)."
        )
    else:
        total = plan.total
        speed = f"at {plan.rate.per_second:,.0f} evaluations a second ({plan.rate.source})"
        if total is not None and plan.evaluations is not None:
            bounds = total + plan.evaluations["validation"]
            ends = [duration(bound / plan.rate.per_second) for bound in (bounds.low, bounds.high)]
            notes.append(f"Time {speed}: {'–'.join(dict.fromkeys(ends))} (estimate)")
        else:
            each = sum_ranges(plan.iteration.evaluations.values())
            notes.append(f"Time {speed}: {duration(each.high / plan.rate.per_second)} an iteration")
        if plan.rate.peak_gib is not None:
            notes.append(
                f"Peak memory measured in {plan.rate.source}: {plan.rate.peak_gib:.2f} GiB"
            )
            if plan.memory is not None:
                estimate = plan.memory.peak / 2**30
                more = plan.rate.peak_gib - estimate
                notes.append(
                    f"The estimate above is {estimate:.2f} GiB; the measurement is {more:+.2f} GiB "
                    "to it, and has\nrewards, libraries and validation in it too."
                )
    if plan.spread and plan.processes > 1:
        notes.append(
            f"FSDP2 spreads the denoiser over {plan.processes} processes; "
            "the memory is that of one."
        )
    elif plan.spread:
        notes.append(
            "FSDP2 has one process here, which keeps the whole denoiser; give the number of\n"
            "GPUs that will share it: --processes N."
        )
    if plan.processes > 1:
        share = plan.iteration.busiest_share
        notes.append(f"The busiest process draws up to {share:.0%} of the images.")
    notes.append(
        f"Counted in {plan.iteration.dry_runs} iterations without a model. Updates skip groups\n"
        "whose images all score alike, so a run may spend less."
    )
    return Padding(Text("\n".join(notes)), (0, 0, 0, 1))
