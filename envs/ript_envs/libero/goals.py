"""What LIBERO's tasks demand, read from their files, and which of them the scripted expert can do."""

import functools
import re

from ript_envs.libero.suites import problem_file

Fact = tuple[str, ...]
"""A predicate and its arguments, in lower case, such as ("in", "milk_1", "basket_1_contain_region")."""

WITH_DOORS = ("cabinet", "microwave")
"""Furniture in which there is room only if it is open."""


@functools.cache
def goals(folder: str, task: str) -> tuple[Fact, ...]:
    """Return the conditions of a task's success; all must hold."""
    return _facts(folder, task, "goal")


@functools.cache
def has_expert(folder: str, task: str) -> bool:
    """Return whether a task is to put objects in or on places that are open at the start.

    Opening, closing and switching are left out, and pushing, whose goal is a part of the table.
    """
    start = _facts(folder, task, "init")
    return all(
        predicate in ("in", "on")
        and not places[-1].startswith("main_table")
        and (("open", places[-1]) in start or not _is_behind_a_door(places[-1]))
        for predicate, *places in goals(folder, task)
    )


def _is_behind_a_door(place: str) -> bool:
    return place.endswith("_region") and any(kind in place for kind in WITH_DOORS)


def _facts(folder: str, task: str, section: str) -> tuple[Fact, ...]:
    text = problem_file(folder, task).read_text(encoding="utf-8").lower()
    _, _, rest = text.partition(f"(:{section}")
    return tuple(tuple(words.split()) for words in re.findall(r"\(([^():]*)\)", rest.partition("(:")[0]))
