"""QueST's sizes and sampling. The defaults are the published model's."""

from dataclasses import dataclass

from ript_ray.checks import require, require_at_least, require_between
from ript_ray.policies.quest.skill_vae import ACTIONS_PER_TOKEN


@dataclass(frozen=True)
class QuestSettings:
    """Sizes of the QueST policy and how it samples. Source of every default: the published 20 M-parameter model.

    Attributes:
        sensors: Low-dimensional sensors of the benchmark that the policy reads, at least one.
        chunk_length: Actions decoded per query, in environment steps; a multiple of 4, at least 4.
        num_executed: Actions executed before the next query, 1 to chunk_length.
        fsq_levels: Levels of the skill quantiser, each at least 2; their product is the vocabulary.
        skill_width: Width of the autoencoder, a multiple of 8.
        skill_layers: Layers of the autoencoder's encoder and decoder, each at least 1.
        prior_width: Width of the prior, a multiple of 2 * prior_heads.
        prior_layers: Layers of the prior, at least 1.
        prior_heads: Attention heads of the prior, at least 1.
        state_width: Width of the encoder of each low-dimensional sensor, at least 1.
        text_features: Length of the instruction vector, at least 1.
        dropout: Probability of dropping a unit in the supervised stages, 0 to below 1.
        top_k: Tokens are drawn among this many most likely ones; 0 for all.
        temperature: Divides the logits that tokens are drawn from, above 0.
    """

    sensors: tuple[str, ...] = ("state",)
    chunk_length: int = 32
    num_executed: int = 8
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    skill_width: int = 256
    skill_layers: tuple[int, int] = (2, 4)
    prior_width: int = 384
    prior_layers: int = 6
    prior_heads: int = 6
    state_width: int = 128
    text_features: int = 512
    dropout: float = 0.1
    top_k: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(bool(self.sensors), "policy.sensors must name at least one sensor")
        require(
            self.chunk_length > 0 and self.chunk_length % ACTIONS_PER_TOKEN == 0,
            f"policy.chunk-length must be a multiple of {ACTIONS_PER_TOKEN}, at least {ACTIONS_PER_TOKEN}, "
            f"not {self.chunk_length}",
        )
        require_between("policy.num-executed", self.num_executed, 1, self.chunk_length)
        require(
            len(self.fsq_levels) > 0 and min(self.fsq_levels) >= 2,
            f"policy.fsq-levels must be one or more numbers, each at least 2, not {self.fsq_levels}",
        )
        require(
            self.skill_width > 0 and self.skill_width % 8 == 0,
            f"policy.skill-width must be a multiple of 8, not {self.skill_width}",
        )
        require(min(self.skill_layers) >= 1, f"policy.skill-layers must each be at least 1, not {self.skill_layers}")
        for name in ("prior_layers", "prior_heads", "state_width", "text_features"):
            require_at_least(f"policy.{name.replace('_', '-')}", getattr(self, name), 1)
        require(
            self.prior_width > 0 and self.prior_width % (2 * self.prior_heads) == 0,
            f"policy.prior-width must be a multiple of 2 * prior-heads = {2 * self.prior_heads}, "
            f"not {self.prior_width}",
        )
        require(0 <= self.dropout < 1, f"policy.dropout must be from 0 to below 1, not {self.dropout}")
        require_at_least("policy.top-k", self.top_k, 0)
        require(self.temperature > 0, f"policy.temperature must be above 0, not {self.temperature}")
