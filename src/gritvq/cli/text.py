"""The jobs of ``encode``, ``decode`` and ``generate`` for texts."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.machine import device_named
from gritvq.cli.output import console, report
from gritvq.cli.run_folder import check_places
from gritvq.training.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from gritvq.text import TextBatch, TextFormat, TextTokenizer
    from gritvq.tokens import TokenRow

__all__ = ["check_tokens", "decode", "encode", "generate", "text_place", "write_page", "write_texts"]

_AT_ONCE = 64  # texts that are decoded together


def encode(tokenizer: TextTokenizer, config: Any, device: torch.device, write: Callable[..., Path]) -> None:
    """Encode documents as tokens, a row for each, named by its number.

    Args:
        tokenizer: As it was loaded.
        config: See :func:`gritvq.cli.tokens.encode_arguments`.
        device: Where to compute.
        write: Writes rows of tokens; returns the path.
    """
    from rich.progress import Progress

    from gritvq.quantizers.metrics import CodebookUsage
    from gritvq.text import Corpus, Reading
    from gritvq.tokens import TokenRow

    corpus = Corpus(config.data, Reading(column=config.column or "text", unit=config.unit, encoding=config.encoding))
    own = tokenizer.fingerprint()
    tokenizer = tokenizer.fold().to(device)  # codes made once
    used, seen = CodebookUsage(tokenizer.quantizer.codebook_sizes), {"documents": 0, "characters": 0}

    def rows() -> Iterator[TokenRow]:
        with Progress(console=console(), transient=True) as progress:
            bar = progress.add_task("encoding", total=None)
            for group in _groups(corpus.with_places(), config.batch_size):
                documents = [document for document, _ in group]
                for (document, place), tokens in zip(group, tokenizer.encode(documents), strict=True):
                    used.update(tokens.cpu())
                    yield TokenRow(f"{seen['documents']:06}", tokens.cpu(), {"source": place, "tokenizer": own})
                    seen["documents"] += 1
                    seen["characters"] += sum(map(len, [document] if isinstance(document, str) else document))
                progress.advance(bar, len(group))
        if not seen["documents"]:
            raise ValueError(f"expected text in {config.data}, got none or white space alone; nothing was written")

    out = write(rows())
    num_tokens, bits = used.num_tokens, used.bits_per_token()
    report(
        "encoded",
        [
            ("data", config.data),
            ("documents", f"{seen['documents']:,}"),
            ("tokens", f"{num_tokens:,}"),
            ("bits per token", f"{bits:.2f}"),
            ("bits per character", f"{bits * num_tokens / seen['characters']:.3f}"),
        ],
        {"tokens": out},
    )


def decode(tokenizer: TextTokenizer, config: Any, device: torch.device) -> None:
    """Decode tokens to a file of texts, see :func:`gritvq.cli.tokens.decode_arguments`."""
    from rich.progress import Progress

    from gritvq.files import replacing
    from gritvq.tokens import iter_tokens

    out = text_place(config.out or "decoded.jsonl", (".jsonl", ".txt"), config.overwrite)
    own, total = tokenizer.fingerprint(), 0
    for row in iter_tokens(config.tokens):  # check all tokens before anything is written
        check_tokens(tokenizer, row, own)
        total += 1
    tokenizer = tokenizer.fold().to(device)  # codes made once
    parted = 0
    with (
        replacing(out) as scratch,
        scratch.open("w", encoding="utf-8") as file,
        Progress(console=console(), transient=True) as progress,
    ):
        bar = progress.add_task("decoding", total=total)
        for group in _groups(iter_tokens(config.tokens), _AT_ONCE):
            for row, text in zip(group, tokenizer.decode([row.tokens for row in group]), strict=True):
                if out.suffix == ".jsonl":
                    file.write(json.dumps({"name": row.name, "text": text}, ensure_ascii=False) + "\n")
                else:
                    text = text.strip("\n")
                    file.write(text + "\n\n")
                    parted += any(not line.strip() for line in text.split("\n"))
            progress.advance(bar, len(group))
    if parted:
        warnings.warn(
            f"{parted:,} texts are empty or have an empty line within, which looks like an end in {out}; .jsonl keeps "
            "texts apart",
            stacklevel=1,
        )
    report("decoded", [("texts", f"{total:,}")], {"texts": out})


def generate(config: Any, run: RunFolder) -> None:
    """Write texts, see :func:`gritvq.cli.generate.generate_arguments`."""
    from rich.progress import Progress

    from gritvq.priors.sampling import sample_seeds
    from gritvq.text import TextBatch, TraceModel, Writing

    out = text_place(config.out or "samples.jsonl", (".jsonl", ".md"), config.overwrite)
    settings = {name: config[name] for name in ("temperature", "top_k", "top_p", "beam")}
    if config.beam > 1 and settings != {"temperature": 1.0, "top_k": None, "top_p": None, "beam": config.beam}:
        raise ValueError(
            f"expected --beam or settings of drawing, got both; leave out --beam {config.beam}, or --temperature, "
            "--top_k and --top_p"
        )
    Writing(**settings)
    sample_seeds(config.seed, 1)
    device = device_named(config.device)
    model = TraceModel.from_pretrained(run.text_model, config.trusted)
    form = model.format
    if form is None:
        raise ValueError(f"expected a model with a vocabulary in {run.text_model}, got one without; train one")
    limits = {name: getattr(form.segmentation, name) for name in ("max_tokens", "max_segments")}
    prompt = None if config.prompt is None else _prompt(form, config.prompt).to(device)
    model, texts = model.to(device), list[str]()
    with Progress(console=console(), transient=True) as progress:
        bar = progress.add_task("generating", total=config.num)
        for start in range(0, config.num, config.batch_size):
            count = min(config.batch_size, config.num - start)
            prompts = None if prompt is None else TextBatch(*(part.repeat(count, 1) for part in prompt))
            writing = Writing(**settings, **limits, seeds=sample_seeds(config.seed, count, first=start))
            texts += form.texts(model.generate(count, prompts=prompts, writing=writing))
            progress.advance(bar, count)
    sampling = {**settings, "seed": config.seed} if config.beam == 1 else {"beam": config.beam, "seed": config.seed}
    title = "Texts" if prompt is None else f"Texts from {json.dumps(config.prompt)} on"
    more = {} if config.prompt is None else {"prompt": config.prompt}
    write_texts(out, title, texts, sampling, [more] * len(texts))


def write_texts(
    out: Path, title: str, texts: Sequence[str], sampling: Mapping[str, Any], more: Sequence[Mapping[str, Any]]
) -> None:
    """Write generated texts, a line or a place on a page for each, and report.

    Args:
        out: ``.jsonl`` or ``.md``.
        title: Of the page.
        texts: The texts.
        sampling: How they were drawn; None is no setting.
        more: What else the line of each text says.
    """
    from gritvq.files import replacing

    said = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in sampling.items() if value is not None)
    if out.suffix == ".md":
        write_page(out, {f"{title} ({said})": texts})
    else:
        with replacing(out) as scratch, scratch.open("w", encoding="utf-8") as file:
            for number, (text, own) in enumerate(zip(texts, more, strict=True)):
                row = {"number": number, "text": text, **own, "sampling": sampling}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    rows = [("texts", f"{len(texts):,}"), ("different ones", f"{len(set(texts)):,}"), ("sampling", said)]
    report("generated", rows, {"texts": out})


def _groups(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(itertools.islice(items, size)):
        yield group


def text_place(path: str, endings: Sequence[str], overwrite: bool) -> Path:
    """A file that may be written.

    Raises:
        ValueError: If its name has another ending, or something is there.
    """
    out = Path(path)
    if out.suffix not in endings:
        raise ValueError(f"expected a file name ending in {' or '.join(endings)} for texts, got {path!r}; rename it")
    check_places(out.parent, [out.name], overwrite)
    return out


def check_tokens(tokenizer: TextTokenizer, row: TokenRow, fingerprint: str) -> None:
    """Raises a ValueError unless a row has indices of segments, and they are this tokenizer's."""
    from gritvq.quantizers.functional import check_indices

    made_by = row.columns.get("tokenizer", fingerprint)
    if made_by != fingerprint:
        raise ValueError(
            f"expected tokens of this tokenizer, fingerprint {fingerprint[:12]}, got {row.name} of another, "
            f"{str(made_by)[:12]}; give the tokenizer that made them"
        )
    sizes = tokenizer.quantizer.codebook_sizes
    if row.tokens.ndim != 2 or row.tokens.shape[1] != len(sizes) or bool((row.tokens < 0).any()):
        raise ValueError(
            f"expected indices (T, {len(sizes)}) of a text, none below 0, got {tuple(row.tokens.shape)} under "
            f"{row.name}; use tokens of texts"
        )
    check_indices(row.tokens, sizes, f"{row.name} was made with another tokenizer")


def _prompt(form: TextFormat, prompt: str) -> TextBatch:
    """A prompt as a batch of one document.

    Raises:
        ValueError: If it is blank, or so long that no sentence is left to write.
    """
    rows, most = next(form.tokens([prompt])), form.segmentation.max_segments
    if not rows:
        raise ValueError(f"expected a prompt with text, got {prompt!r}; leave it out to start from nothing")
    batch = form.batch_of(rows)
    count = int(batch.num_segments.sum())
    if count >= most:
        raise ValueError(
            f"expected a prompt of fewer than {most} segments of at most {form.segmentation.max_tokens} tokens, so "
            f"that one is left to write, got {count}; shorten it"
        )
    return batch


def write_page(path: Path, sections: Mapping[str, Sequence[str]]) -> None:
    """A Markdown page of texts, each as it is."""
    from gritvq.files import replacing

    parts = []
    for title, texts in sections.items():
        parts.append(f"## {title}\n")
        for number, text in enumerate(texts, 1):
            indented = "\n".join(f"    {line}" for line in text.splitlines()) or "    (empty)"
            parts.append(f"{number}.\n\n{indented}\n")
    with replacing(path) as scratch:
        scratch.write_text("\n".join(parts), encoding="utf-8")
