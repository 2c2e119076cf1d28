"""`ript-ray summarize`: runs with several seeds as one table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ript_ray.cli.entrypoint import WithPlugins, begin_loading, print_line


@dataclass(frozen=True)
class Summarize(WithPlugins):
    """Summarize finished runs of one experiment with different seeds: means, the worst seed, 95 % intervals.

    Intervals are over seeds and contexts (a hierarchical bootstrap, made wide enough for few seeds); gains are paired
    by context. Runs must differ in their seeds alone. Those that share `evaluation.seed` were evaluated on the same
    contexts, which narrows the interval of a comparison and is taken into account here.

    Attributes:
        runs: The runs' folders, at least two.
        out: Write the figures to this JSON file, which must not exist.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path | None = None

    def run(self) -> int:
        """Print the table; write the file that was asked for."""
        begin_loading(*self.runs)
        from ript_ray.config.serialization import SCHEMA
        from ript_ray.evaluation.tables import summary_table
        from ript_ray.runs.killed import closing_killed_runs_beside
        from ript_ray.runs.lineage import demonstrations_of
        from ript_ray.runs.summary import summarize_runs
        from ript_ray.storage.atomic import atomic_write, require_absent

        if self.out is not None:
            require_absent(self.out)
        with closing_killed_runs_beside(self.runs[0]):
            summary = summarize_runs(self.runs)
        console, demonstrations = Console(), {str(run): demonstrations_of(run) for run in self.runs}
        console.print(summary_table(summary))
        print_line(console, f"demonstrations: {', '.join(sorted(set(demonstrations.values())))}")
        if self.out is not None:
            content = {"schema": SCHEMA, "demonstrations": demonstrations, **summary.to_json()}
            atomic_write(self.out, json.dumps(content, indent=2) + "\n")
        return 0
