"""`ript-ray demos`: how often the scripted expert succeeded."""

from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ript_ray.data.hdf5 import expert_record
from ript_ray.evaluation.evaluate import SuccessRate
from ript_ray.evaluation.tables import rate_cells


def print_success(files: Mapping[str, Path]) -> None:
    """Print how often the expert solved each task while its file was recorded, with 95 % intervals.

    Files of older versions do not tell; their cells are empty.

    Raises:
        RiptError: A file is corrupt.
    """
    title = "scripted expert: success of all attempts, demonstrations kept, their mean length"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)  # fits 80 columns
    table.add_column("task", overflow="fold")
    for name in ("success, %", "of", "kept", "steps"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, path in files.items():
        found = expert_record(path)
        if found is None:
            table.add_row(task)
            continue
        num_failures = found.num_attempts - found.num_successes
        rate = SuccessRate.of([1.0] * found.num_successes + [0.0] * num_failures)
        steps = f"{found.num_steps / found.num_demos:.0f}"
        table.add_row(task, *rate_cells([rate]), str(found.num_demos), steps)
    Console().print(table)
