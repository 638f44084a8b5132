"""Transformers of priors and recommenders: untrained ones of the package transformers, over given embeddings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gritvq.lazy import optional

__all__ = ["Transformer", "attention_implementation", "channel_states", "gpt2", "new_cache"]


def _in_float32(fused: Callable[..., Any]) -> Callable[..., Any]:
    """Attention that takes bfloat16 to float32 on a processor, where its backward pass is ten times as fast."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
    ) -> Any:
        # Rotary positions leave queries and keys in float32; under autocast PyTorch would take them to bfloat16.
        if query.device.type != "cpu" or value.dtype != torch.bfloat16:
            return fused(module, query, key, value, mask, **rest)
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        with torch.autocast("cpu", enabled=False):
            mixed, weights = fused(module, query.float(), key.float(), value.float(), mask, **rest)
        return mixed.to(value.dtype), weights

    return attention


def attention_implementation() -> str:
    """Make our attention known to the package transformers; returns its name there, ``attn_implementation``."""
    transformers = optional("transformers", "priors")
    interface = transformers.AttentionInterface
    interface.register("gritvq", _in_float32(interface()["sdpa"]))
    transformers.AttentionMaskInterface.register("gritvq", transformers.AttentionMaskInterface()["sdpa"])
    return "gritvq"


@functools.cache
def _growing_cache() -> Any:
    """The class of caches that copy only what is new; it is made when the package transformers is needed."""

    class GrowingCache(optional("transformers", "priors").DynamicCache):  # type: ignore[misc]
        """Keys and values in buffers with room for what follows, instead of a new, longer tensor at every step."""

        def __init__(self) -> None:
            super().__init__()
            self._rooms: dict[int, _Room] = {}

        def update(self, keys: Tensor, values: Tensor, layer_idx: int, *rest: Any, **more: Any) -> Any:
            """All keys and values of a layer, with those of new positions."""
            layer: Any = self.layers[layer_idx] if layer_idx < len(self.layers) else None
            known = (None, None) if layer is None else (layer.keys, layer.values)
            if torch.is_grad_enabled() or not _alike(known, (keys, values)):
                return super().update(keys, values, layer_idx, *rest, **more)
            room = self._rooms.get(layer_idx)
            if room is None or room.used[0] is not layer.keys or not room.takes(keys):
                room = self._rooms[layer_idx] = _Room(layer.keys, layer.values, keys.shape[-2])
            layer.keys, layer.values = room.add(keys, values)
            return layer.keys, layer.values

    return GrowingCache


def _alike(known: tuple[Tensor | None, Tensor | None], new: tuple[Tensor, Tensor]) -> bool:
    """Whether there are keys and values, of the type and, but for their number, the shape of new ones."""
    return all(
        old is not None
        and (old.dtype, old.device, old.shape[:-2], old.shape[-1]) == (x.dtype, x.device, x.shape[:-2], x.shape[-1])
        and old.is_inference() == torch.is_inference_mode_enabled()
        for old, x in zip(known, new, strict=True)
    )


