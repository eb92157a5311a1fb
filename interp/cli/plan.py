"""How a plan is printed."""

from rich.console import Console
from rich.table import Table

from interp.runs.plan import Plan
from interp.runs.usage import sized

ALL = "the whole run"


def print_plan(plan: Plan, console: Console) -> None:
    """The stages as a table with their forward and backward passes, then memory, disk and time."""
    table = Table(box=None, padding=(0, 2))
    table.add_column("", no_wrap=True)
    for name in ("prompts", "forward", "backward", "seconds"):
        table.add_column(name, justify="right")
    rows = [(stage.name, stage.prompts, stage.passes, stage.seconds) for stage in plan.stages]
    for name, prompts, passes, seconds in (*rows, (ALL, 0, plan.passes, plan.seconds)):
        counts = (prompts, passes.forward, passes.backward)
        cells = (f"{count:,}" if count else "" for count in counts)
        table.add_row(name, *cells, f"{seconds:.1f}", end_section=name == rows[-1][0])
    console.print(table)
    memory = ", ".join(f"{device} {sized(peak)}" for device, peak in plan.memory.items())
    disk = sized(plan.disk)
    if plan.disk_while > plan.disk:
        disk += f" in the end, {sized(plan.disk_while)} while it runs"
    for line in (
        f"peak memory: {memory}",
        f"run directory: {disk}",
        f"time: about {duration(plan.seconds)} in one process on this machine",
        f"planning took {duration(plan.planning)} beside the start; nothing was written",
    ):
        console.print(line, highlight=False)


def duration(seconds: float) -> str:
    """Seconds in words: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    return f"{minutes // 60} h {minutes % 60} min"
