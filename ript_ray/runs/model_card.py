"""The model card of a run: what its policy is, what it was trained on, and what it can do."""

from collections.abc import Mapping

from ript_ray.evaluation.evaluate import EvaluationResult, SuccessRate
from ript_ray.runs.run_dir import DEMONSTRATIONS
from ript_ray.runs.saved_policy import SavedPolicy


def model_card(
    policy: SavedPolicy,
    *,
    num_updates: int,
    before: EvaluationResult,
    after: EvaluationResult,
    versions: Mapping[str, str],
) -> str:
    """Return the card as Markdown.

    Args:
        policy: The policy, with any weights.
        num_updates: Updates that it was post-trained for.
        before: Its success on held-out contexts before them.
        after: And after them.
        versions: Of the code and its packages, and who performs the demonstrations behind the policy.
    """
    experiment = policy.experiment
    rows = {
        **experiment.policy.card(experiment.benchmark.spec, policy.arrays),
        "benchmark": experiment.benchmark.spec.name,
        "stages": ", ".join(experiment.all_stages),
        "updates of post-training": str(num_updates),
        "seed": str(experiment.seed),
        "demonstrations": versions.get(DEMONSTRATIONS, "unknown"),
        "code": versions.get("commit", "unknown"),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    tasks = {task: (before.per_task[task], rate) for task, rate in after.per_task.items()}
    tasks["all tasks"] = (before.overall, after.overall)
    success = "\n".join(f"| {task} | {_percent(first)} | {_percent(last)} |" for task, (first, last) in tasks.items())
    return (
        f"---\nlibrary_name: ript-ray\npipeline_tag: robotics\n---\n\n# {experiment.name}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "Success on held-out contexts, in % with 95 % intervals:\n\n"
        f"| task | before RIPT | after RIPT |\n|---|---|---|\n{success}\n\n"
        "Every setting is in `config.json`, the weights are in the newest of `checkpoints/`:\n\n"
        "    from ript_ray import load_policy\n\n"
        '    policy = load_policy("path/to/the/run")\n'
    )


def _percent(rate: SuccessRate) -> str:
    return f"{100 * rate.success_rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
