"""`ript-ray check-policy` and `ript-ray check-benchmark`: conformance tests of policies and benchmarks of your own."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ript_envs.conformance.benchmark import check_benchmark
from ript_envs.conformance.checklist import NOT_CHECKED, CheckResult
from ript_ray.checks import require
from ript_ray.cli.entrypoint import import_plugin
from ript_ray.config.changes import with_fields
from ript_ray.config.experiment import BENCHMARKS, POLICIES
from ript_ray.config.kinds import Kinds
from ript_ray.errors import ConfigError, RiptError
from ript_ray.policies.conformance.policy import INSTRUCTIONS, check_policy, made_up_spec

T = TypeVar("T")


def check_policy_named(reference: str, *, benchmark: str | None, instructions: Sequence[str]) -> int:
    """Check a policy and print the results; returns 1 if a check fails, else 0.

    Args:
        reference: A known kind or MODULE:NAME.
        benchmark: Likewise, the benchmark that the policy is built for; a made-up one unless given.
        instructions: What the policy is asked to do; the first ones of the benchmark unless given.

    Raises:
        ConfigError: The policy or the benchmark cannot be imported or built with its defaults.
    """
    config = _load(reference, POLICIES, "PolicyConfig")
    if benchmark is None:
        spec = made_up_spec(config)
    else:
        built = _load(benchmark, BENCHMARKS, "Benchmark")
        try:
            spec = built.spec
            instructions = instructions or [built.instruction(task) for task in built.tasks[: len(INSTRUCTIONS)]]
        except Exception as error:  # a plugin may raise anything
            problem = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{benchmark} is broken ({problem}); see ript-ray check-benchmark") from error
    return _report(f"{reference} for {spec.name}", check_policy(config, spec, instructions or INSTRUCTIONS))


def check_benchmark_named(reference: str, *, task: str | None, fields: Mapping[str, str]) -> int:
    """Check a benchmark and print the results; returns 1 if a check fails, else 0.

    Args:
        reference: A known kind or MODULE:NAME.
        task: The task whose environments are checked; the first one unless given.
        fields: Other values of fields of the benchmark.

    Raises:
        ConfigError: The benchmark cannot be imported or built with its defaults, or has no such task or field.
    """
    benchmark = with_fields(_load(reference, BENCHMARKS, "Benchmark"), fields)
    try:
        results = check_benchmark(benchmark, task)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from None
    return _report(" ".join([reference, *fields.values()]), results)


def _load(reference: str, kinds: Kinds[T], base: str) -> T:
    """Return the configured value that a command line names: an instance, or a class with its defaults."""
    named = import_plugin(reference) if ":" in reference else kinds.find(reference)
    cls = named if isinstance(named, type) else type(named)
    require(kinds.accepts(cls), f"{reference} must be a {base}: a class derived from it, or an instance, not {named!r}")
    try:
        value: T = named() if isinstance(named, type) else named
    except RiptError:
        raise
    except Exception as error:  # a plugin may raise anything
        problem = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{reference} cannot be built with its defaults: {problem}; name an instance") from error
    return value


def _report(title: str, results: Sequence[CheckResult]) -> int:
    table = Table(title=f"conformance of {title}", title_justify="left")
    for column in ("", "check", "what fails"):
        table.add_column(column)
    for result in results:
        table.add_row(_mark(result), Text(result.name), Text(result.error or ""))
    console = Console()
    console.print(table)
    failed = sum(result.error is not None for result in results)
    skipped = sum((result.error or "").startswith(NOT_CHECKED) for result in results)
    console.print(
        f"{failed - skipped} of {len(results)} checks failed, {skipped} were not checked"
        if failed
        else f"all {len(results)} checks passed"
    )
    return 1 if failed else 0


def _mark(result: CheckResult) -> Text:
    if result.error is None:
        return Text("ok", "green")
    is_skipped = result.error.startswith(NOT_CHECKED)
    return Text("not checked", "yellow") if is_skipped else Text("failed", "red")
