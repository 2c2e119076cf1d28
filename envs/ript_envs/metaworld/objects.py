"""What a task's observation reads of its objects, without MuJoCo's access by name.

Source: `_get_pos_objects` and `_get_quat_objects` of the package `metaworld`'s environments; a test compares all 50.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]
Read = Callable[[], Vector]

NUM_ENTRIES = 18
"""Of one frame: hand (3), gripper (1), and at most two objects of position (3) and quaternion (4), else zeros."""

MAX_OPENING_M = 0.1
"""Distance of the fingers that counts as open."""


UNCHECKED = {"assume_valid": True} if "assume_valid" in signature(Rotation.from_matrix).parameters else {}
"""scipy's check, nine tenths of its time, corrects matrices that are not orthogonal to 1e-12; MuJoCo's are to 1e-15."""


@dataclass(frozen=True)
class Place:
    """A point of the model.

    Attributes:
        kind: What has the name.
        name: Name in the simulator's model.
        offset_m: Added to its position.
    """

    kind: Literal["body", "site", "geom"]
    name: str
    offset_m: tuple[float, float, float] | None = None

    def position(self, model: Any, data: Any) -> Read:
        """Return what reads the position (3,), in metres; without an offset it is a view of MuJoCo's memory."""
        poses = {"body": data.xpos, "site": data.site_xpos, "geom": data.geom_xpos}[self.kind]
        view = poses[getattr(model, self.kind)(self.name).id]
        if self.offset_m is None:
            return lambda: view
        offset_m = np.array(self.offset_m)
        return lambda: view + offset_m

    def quaternion(self, model: Any, data: Any) -> Read:
        """Return what reads the quaternion (4,) of the body, real part first."""
        assert self.kind == "body"
        view = data.xquat[model.body(self.name).id]
        return lambda: view

    def quaternion_of_matrix(self, model: Any, data: Any) -> Read:
        """Return what reads the quaternion (4,) that scipy makes of the rotation matrix, real part last."""
        matrices = {"body": data.xmat, "site": data.site_xmat, "geom": data.geom_xmat}[self.kind]
        matrix = matrices[getattr(model, self.kind)(self.name).id].reshape(3, 3)
        return lambda: Rotation.from_matrix(matrix, **UNCHECKED).as_quat()


class DialHandle:
    """The handle of the dial, which the model has no point for."""

    def position(self, model: Any, data: Any) -> Read:
        """Return what reads the position (3,): 5 cm from the dial's centre, at its angle."""
        centre = data.xpos[model.body("dial").id]
        angle_rad = data.joint("knob_Joint_1").qpos

        def read() -> Vector:
            offset = np.array([np.sin(angle_rad).item(), -np.cos(angle_rad).item(), 0.0])
            return centre + offset * 0.05

        return read


@dataclass(frozen=True)
class Seen:
    """An object as observations contain it.

    Attributes:
        place: Its position.
        turned: Its orientation: that of a body; the matrix of a body, site or geom; or four numbers.
        by: How `turned` is read.
    """

    place: Place | DialHandle
    turned: Place | tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    by: Literal["quaternion", "matrix"] = "quaternion"

    def orientation(self, model: Any, data: Any) -> Read:
        """Return what reads the quaternion (4,)."""
        if isinstance(self.turned, tuple):
            constant = np.array(self.turned)
            return lambda: constant
        return (self.turned.quaternion if self.by == "quaternion" else self.turned.quaternion_of_matrix)(model, data)


def _body(name: str, offset_m: tuple[float, float, float] | None = None) -> Seen:
    return Seen(Place("body", name, offset_m), Place("body", name))


def _site(name: str, turned: str | None = None, offset_m: tuple[float, float, float] | None = None) -> Seen:
    place = Place("site", name, offset_m)
    return Seen(place) if turned is None else Seen(place, Place("body", turned))


def _geom(name: str, place: Place | None = None) -> Seen:
    return Seen(place or Place("geom", name), Place("geom", name), by="matrix")


_BUTTON_TOP, _BUTTON_FRONT = _body("button", (0.0, 0.0, 0.193)), _body("button", (0.0, -0.193, 0.0))
_MUG, _PUCK, _PLATE = _geom("mug", Place("body", "obj")), _geom("objGeom", Place("body", "obj")), _geom("puck")
_STICK = Seen(Place("body", "stick"), Place("body", "stick"), by="matrix")

