"""The language model: transformers' Llama, in which every position attends to every other one.

The authors change transformers' source for that (a fork of 4.40.1); with the original, their policy works far worse and
nothing says why. Here the mask is given with every call, so what Llama would do without one is of no effect.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ript_ray.policies.openvla_oft.architecture import Language

KeysValues = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of earlier positions, each (B, heads, positions, head width), per layer."""


def new_language_model(sizes: Language) -> LlamaForCausalLM:
    """Build Llama with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            num_key_value_heads=sizes.num_key_value_heads,
            rms_norm_eps=sizes.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
            pad_token_id=sizes.pad_token_id,
            attn_implementation="sdpa",
        )
    )


def new_rotary_positions(model: LlamaForCausalLM) -> LlamaRotaryEmbedding:
    """Build the rotary positions, which no file has, on torch's default device."""
    return LlamaRotaryEmbedding(model.config)


def attend_to_all(
    model: LlamaForCausalLM, embeddings_BLD: torch.Tensor, is_token_BL: torch.Tensor, earlier: KeysValues = ()
) -> tuple[torch.Tensor, KeysValues]:
    """Run the layers, every position attending to every token, later ones included.

    Args:
        model: The language model; its logits are not computed.
        embeddings_BLD: The positions to run.
        is_token_BL: Which positions are tokens and which fill up shorter rows, bool; with the earlier positions, if
            there are any, before those of `embeddings_BLD`. Filled positions count neither as keys nor for the places
            of later tokens; what is returned of them is meaningless.
        earlier: Keys and values of the earlier positions; not changed.

    Returns:
        The hidden states (B, L, D) after the final normalization, and keys and values of all positions.
    """
    num_new = embeddings_BLD.shape[1]
    places_BL = (is_token_BL.cumsum(1) - 1).clamp(min=0)[:, -num_new:]
    mask = is_token_BL[:, None, None, :].expand(-1, 1, num_new, -1)  # four axes: transformers leaves it as it is
    cache = DynamicCache(earlier) if earlier else DynamicCache()
    hidden_BLD = model.model(
        inputs_embeds=embeddings_BLD,
        attention_mask=mask,
        position_ids=places_BL,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden_BLD, [(layer.keys, layer.values) for layer in cache.layers]
