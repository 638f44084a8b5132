"""Models of text with a latent per segment, and their baselines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gritvq.component import Component, eval_mode
from gritvq.saving import load_weights, local_folder, read_config, rebuilt, write_folder
from gritvq.text.generation import Writing, write_documents
from gritvq.text.networks.latents import GaussianLatents
from gritvq.text.networks.parts import SegmentDecoder, SegmentEncoder
from gritvq.text.networks.transformer import Architecture, TextTransformer
from gritvq.text.segments import TextBatch, TextFormat

__all__ = ["TraceModel", "TraceOutput", "gaussian_vae", "language_model", "trace"]

_KIND = "text_model"


class TraceOutput(NamedTuple):
    """What a model says of a batch.

    Attributes:
        log_probs: Log-probability of each token (B, L) in nats, given the latents; zero where there is none.
        kl: KL divergence of posterior from prior (B, T, D) of each segment and component in nats; zero for segments
            that a document does not have. D is 0 without latents.
        latents: (B, T, D).
    """

    log_probs: Float[Tensor, "B L"]
    kl: Float[Tensor, "B T D"]
    latents: Float[Tensor, "B T D"]


class TraceModel(Component):
    """A transformer variational autoencoder of text with one latent per segment, each given the earlier ones.

    ``p(x, z) = prod_t p(z_t | z_<t, x_<t) p(x_t | z_<=t, x_<t)`` over the segments t of a document, with the posterior
    ``q(z | x) = prod_t q(z_t | z_<t, x_<=t)``. The bound on the log-likelihood is a sum over segments:
    ``ELBO = sum_t E_q[log p(x_t | z_<=t, x_<t)] - KL(q(z_t | ...) || p(z_t | ...))``.

    Without encoder and latents it is a language model. :func:`trace`, :func:`gaussian_vae` and :func:`language_model`
    make whole models.

    Args:
        decoder: Tokens given latents.
        encoder: Vectors of segments; None for a language model.
        latents: Prior and posterior; None for a language model.

    Attributes:
        format: Vocabulary and segmentation, a :class:`gritvq.text.TextFormat`; None until it is set, saved and loaded.
        trained: What a loaded model says of its training, plain values by name.

    Raises:
        ValueError: If the parts do not fit together.

    Example:
        >>> model = trace(300, dim=4, width=16, depth=1, num_heads=2)
        >>> batch = TextBatch(torch.zeros(2, 6, dtype=torch.int64), torch.tensor([[0, 0, 0, 1, 1, 1]] * 2))
        >>> output = model(batch)
        >>> output.log_probs.shape, output.kl.shape, model.elbo(batch).shape
        (torch.Size([2, 6]), torch.Size([2, 2, 4]), torch.Size([2, 2]))

    References:
        Hu et al., "Recurrence Boosts Diversity! Revisiting Recurrent Latent Variable in Transformer-Based Variational
        AutoEncoder for Diverse Text Generation" (TRACE), Findings of EMNLP 2022, arXiv 2210.12409. Established are one
        latent per segment, the conditions of prior and posterior, the residual posterior with layer normalization and
        its bound, and the parallel recurrence. All else is our reading, see the parts.
    """

    def __init__(
        self, decoder: SegmentDecoder, encoder: SegmentEncoder | None = None, latents: GaussianLatents | None = None
    ) -> None:
        super().__init__()
        if (encoder is None) != (latents is None):
            raise ValueError("expected both encoder and latents, or neither, got one of them; add the other")
        if encoder is not None and latents is not None:
            for name, got, wanted in (
                ("latents.context_dim", latents.context_dim, encoder.dim),
                ("decoder.dim", decoder.dim, latents.dim),
                ("encoder.transformer.vocab_size", encoder.transformer.vocab_size, decoder.transformer.vocab_size),
            ):
                if got != wanted:
                    raise ValueError(f"expected {name}={wanted} as the part before it has, got {got}; make them equal")
        elif decoder.dim is not None:
            raise ValueError(f"expected a decoder of dim None without latents, got {decoder.dim}; add latents")
        self.decoder, self.encoder, self.latents = decoder, encoder, latents
        self.format: TextFormat | None = None
        self.trained: dict[str, Any] = {}

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.decoder.transformer.vocab_size

    @property
    def length(self) -> int:
        """Most tokens of a document."""
        lengths = [part.transformer.length for part in (self.decoder, self.encoder) if part is not None]
        return min(lengths)

    @property
    def least_kl(self) -> float:
        """Smallest KL divergence of a segment in nats, whatever the parameters."""
        return 0.0 if self.latents is None else self.latents.least_kl

    def forward(self, batch: TextBatch, *, sample: bool = True) -> TraceOutput:
        """Log-probabilities and divergences.

        Args:
            batch: Documents.
            sample: Whether to draw the latents from the posterior, by torch's global generator; else they are its mean.

        Raises:
            ValueError: If a document is longer than the transformers take.
        """
        if self.encoder is None or self.latents is None:
            nothing = torch.zeros(*batch.present.shape, 0, device=batch.tokens.device)
            return TraceOutput(self.decoder(batch), nothing, nothing)
        latents, kl = self.latents(self.encoder(batch), batch.present, sample=sample)
        return TraceOutput(self.decoder(batch, latents), kl * batch.present[..., None], latents)

    def elbo(self, batch: TextBatch) -> Float[Tensor, "B T"]:
        """Bound on the log-probability of each segment given those before, from one draw of the latents, in nats.

        It is exact, the log-probability itself, for a language model.
        """
        output = self(batch)
        return segment_sums(output.log_probs, batch) - output.kl.sum(-1)

    @torch.no_grad()
    def encode(self, batch: TextBatch) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
        """Means of the posterior of each segment's latent, and which segments there are; in eval mode.

        Raises:
            ValueError: If the model has no latents.
        """
        if self.encoder is None or self.latents is None:
            raise ValueError("expected a model with latents, got a language model; train one with latents")
        with eval_mode(self):
            return self.latents(self.encoder(batch), sample=False).latents, batch.present

    @torch.no_grad()
    def generate(
        self,
        num: int | None = None,
        *,
        prompts: TextBatch | None = None,
        latents: tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]] | None = None,
        writing: Writing | None = None,
        cache: bool = True,
    ) -> TextBatch:
        """Write documents; in eval mode.

        Unconditional if neither prompts nor latents are given. Equal seeds give equal texts, whatever the batch size:
        each document has its own random generator.

        Args:
            num: Number of documents; that of the prompts or latents if None.
            prompts: Documents to continue, one for each; whole segments. Their latents are means of the posterior.
            latents: Latents of each segment and which segments to write, as :meth:`encode` gives them.
            writing: How tokens and latents are drawn, and when to stop.
            cache: Whether keys and values of earlier tokens are kept. The texts do not depend on it.

        Returns:
            Documents, with their prompts.

        Raises:
            ValueError: If prompts or latents do not fit.
        """
        with eval_mode(self):
            return write_documents(self, num, prompts, latents, writing or Writing(), cache)

    def reconstruct(self, batch: TextBatch, writing: Writing | None = None) -> TextBatch:
        """Documents written again from the means of their latents, by default with the most probable tokens."""
        return self.generate(latents=self.encode(batch), writing=writing or Writing(temperature=0.0))

    def interpolate(self, first: TextBatch, second: TextBatch, num: int, writing: Writing | None = None) -> TextBatch:
        """Documents of latents on the line from one document's to another's, ends included.

        Args:
            first: One document.
            second: Another with as many segments; of the longer one, only as many as the shorter has are used.
            num: Number of documents, at least 2.
            writing: As for :meth:`reconstruct`.

        Raises:
            ValueError: If there are several documents in a batch, or too few to write.
        """
        if len(first.tokens) != 1 or len(second.tokens) != 1 or num < 2:
            told = f"{len(first.tokens)}, {len(second.tokens)} and num={num}"
            raise ValueError(f"expected one document at each end and num >= 2, got {told}; give one at a time")
        ends = [self.encode(batch)[0] for batch in (first, second)]
        count = min(end.shape[1] for end in ends)
        share = torch.linspace(0, 1, num, device=ends[0].device)[:, None, None]
        between = (1 - share) * ends[0][:, :count] + share * ends[1][:, :count]
        whole = torch.ones(num, count, dtype=torch.bool, device=between.device)
        return self.generate(latents=(between, whole), writing=writing or Writing(temperature=0.0))

    # --- folders ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str], training: Mapping[str, Any] | None = None) -> Path:
        """Write ``config.json``, with vocabulary and segmentation, and ``model.safetensors``; no pickle.

        Args:
            folder: New, empty, or one that holds such a model, which is replaced.
            training: Plain values about the run, for ``config.json``; ``trained`` where None.

        Raises:
            ValueError: If the path is a file, or a folder that holds something else.
        """
        told = dict(self.trained if training is None else training)
        form = None if self.format is None else self.format.settings()
        return write_folder(folder, _KIND, self, {"text": form, "training": told})

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], trusted: Iterable[str] = (), *, revision: str | None = None
    ) -> TraceModel:
        """Load a model from a folder or, by name, from the Hugging Face Hub; in eval mode.

        Args:
            folder: What :meth:`save_pretrained` wrote, or ``"owner/name"`` (needs ``huggingface_hub``).
            trusted: Modules besides ``gritvq`` that its classes may come from.
            revision: Branch, tag or commit on the Hub.

        Raises:
            ValueError: If files are missing or damaged, or it is another kind of model.
        """
        folder = local_folder(folder, revision=revision, what="the folder of a model of text")
        config = read_config(folder, _KIND)
        model = rebuilt(config[_KIND], folder, trusted)
        if not isinstance(model, cls):
            raise ValueError(f"expected a {cls.__name__} in {folder}, got {type(model).__name__}; it is another kind")
        load_weights(model, folder, config)
        model.use(None if config.get("text") is None else TextFormat.from_settings(config["text"]))
        training = config.get("training")
        model.trained = training if isinstance(training, dict) else {}
        return model.eval()

    def use(self, form: TextFormat | None) -> TraceModel:
        """Set vocabulary and segmentation.

        Raises:
            ValueError: If the vocabulary has another size than the transformers, or documents may be too long.
        """
        if form is not None:
            check_format(form, self.decoder.transformer)
            if self.encoder is not None:
                check_format(form, self.encoder.transformer)
        self.format = form
        return self


def check_format(form: TextFormat, transformer: TextTransformer) -> None:
    """Check that a transformer takes the documents of a format.

    Raises:
        ValueError: If not.
    """
    if form.vocab_size != transformer.vocab_size:
        raise ValueError(
            f"expected a vocabulary of {transformer.vocab_size} tokens as the transformer has, got {form.vocab_size}; "
            "use the one that it was made for"
        )
    transformer.check_length(form.segmentation.max_length)


def segment_sums(values: Float[Tensor, "B L"], batch: TextBatch) -> Float[Tensor, "B T"]:
    """Sums over the tokens of each segment."""
    found = values.new_zeros(batch.present.shape)
    return found.scatter_add(1, batch.segments.clamp(min=0), values * batch.valid)


# --- whole models -----------------------------------------------------------------------------------------------------


def trace(
    vocab_size: int = 4099,
    *,
    dim: int = 16,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    length: int = 256,
    dropout: float = 0.1,
    architecture: Architecture = "gpt2",
) -> TraceModel:
    """TRACE: residual posterior, recurrence of half the latent's size; encoder and decoder of equal size.

    What is layer-normalized is whitened over a batch, which is ours, see :class:`GaussianLatents`.

    Args:
        vocab_size: Number of tokens.
        dim: Size D of a latent; the divergence of a segment is D/2 nats at least.
        width: Width of the transformers.
        depth: Layers of each.
        num_heads: Attention heads of each.
        length: Most tokens of a document.
        dropout: In [0, 1).
        architecture: See :class:`TextTransformer`.

    Example:
        >>> trace(300, dim=8, width=16, depth=1, num_heads=2).least_kl
        4.0

    References:
        See :class:`TraceModel`. Sizes are ours.
    """
    bodies = [_body(vocab_size, width, depth, num_heads, length, dropout, architecture) for _ in range(2)]
    return TraceModel(
        SegmentDecoder(bodies[0], dim), SegmentEncoder(bodies[1]), GaussianLatents(dim, width, whitened=True)
    )


def gaussian_vae(
    vocab_size: int = 4099,
    *,
    dim: int = 16,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    length: int = 256,
    dropout: float = 0.1,
    architecture: Architecture = "gpt2",
) -> TraceModel:
    """The plain baseline of the same size: a free Gaussian posterior, no recurrence.

    Its posterior tends to become the prior, and the latents then say nothing; free bits, an argument of
    :class:`gritvq.text.TextTask`, are the usual remedy.

    Args:
        vocab_size: See :func:`trace`.
        dim: See :func:`trace`.
        width: See :func:`trace`.
        depth: See :func:`trace`.
        num_heads: See :func:`trace`.
        length: See :func:`trace`.
        dropout: See :func:`trace`.
        architecture: See :func:`trace`.

    Example:
        >>> gaussian_vae(300, dim=8, width=16, depth=1, num_heads=2).least_kl
        0.0

    References:
        Bowman et al., Generating sentences from a continuous space, CoNLL 2016, arXiv 1511.06349, with
        transformers, and with a prior that depends on the text so far.
    """
    bodies = [_body(vocab_size, width, depth, num_heads, length, dropout, architecture) for _ in range(2)]
    latents = GaussianLatents(dim, width, rank=0, posterior="gaussian")
    return TraceModel(SegmentDecoder(bodies[0], dim), SegmentEncoder(bodies[1]), latents)


def language_model(
    vocab_size: int = 4099,
    *,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    length: int = 256,
    dropout: float = 0.1,
    architecture: Architecture = "gpt2",
) -> TraceModel:
    """The decoder alone, without latents.

    Args:
        vocab_size: See :func:`trace`.
        width: See :func:`trace`.
        depth: See :func:`trace`.
        num_heads: See :func:`trace`.
        length: See :func:`trace`.
        dropout: See :func:`trace`.
        architecture: See :func:`trace`.

    Example:
        >>> language_model(300, width=16, depth=1, num_heads=2).latents is None
        True
    """
    return TraceModel(SegmentDecoder(_body(vocab_size, width, depth, num_heads, length, dropout, architecture)))


def _body(
    vocab_size: int, width: int, depth: int, num_heads: int, length: int, dropout: float, architecture: Architecture
) -> TextTransformer:
    return TextTransformer(
        vocab_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        length=length,
        dropout=dropout,
        architecture=architecture,
    )
