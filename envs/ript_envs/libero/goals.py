"""What LIBERO's tasks demand, read from their files, and which of them the scripted expert can do."""

import functools
import re

from ript_envs.libero.suites import problem_file

CAN_DO = {
    "akita_black_bowl": {"cream_cheese"},
    "basket_contain_region": {
        *("alphabet_soup", "bbq_sauce", "butter", "chocolate_pudding", "cream_cheese", "ketchup", "milk"),
        *("orange_juice", "salad_dressing", "tomato_sauce"),
    },
    "flat_stove_cook_region": {"akita_black_bowl"},
    "plate": {"akita_black_bowl", "porcelain_mug", "red_coffee_mug", "white_yellow_mug"},
    "wine_rack_top_region": {"wine_bottle"},
    "wooden_cabinet_top_side": {"akita_black_bowl", "wine_bottle"},
}
"""What the expert puts where, for each kind of place the kinds of objects; measured (docs/libero.md)."""


@functools.cache
def has_expert(folder: str, task: str) -> bool:
    """Return whether the scripted expert can do a task: all its goals are objects that it can put in or on a place."""
    return all(
        predicate in ("in", "on") and _kind(arguments[0]) in CAN_DO.get(_kind(arguments[-1]), ())
        for predicate, *arguments in _goals(folder, task)
    )


def _goals(folder: str, task: str) -> list[list[str]]:
    """Return the conditions of a task's success, each a predicate and its arguments; all must hold."""
    _, _, goal = problem_file(folder, task).read_text(encoding="utf-8").lower().partition("(:goal")
    return [words.split() for words in re.findall(r"\(([^()]+)\)", goal)]


def _kind(name: str) -> str:
    """Return what an object is, or a place: plate_1 is a plate."""
    return re.sub(r"_\d+(?=_|$)", "", name)
