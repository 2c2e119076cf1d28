"""The two policies that QueST's authors published, as settings: 338 and 267 entries of a checkpoint."""

from dataclasses import dataclass
from typing import Literal

from ript_ray.policies.quest.config import QuestConfig
from ript_ray.policies.quest.policy import QuestPolicy

Variant = Literal["libero", "metaworld"]


@dataclass(frozen=True)
class Interface:
    """A policy's settings, and the sizes that its benchmark fixes.

    Attributes:
        settings: What the policy reads, its sizes, how it samples.
        action_dim: Entries of an action, A.
        state_dims: Length of each low-dimensional sensor, by name.
    """

    settings: QuestConfig
    action_dim: int
    state_dims: dict[str, int]

    def new_policy(self) -> QuestPolicy:
        """The policy with random weights."""
        return QuestPolicy(self.settings, action_dim=self.action_dim, state_dims=self.state_dims)


def published(variant: Variant, instructions: tuple[str, ...] = ()) -> Interface:
    """A published policy.

    Args:
        variant: For LIBERO (two cameras, joints, hand and gripper, CLIP's text features) or for MetaWorld (one
            camera, one state, 50 learned task vectors).
        instructions: MetaWorld: the tasks' instructions, in the order of their learned vectors; at most 50.
            The LIBERO policy takes none: its instructions come with their text features.

    Raises:
        ConfigError: Too many or too few instructions, or the same one twice.
    """
    if variant == "libero":
        settings = QuestConfig(
            cameras=("agentview_rgb", "eye_in_hand_rgb"),
            sensors=("joint_states", "ee_pos", "gripper_states"),
            standardize=False,
            task_input="features",
            instructions=instructions,
        )
        return Interface(settings, action_dim=7, state_dims={"joint_states": 7, "ee_pos": 3, "gripper_states": 2})
    settings = QuestConfig(
        cameras=("corner_rgb",),
        sensors=("robot_states",),
        standardize=False,
        task_input="index",
        instructions=instructions,
    )
    return Interface(settings, action_dim=4, state_dims={"robot_states": 8})
