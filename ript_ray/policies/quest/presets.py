"""Configurations of the two policies that QueST's authors published (338 and 267 checkpoint entries)."""

from typing import Literal

from ript_envs.contract import EnvironmentSpec
from ript_ray.policies.quest.config import QuestConfig

Variant = Literal["libero", "metaworld"]

SPECS: dict[Variant, EnvironmentSpec] = {
    "libero": EnvironmentSpec(
        name="LIBERO",
        action_dim=7,
        state_dims={"joint_states": 7, "ee_pos": 3, "gripper_states": 2},
        image_shapes={"agentview_rgb": (128, 128, 3), "eye_in_hand_rgb": (128, 128, 3)},
        control_hz=20.0,
        max_steps=600,
    ),
    "metaworld": EnvironmentSpec(
        name="MetaWorld",
        action_dim=4,
        state_dims={"robot_states": 8},
        image_shapes={"corner_rgb": (128, 128, 3)},
        control_hz=80.0,
        max_steps=500,
    ),
}
"""Specs of the environments that the published policies were trained in: the sensors and cameras that they read."""


def published(variant: Variant, instructions: tuple[str, ...] = ()) -> QuestConfig:
    """Return the configuration of a published policy.

    Args:
        variant: For LIBERO (two cameras, joints, hand and gripper, CLIP text features) or for MetaWorld (one camera,
            one state, 50 task embeddings).
        instructions: MetaWorld: the instructions in the order of their task embeddings, at most 50. LIBERO: none, as
            its instructions come with their text features.

    Raises:
        ConfigError: Too many or too few instructions, or the same one twice.
    """
    if variant == "libero":
        return QuestConfig(
            cameras=("agentview_rgb", "eye_in_hand_rgb"),
            sensors=("joint_states", "ee_pos", "gripper_states"),
            standardize=False,
            task_input="features",
            instructions=instructions,
        )
    return QuestConfig(
        cameras=("corner_rgb",),
        sensors=("robot_states",),
        standardize=False,
        task_input="index",
        instructions=instructions,
    )
