"""MetaWorld's 50 tasks in QueST's order, and the ML45 split of the papers."""

_NAMES = """
    assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press
    button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open
    door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press-side handle-press
    handle-pull handle-pull-side peg-insert-side lever-pull peg-unplug-side pick-out-of-hole pick-place
    pick-place-wall plate-slide-back-side plate-slide-back plate-slide-side plate-slide reach reach-wall push-back
    push push-wall shelf-place soccer stick-pull stick-push sweep-into sweep window-close window-open
"""

QUEST_TASK_ORDER: tuple[str, ...] = tuple(f"{name}-v3" for name in _NAMES.split())
"""All 50 tasks in the order of a published QueST policy's task embeddings (almost alphabetical)."""

ML45_HELD_OUT: tuple[str, ...] = tuple(
    f"{name}-v3" for name in ("box-close", "disassemble", "hand-insert", "pick-place-wall", "stick-pull")
)
"""The five tasks that are held out for few-shot experiments.

Source: the split of PRISE (Zheng et al. 2024), which QueST and RIPT-VLA use; MetaWorld's own ML45 holds out others.
"""

ML45_TRAIN: tuple[str, ...] = tuple(sorted(set(QUEST_TASK_ORDER) - set(ML45_HELD_OUT)))
"""The other 45."""
