"""Transformers of the package ``transformers`` with masks, positions and memory of our own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import Component, check_integer, check_number
from gritvq.lazy import optional
from gritvq.priors.transformer import attention_implementation, new_cache

__all__ = ["Architecture", "TextTransformer"]

Architecture = Literal["gpt2", "llama"]


class TextTransformer(Component):
    """GPT-2 or Llama as a body: embeddings of tokens in, states out; attention sees what the caller's mask says.

    Args:
        vocab_size: Number of tokens V, with those of a :class:`gritvq.text.TextFormat` besides its subwords.
        width: Width W of the states.
        depth: Number of layers.
        num_heads: Number of attention heads.
        length: Longest sequence.
        dropout: Of the inputs and of what each part adds, in [0, 1).
        architecture: ``"gpt2"``: learned positions, LayerNorm, GELU. ``"llama"``: rotary positions, RMSNorm, SwiGLU; a
            memory counts as the first position there.
        settings: Configuration of a pretrained model instead of width, depth, heads, length and dropout; set by
            :meth:`from_folder`.

    Attributes:
        memory_size: Numbers per layer of one key and one value: ``(num_layers, 2, num_heads, head size)``.

    Raises:
        ValueError: If a number is out of range or does not fit the others.

    Example:
        >>> body = TextTransformer(300, width=16, depth=1, num_heads=2)
        >>> tokens = torch.zeros(2, 3, dtype=torch.int64)
        >>> mask, positions = torch.ones(2, 3, 3).tril().bool(), torch.arange(3).expand(2, 3)
        >>> body(body.embed(tokens), positions, mask).shape
        torch.Size([2, 3, 16])
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        width: int = 192,
        depth: int = 3,
        num_heads: int = 4,
        length: int = 256,
        dropout: float = 0.1,
        architecture: Architecture = "gpt2",
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if architecture not in get_args(Architecture):
            raise ValueError(f"expected architecture 'gpt2' or 'llama', got {architecture!r}; choose one")
        for name, value in (("width", width), ("depth", depth), ("num_heads", num_heads), ("length", length)):
            check_integer(name, value)
        check_number("dropout", dropout, most=0.999)
        if width % (2 * num_heads):
            raise ValueError(
                f"expected width to be a multiple of 2 num_heads, got {width} and {num_heads}; change one of them"
            )
        self.vocab_size = check_integer("vocab_size", vocab_size, 4)
        self.architecture: Architecture = architecture
        transformers = optional("transformers", "text")
        if settings is None:
            make = _gpt2_settings if architecture == "gpt2" else _llama_settings
            settings = make(width, depth, num_heads, length, dropout)
        kinds = {"gpt2": ("GPT2Config", "GPT2Model"), "llama": ("LlamaConfig", "LlamaModel")}
        config_class, model_class = (getattr(transformers, name) for name in kinds[architecture])
        fixed = {"vocab_size": vocab_size, "use_cache": False, "attn_implementation": attention_implementation()}
        fixed |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        config = config_class(**{**settings, **fixed})
        self.model: Any = model_class(config)
        self.width, self.depth, self.num_heads = (
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
        )
        self.length = config.max_position_embeddings
        heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.memory_size = (self.depth, 2, heads, getattr(config, "head_dim", None) or self.width // self.num_heads)
        if architecture == "llama" and dropout:
            for layer in self.model.layers:
                layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj, nn.Dropout(dropout))
                layer.mlp = nn.Sequential(layer.mlp, nn.Dropout(dropout))
        self.dropout = nn.Dropout(dropout if architecture == "llama" else 0.0)  # GPT-2 has its own
        names = inspect.signature(self.model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"  # its name before transformers 5

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], vocab_size: int = 4099) -> TextTransformer:
        """A pretrained GPT-2 or Llama, as ``save_pretrained`` of ``transformers`` writes it.

        Embeddings of tokens that it does not have, such as those that end segments, start at random; the output of a
        decoder shares the embeddings, also where the pretrained model does not.

        Args:
            folder: The folder; nothing is downloaded.
            vocab_size: Number of tokens, see :attr:`gritvq.text.TextFormat.vocab_size`.

        Raises:
            ValueError: If there is no such model, or it has fewer tokens than the subwords.
        """
        transformers = optional("transformers", "text")
        if not Path(folder).is_dir():
            raise ValueError(f"expected a folder of a pretrained model, got {str(folder)!r}; correct the path")
        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **here)
            kind = config.model_type
            if kind not in get_args(Architecture):
                raise ValueError(f"it is of the kind {kind!r}")
            given = transformers.AutoModel.from_pretrained(folder, torch_dtype=torch.float32, **here)
        except Exception as error:  # the package raises whatever it likes
            raise ValueError(
                f"expected a pretrained GPT-2 or Llama in {str(folder)!r}, got none that can be read ({error}); give "
                "another folder"
            ) from error
        if vocab_size - 3 > config.vocab_size:
            raise ValueError(
                f"expected at most {config.vocab_size} subwords as the model in {str(folder)!r} has, got "
                f"{vocab_size - 3}; take the vocabulary in its folder"
            )
        body = cls(vocab_size, dropout=0.0, architecture=kind, settings=config.to_diff_dict())
        weights = given.state_dict()
        name = "wte.weight" if kind == "gpt2" else "embed_tokens.weight"
        rows = body.model.state_dict()[name].clone()
        known = min(len(rows), len(weights[name]))
        rows[:known] = weights[name][:known]
        body.model.load_state_dict({**weights, name: rows})
        return body

    @property
    def embeddings(self) -> Float[Tensor, "V W"]:
        """The embeddings of all tokens."""
        return self.model.get_input_embeddings().weight

    def embed(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L W"]:
        """Embeddings of tokens."""
        return self.model.get_input_embeddings()(tokens)

    def forward(
        self,
        inputs: Float[Tensor, "B L W"],
        positions: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L S"],
        cache: Any = None,
    ) -> Float[Tensor, "B L W"]:
        """States.

        Args:
            inputs: Embedded tokens.
            positions: Their positions, below ``length``.
            mask: Which of the S keys (those in the cache, then the L inputs) each input attends to; at least one.
            cache: What :meth:`new_cache` made; it grows by L.
        """
        kept = {} if cache is None else {self._cache_name: cache, "use_cache": True}
        found = self.model(
            inputs_embeds=self.dropout(inputs), attention_mask=mask[:, None], position_ids=positions, **kept
        )
        return found.last_hidden_state

    @staticmethod
    def new_cache() -> Any:
        """An empty cache of keys and values."""
        return new_cache()

    @staticmethod
    def remember(cache: Any, memory: Float[Tensor, "B M layers 2 heads size"]) -> None:
        """Append memory to a cache: a key and a value for each layer and head, seen like those of M more tokens."""
        for number, layer in enumerate(memory.unbind(2)):
            keys, values = layer.transpose(1, 3).unbind(2)
            cache.update(keys, values, number)

    @staticmethod
    def select(cache: Any, rows: Int[Tensor, " N"]) -> None:
        """Keep these rows of a cache, in this order; a row may be there more than once."""
        cache.reorder_cache(rows)

    def check_length(self, wanted: int) -> None:
        """Check that a sequence is not too long.

        Raises:
            ValueError: If it is.
        """
        if wanted > self.length:
            raise ValueError(
                f"expected documents of at most {self.length} tokens as the transformer takes, got {wanted}; give a "
                "larger length, or shorter or fewer segments"
            )


def _gpt2_settings(width: int, depth: int, num_heads: int, length: int, dropout: float) -> dict[str, Any]:
    return {
        "n_positions": length,
        "n_embd": width,
        "n_layer": depth,
        "n_head": num_heads,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": 0.0,  # for fused attention
        "activation_function": "gelu_pytorch_tanh",
    }


def _llama_settings(width: int, depth: int, num_heads: int, length: int, dropout: float) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 8 * round(width / 3),
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
        "max_position_embeddings": length,
    }


def positions_of(valid: Sequence[Any] | Tensor) -> Int[Tensor, "B L"]:
    """Number of the tokens before each one in its row."""
    ones = torch.as_tensor(valid).long()
    return ones.cumsum(1) - ones