class _Room:
    """Buffers of keys and values, twice as long as what is in them when they are made."""

    def __init__(self, keys: Tensor, values: Tensor, more: int) -> None:
        self.length = keys.shape[-2]
        self.buffers = tuple(
            old.new_empty((*old.shape[:-2], 2 * (self.length + more), old.shape[-1])) for old in (keys, values)
        )
        for buffer, old in zip(self.buffers, (keys, values), strict=True):
            buffer[..., : self.length, :] = old
        self.used: tuple[Tensor, Tensor] = (keys, values)

    def takes(self, keys: Tensor) -> bool:
        """Whether more of these fit."""
        return self.length + keys.shape[-2] <= self.buffers[0].shape[-2]

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write behind what is there; all of it, as views."""
        end = self.length + keys.shape[-2]
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[..., self.length : end, :] = new
        self.length = end
        self.used = self.buffers[0][..., :end, :], self.buffers[1][..., :end, :]
        return self.used


def new_cache() -> Any:
    """An empty cache of keys and values for models of transformers, whose steps copy only what is new."""
    return _growing_cache()()


class Transformer(nn.Module):
    """Llama's: RMSNorm, SwiGLU, rotary positions along the sequence; dropout on inputs and on what each part adds.

    Args:
        width: Of the states, D.
        depth: Layers.
        num_heads: Attention heads.
        dropout: In [0, 1).
        length: Longest sequence.

    Raises:
        ValueError: If the width is no even multiple of the heads.
    """

    def __init__(self, width: int, depth: int, num_heads: int, dropout: float, length: int) -> None:
        super().__init__()
        if width % (2 * num_heads):
            raise ValueError(
                f"expected width to be a multiple of 2 num_heads, got {width} and {num_heads}; change one of them"
            )
        transformers = optional("transformers", "priors")
        self.dropout = nn.Dropout(dropout)
        self.model: Any = transformers.LlamaModel(
            transformers.LlamaConfig(
                vocab_size=1,
                hidden_size=width,
                intermediate_size=8 * round(width / 3),
                num_hidden_layers=depth,
                num_attention_heads=num_heads,
                max_position_embeddings=length,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
                use_cache=False,
                attn_implementation=attention_implementation(),
            )
        )
        self.model.embed_tokens.weight.requires_grad_(False)  # inputs are embedded already
        for layer in self.model.layers:
            layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj, nn.Dropout(dropout))
            layer.mlp = nn.Sequential(layer.mlp, nn.Dropout(dropout))
        names = inspect.signature(self.model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"  # its name before transformers 5

    def forward(
        self, inputs: Float[Tensor, "B T D"], mask: Bool[Tensor, "T S"] | None = None, cache: Any = None
    ) -> Float[Tensor, "B T D"]:
        """States.

        Args:
            inputs: Embeddings.
            mask: Row t says which of all S positions (those in the cache, then the T inputs) input t attends to;
                causal attention if None.
            cache: What :meth:`new_cache` made; it grows by T.
        """
        seen = None if mask is None else mask.expand(inputs.shape[0], 1, *mask.shape)
        kept = {} if cache is None else {self._cache_name: cache, "use_cache": True}
        return self.model(inputs_embeds=self.dropout(inputs), attention_mask=seen, **kept).last_hidden_state

    @staticmethod
    def new_cache() -> Any:
        """An empty cache of keys and values."""
        return new_cache()


def gpt2(
    dim: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    dropout: float,
    positions: int,
    input_dropout: float | None = None,
) -> Any:
    """GPT-2 over given embeddings; its own token embedding is not used.

    Args:
        dim: Width.
        num_layers: Layers.
        num_heads: Attention heads.
        hidden_dim: Width inside the feed-forward layers.
        dropout: In [0, 1).
        positions: Longest sequence.
        input_dropout: That of the given embeddings, if it is another one.

    Raises:
        ValueError: If the width is no multiple of the heads.
    """
    transformers = optional("transformers", "priors")
    if dim % num_heads:
        raise ValueError(f"expected dim to be a multiple of num_heads, got {dim} and {num_heads}; change one of them")
    model = transformers.GPT2Model(
        transformers.GPT2Config(
            vocab_size=1,
            n_positions=positions,
            n_embd=dim,
            n_layer=num_layers,
            n_head=num_heads,
            n_inner=hidden_dim,
            resid_pdrop=dropout,
            embd_pdrop=dropout if input_dropout is None else input_dropout,
            attn_pdrop=0.0,  # for fused attention
            activation_function="gelu_pytorch_tanh",
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            attn_implementation=attention_implementation(),
        )
    )
    model.wte.weight.requires_grad_(False)
    return model


def channel_states(model: Any, states: Float[Tensor, "N D"], embedded: Float[Tensor, "N l D"]) -> Tensor:
    """States (N, l + 1, D) from which the channels of a position follow, one after the other.

    Args:
        model: What :func:`gpt2` made.
        states: Of the positions.
        embedded: Their first l channels.
    """
    return model(inputs_embeds=torch.cat([states[:, None], embedded], 1)).last_hidden_state
