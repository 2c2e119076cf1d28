"""What a policy computes of recorded decisions without any trained parameter: kept for the passes of an update."""

import torch

from ript_ray.policies.base import EncodingPolicy, Policy
from ript_ray.types import Batch

Row = dict[str, torch.Tensor]
"""The encoding of one decision."""


class Encodings:
    """Decisions of an `EncodingPolicy` are encoded once, as far as the memory for them goes.

    Which are kept follows from the order in which they are asked for alone, so an update that is repeated has
    the same bits.
    """

    def __init__(self, policy: Policy, max_bytes: int):
        """Keep nothing yet.

        Args:
            policy: The policy, whose trained parameters may change meanwhile.
            max_bytes: Main memory for what is kept; what does not fit is computed again. With 0, nothing is kept.
        """
        self._policy = policy
        self._max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget everything, as an update is over."""
        self._rows: dict[int, Row] = {}
        self._bytes_left = self._max_bytes

    def record_of(self, part: Batch) -> Row:
        """Return what `Policy.log_probs` reads of decisions of the update's batch, encodings included."""
        if not (self._max_bytes and isinstance(self._policy, EncodingPolicy)):
            return part.record
        return {**part.record, **self._encoded(self._policy, part)}

    def _encoded(self, policy: EncodingPolicy, part: Batch) -> Row:
        """Return the encodings of decisions, N rows per tensor; those that are not kept are computed together."""
        decisions, device = part.decision_N.tolist(), part.advantages_N.device
        missing = [place for place, decision in enumerate(decisions) if decision not in self._rows]
        new: dict[int, Row] = {}
        if missing:
            places = torch.tensor(missing).to(device)
            encoded = policy.encode({name: tensor[places] for name, tensor in part.record.items()})
            new = {decisions[place]: _row(encoded, number) for number, place in enumerate(missing)}
        rows = [new[decision] if decision in new else self._rows[decision] for decision in decisions]
        for decision, row in new.items():
            self._keep(decision, row)
        return {name: torch.stack([row[name].to(device) for row in rows]) for name in rows[0]} if rows else {}

    def _keep(self, decision: int, row: Row) -> None:
        num_bytes = sum(tensor.nbytes for tensor in row.values())
        if num_bytes <= self._bytes_left:
            self._bytes_left -= num_bytes
            self._rows[decision] = {name: tensor.clone().cpu() for name, tensor in row.items()}


def _row(encoded: Row, number: int) -> Row:
    return {name: tensor[number] for name, tensor in encoded.items()}
