"""The options of `ript-ray check-policy` and `ript-ray check-benchmark`; `ript_ray.cli.check` does the work."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ript_ray.cli.entrypoint import WithBenchmarkFields, WithPlugins, begin_loading


@dataclass(frozen=True)
class CheckPolicy(WithPlugins):
    """Test whether a policy conforms to the contract (ript_ray/policies/base.py), on made-up observations.

    Attributes:
        policy: A known kind, or MODULE:NAME: a configuration class, which is built with its defaults, or an instance.
            The module is looked for in the current directory, too.
        benchmark: The benchmark whose sizes, sensors, cameras and first instructions the policy is tested with: a
            known kind or MODULE:NAME. Made up to fit the policy unless given.
        instructions: Instructions that the policy understands, instead of those.
    """

    policy: Annotated[str, tyro.conf.Positional]
    benchmark: str | None = None
    instructions: tuple[str, ...] = ()

    def run(self) -> int:
        """Print a table of the checks; 1 if one fails."""
        begin_loading()
        from ript_ray.cli.check import check_policy_named

        return check_policy_named(self.policy, benchmark=self.benchmark, instructions=self.instructions)


@dataclass(frozen=True)
class CheckBenchmark(WithBenchmarkFields):
    """Test whether a benchmark conforms to the contract (envs/ript_envs/contract.py).

    Attributes:
        benchmark: A known kind, or MODULE:NAME: a benchmark class, which is built with its defaults, or an instance.
            The module is looked for in the current directory, too.
        task: The task whose environments are tested; the first one unless given.
    """

    benchmark: Annotated[str, tyro.conf.Positional]
    task: str | None = None

    def run(self) -> int:
        """Print a table of the checks; 1 if one fails."""
        begin_loading()
        from ript_ray.cli.check import check_benchmark_named

        return check_benchmark_named(self.benchmark, task=self.task, fields=self.fields_of_benchmark)