OBJECTS: dict[str, tuple[Seen, ...]] = {
    "assembly-v3": (_site("RoundNut-8", turned="RoundNut"),),
    "basketball-v3": (_body("bsktball"),),
    "bin-picking-v3": (_body("obj"),),
    "box-close-v3": (_body("top_link"),),
    "button-press-topdown-v3": (_BUTTON_TOP,),
    "button-press-topdown-wall-v3": (_BUTTON_TOP,),
    "button-press-v3": (_BUTTON_FRONT,),
    "button-press-wall-v3": (_BUTTON_FRONT,),
    "coffee-button-v3": (Seen(Place("site", "buttonStart"), (1.0, 0.0, 0.0, 0.0)),),
    "coffee-pull-v3": (_MUG,),
    "coffee-push-v3": (_MUG,),
    "dial-turn-v3": (Seen(DialHandle(), Place("body", "dial")),),
    "disassemble-v3": (_site("RoundNut-8", turned="RoundNut"),),
    "door-close-v3": (_geom("handle"),),
    "door-lock-v3": (_site("lockStartLock", turned="door_link"),),
    "door-open-v3": (_geom("handle"),),
    "door-unlock-v3": (_site("lockStartUnlock", turned="door_link"),),
    "drawer-close-v3": (Seen(Place("body", "drawer_link", (0.0, -0.16, 0.05))),),
    "drawer-open-v3": (_body("drawer_link", (0.0, -0.16, 0.0)),),
    "faucet-close-v3": (_site("handleStartClose", turned="faucetBase", offset_m=(0.0, 0.0, -0.01)),),
    "faucet-open-v3": (_site("handleStartOpen", turned="faucetBase", offset_m=(0.0, 0.0, -0.01)),),
    "hammer-v3": (_body("hammer"), _body("nail_link")),
    "hand-insert-v3": (_body("obj"),),
    "handle-press-side-v3": (_site("handleStart"),),
    "handle-press-v3": (_site("handleStart"),),
    "handle-pull-side-v3": (_site("handleCenter"),),
    "handle-pull-v3": (_site("handleRight"),),
    "lever-pull-v3": (_geom("objGeom", Place("site", "leverStart")),),
    "peg-insert-side-v3": (Seen(Place("site", "pegGrasp"), Place("site", "pegGrasp"), by="matrix"),),
    "peg-unplug-side-v3": (_site("pegEnd", turned="plug1"),),
    "pick-out-of-hole-v3": (_body("obj"),),
    "pick-place-v3": (_PUCK,),
    "pick-place-wall-v3": (_geom("objGeom"),),
    "plate-slide-back-side-v3": (_PLATE,),
    "plate-slide-back-v3": (_PLATE,),
    "plate-slide-side-v3": (_PLATE,),
    "plate-slide-v3": (_PLATE,),
    "push-back-v3": (_geom("objGeom"),),
    "push-v3": (_PUCK,),
    "push-wall-v3": (_geom("objGeom"),),
    "reach-v3": (_PUCK,),
    "reach-wall-v3": (_PUCK,),
    "shelf-place-v3": (_PUCK,),
    "soccer-v3": (Seen(Place("body", "soccer_ball"), Place("body", "soccer_ball"), by="matrix"),),
    "stick-pull-v3": (_STICK, _site("insertion")),
    "stick-push-v3": (_STICK, _site("insertion", offset_m=(0.0, 0.09, 0.0))),
    "sweep-into-v3": (_PUCK,),
    "sweep-v3": (_body("obj"),),
    "window-close-v3": (_site("handleCloseStart"),),
    "window-open-v3": (_site("handleOpenStart"),),
}
"""The objects of each task, in the order of its observation."""


class FrameReader:
    """Reads one frame of a task, the 18 entries that the stock environment stacks twice."""

    def __init__(self, task: str, model: Any, data: Any):
        """Look up every name once; `data` may be any simulator state of `model`."""
        self._hand = data.xpos[model.body("hand").id]
        self._fingers = data.xpos[model.body("rightclaw").id], data.xpos[model.body("leftclaw").id]
        self._objects = [(seen.place.position(model, data), seen.orientation(model, data)) for seen in OBJECTS[task]]

    def opening(self) -> float:
        """Return how far the gripper is open, from 0 to 1."""
        right, left = self._fingers
        gap = right - left
        return min(max(math.sqrt(gap.dot(gap)) / MAX_OPENING_M, 0.0), 1.0)

    def position(self, index: int = 0) -> Read:
        """Return what reads the position (3,) of an object, in metres."""
        return self._objects[index][0]

    def read(self) -> Vector:
        """Return a new frame (18,)."""
        frame = np.zeros(NUM_ENTRIES)
        frame[:3] = self._hand
        frame[3] = self.opening()
        for index, (position, orientation) in enumerate(self._objects):
            frame[4 + 7 * index : 7 + 7 * index] = position()
            frame[7 + 7 * index : 11 + 7 * index] = orientation()
        return frame
