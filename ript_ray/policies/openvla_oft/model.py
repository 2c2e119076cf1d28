"""The model: images, the robot's state and an instruction -> mean and log-scale of each action of a chunk.

The language model reads one sequence, here in two parts:

    context: begin | 256 patches per camera | robot's state | instruction
    tail:    29871 | a slot per entry of each action, all zero | end

The hidden states from 29871 to the last slot but one give the actions: as in a language model, each position predicts
the next one. OpenVLA-OFT runs both parts at once, every position attending to all. RIPT-VLA runs the context alone,
without gradients, and then the tail, which attends to all: the context does not see the tail, and the two forms differ.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ript_ray.policies.openvla_oft.architecture import Architecture
from ript_ray.policies.openvla_oft.heads import ActionHead, LaplaceScaleHead
from ript_ray.policies.openvla_oft.language import KeysValues, attend_to_all, new_language_model
from ript_ray.policies.openvla_oft.projector import PatchProjector, ProprioProjector
from ript_ray.policies.openvla_oft.prompt import AFTER_SLOTS, BEFORE_SLOTS
from ript_ray.policies.openvla_oft.vision import VisionBackbone


class OpenVLA(nn.Module):
    """What the published shards hold, by their names: 982 tensors at full size."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        features = architecture.dino.embed_dim + architecture.siglip.embed_dim
        self.vision_backbone = VisionBackbone(architecture.dino, architecture.siglip)
        self.projector = PatchProjector(features, architecture.language.hidden_size)
        self.language_model = new_language_model(architecture.language)


@dataclass(frozen=True)
class Context:
    """What the language model reads before the tail.

    Attributes:
        embeddings_BLD: The embeddings; shorter rows are filled up at their end.
        is_token_BL: Which of them are tokens, bool.
    """

    embeddings_BLD: torch.Tensor
    is_token_BL: torch.Tensor


@dataclass(frozen=True)
class EncodedContext:
    """A context that the language model has read.

    Attributes:
        keys_values: Its keys and values, per layer.
        is_token_BL: Which of its positions are tokens, bool.
    """

    keys_values: KeysValues
    is_token_BL: torch.Tensor


def new_scale_head(architecture: Architecture) -> LaplaceScaleHead:
    """Build a scale head with random weights."""
    return LaplaceScaleHead(architecture.language.hidden_size, architecture.action_dim)


def new_action_head(architecture: Architecture) -> ActionHead:
    """Build an action head with random weights."""
    return ActionHead(architecture.language.hidden_size, architecture.action_dim)


def new_proprio_projector(architecture: Architecture) -> ProprioProjector:
    """Build a projector of the robot's state with random weights."""
    return ProprioProjector(architecture.proprio_dim, architecture.language.hidden_size)


class OpenVLAOFT(nn.Module):
    """The whole model; in evaluation mode: nothing in it is random."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self.vla = OpenVLA(architecture)
        self.proprio_projector = new_proprio_projector(architecture)
        self.action_head = new_action_head(architecture)
        self.scale_head = new_scale_head(architecture)
        self.eval()

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of all patches; see `VisionBackbone.forward`."""
        return self.vla.projector(self.vla.vision_backbone(pixels))

    def context(
        self, patches_BPD: torch.Tensor, proprio: torch.Tensor, prompt_BT: torch.Tensor, num_tokens_B: torch.Tensor
    ) -> Context:
        """Put a context together.

        Args:
            patches_BPD: Embeddings of the patches.
            proprio: The robot's state, normalized, (B, proprio).
            prompt_BT: Tokens of the prompt, begin included and 29871 not; shorter rows are filled up at their end.
            num_tokens_B: How many tokens each prompt has.
        """
        words_BTD = self._embed(prompt_BT)
        state_B1D = self.proprio_projector(proprio).unsqueeze(1)
        embeddings = torch.cat([words_BTD[:, :1], patches_BPD, state_B1D, words_BTD[:, 1:]], dim=1)
        num_before = embeddings.shape[1] - prompt_BT.shape[1]
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)
        return Context(embeddings, positions < (num_before + num_tokens_B).unsqueeze(1))

    def slots_in_one_pass(self, context: Context) -> torch.Tensor:
        """Return the hidden states (B, slots, D) with context and tail in one pass, as OpenVLA-OFT acts."""
        tail_BLD, is_token_BL = self._tail(context.is_token_BL)
        embeddings = torch.cat([context.embeddings_BLD, tail_BLD], dim=1)
        hidden_BLD, _ = attend_to_all(self.vla.language_model, embeddings, is_token_BL)
        return self._slots(hidden_BLD)

    def encode(self, context: Context) -> EncodedContext:
        """Let the language model read the context alone."""
        _, keys_values = attend_to_all(self.vla.language_model, context.embeddings_BLD, context.is_token_BL)
        return EncodedContext(keys_values, context.is_token_BL)

    def slots(self, encoded: EncodedContext) -> torch.Tensor:
        """Return the hidden states (B, slots, D) of the tail after a context, as RIPT-VLA acts and trains."""
        tail_BLD, is_token_BL = self._tail(encoded.is_token_BL)
        hidden_BLD, _ = attend_to_all(self.vla.language_model, tail_BLD, is_token_BL, encoded.keys_values)
        return self._slots(hidden_BLD)

    def heads(self, slots_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-scale of the normalized actions, each (B, C, A); the log-scale is not clamped."""
        by_action = slots_BSD.unflatten(1, (self.architecture.chunk_length, -1)).flatten(2)
        return self.action_head(by_action), self.scale_head(by_action)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.vla.language_model.model.embed_tokens(tokens)

    def _tail(self, is_token_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tail's embeddings (B, slots + 2, D), and which positions of context and tail are tokens."""
        first, last = self._embed(torch.tensor([BEFORE_SLOTS, AFTER_SLOTS], device=is_token_BL.device)).unsqueeze(1)
        slots = first.new_zeros(self.architecture.num_slots, first.shape[1])
        tail_BLD = torch.cat([first, slots, last]).expand(len(is_token_BL), -1, -1)
        return tail_BLD, torch.cat([is_token_BL, is_token_BL.new_ones(tail_BLD.shape[:2])], dim=1)

    def _slots(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        end = hidden_BLD.shape[1] - 2
        return hidden_BLD[:, end - self.architecture.num_slots : end]
