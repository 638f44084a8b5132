"""The jobs of ``validate``, ``inspect``, ``export``, ``encode``, ``decode`` and ``generate`` for texts."""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.machine import device_named
from gritvq.cli.output import console, report
from gritvq.cli.run_folder import check_places, own_data
from gritvq.cli.tokens import token_rows, warn_of_tokens
from gritvq.training.run_folder import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gritvq.bulk import TextWork
    from gritvq.text import TextBatch, TextFormat, TextTokenizer
    from gritvq.text.corpus import Document
    from gritvq.tokens import TokenRow

__all__ = [
    "check_tokens",
    "codes_page",
    "decode",
    "encoded",
    "export",
    "generate",
    "inspect",
    "latents",
    "text_place",
    "validate",
    "work",
    "write_page",
    "write_texts",
]

_AT_ONCE = 64  # texts that are decoded together
_SHOWN, _CODES, _OF_EACH = 6, 24, 5  # documents on a page; codes on one, and segments of each


def validate(tokenizer: TextTokenizer, parser: Any, config: Any) -> None:
    """Evaluate a tokenizer on whole documents, see :func:`gritvq.cli.measure.measure_arguments`."""
    _, rows, run = _measure(tokenizer, config)
    report(config.tokenizer, rows, {"texts": run.texts, "usage": run.usage, "numbers": run.metrics})


def inspect(tokenizer: TextTokenizer, parser: Any, config: Any) -> None:
    """Also write what the codes stand for."""
    from gritvq.images.networks import num_parameters
    from gritvq.quantizers.functional import effective_rank
    from gritvq.quantizers.metrics import decoded_codes

    quantizer = tokenizer.quantizer
    seen, rows, run = _measure(tokenizer, config, RunFolder(config.out).codes.name)
    _write_codes(tokenizer, seen, run.codes)
    report(
        config.tokenizer,
        [
            ("codes x dimensions", f"{sum(quantizer.codebook_sizes):,} x {quantizer.dim}"),
            ("parameters", f"{num_parameters(tokenizer):,}"),
            ("effective rank of the codes", f"{effective_rank(decoded_codes(quantizer)):.1f} of {quantizer.dim}"),
            *rows,
        ],
        {"codes": run.codes, "texts": run.texts, "usage": run.usage},
    )


def export(tokenizer: TextTokenizer, config: Any) -> None:
    """Export the encoder, see :func:`gritvq.cli.measure.export_arguments`."""
    from gritvq.text.evaluation import compare_program

    check_places(Path(config.out), [f"encoder.{'onnx' if config.format == 'onnx' else 'pt2'}"], config.overwrite)
    warn_of_tokens(tokenizer.quantizer)
    encoder = tokenizer.export(config.out, config.format)
    identical = compare_program(tokenizer, encoder)
    said = f"{int(identical.sum()):,} of {identical.numel():,}"
    report("exported", [("identical indices of random documents", said)], {"encoder": encoder})


def latents(tokenizer: TextTokenizer, config: Any, source: str, settings: Any) -> tuple[Tensor, str, float]:
    """Latents (N, D) of the segments of documents, where they come from, and how many a row of a batch has.

    Args:
        tokenizer: On its device, in eval mode.
        config: See :func:`gritvq.cli.doctor.doctor_arguments`.
        source: The tokenizer's folder.
        settings: Not needed: a tokenizer of texts says what it was trained on.

    Raises:
        ValueError: If the data is not there, or has no document.
    """
    import torch

    form = tokenizer.format
    if form is None:
        raise ValueError(f"expected a tokenizer with a vocabulary in {source}, got one without; train one")
    documents, about, _ = _documents_to_measure(tokenizer, config, source)
    chosen = list(itertools.islice(documents, config.num_images))
    device = next(tokenizer.parameters()).device
    rows = [row for own in form.tokens(chosen) for row in own]
    found = [tokenizer.latents(form.batch_of(group).to(device)) for group in _groups(iter(rows), config.batch_size)]
    if not found:
        raise ValueError(f"expected at least one document in {about['data']}, got none; give others with --data.path")
    values = torch.cat(found)
    return values, f"{len(chosen):,} documents of {about['data']}", len(values) / len(rows)


class _Seen:
    """Segments by the code of their first channel."""

    def __init__(self, form: TextFormat) -> None:
        self.form, self.counts, self.segments = form, Counter[int](), dict[int, list[str]]()

    def add(self, batch: TextBatch, indices: Tensor) -> None:
        """Note the segments of a batch, of indices (B, T, Q)."""
        rows = zip(batch.tokens.tolist(), batch.segments.tolist(), indices[..., 0].tolist(), strict=True)
        for tokens, segments, codes in rows:
            for number, code in enumerate(codes[: max(segments) + 1]):
                self.counts[code] += 1
                kept = self.segments.setdefault(code, [])
                if len(kept) < _OF_EACH:
                    own = [token for token, segment in zip(tokens, segments, strict=True) if segment == number]
                    kept.append(self.form.text(own))


def _measure(tokenizer: TextTokenizer, config: Any, *more: str) -> tuple[_Seen, list[tuple[str, str]], RunFolder]:
    """Evaluate a tokenizer: segments by code, rows for a table, and the folder of plots and pages."""
    from gritvq.files import write_json
    from gritvq.images.plots import usage_plot
    from gritvq.quantizers.metrics import CodebookUsage
    from gritvq.text.evaluation import evaluate_text

    run = RunFolder(config.out)
    check_places(run.path, [*(path.name for path in (run.metrics, run.texts, run.usage)), *more], config.overwrite)
    form = tokenizer.format
    if form is None:
        raise ValueError(f"expected a tokenizer with a vocabulary in {config.tokenizer}, got one without; train one")
    device = device_named(config.device)
    documents, about, tokens = _documents_to_measure(tokenizer, config, config.tokenizer)
    tokenizer = tokenizer.fold().to(device)  # codes made once
    used, seen = CodebookUsage(tokenizer.quantizer.codebook_sizes), _Seen(form)
    shown: list[Document] = []
    characters = 0

    def batches() -> Iterator[TextBatch]:
        nonlocal characters
        for group in _progress(documents, config.batch_size, "measuring"):
            shown.extend(group[: _SHOWN - len(shown)])
            characters += sum(map(_length, group))
            for rows in _groups((row for own in form.tokens(group) for row in own), config.batch_size):
                batch = form.batch_of(rows).to(device)
                indices = tokenizer.quantizer.encode(tokenizer.encoder(batch), batch.present).cpu()
                used.update(indices)
                seen.add(batch, indices)
                yield batch
        if not shown:
            raise ValueError(f"expected text in {about['data']}, got none or white space alone; nothing was written")

    found = evaluate_text(tokenizer, batches())
    if tokens not in (None, found.num_tokens):
        raise ValueError(
            f"expected the {tokens:,} tokens of the documents that {config.tokenizer} was trained without, got "
            f"{found.num_tokens:,}: {about['data']} has changed; give others with --data.path"
        )
    per_character = found.values["bits_per_segment"] * found.num_segments / characters
    numbers = {**found.values, "bits_per_character": per_character, **found.counts(), "characters": characters}
    usage_plot(used.histograms()[0], run.usage)
    codes_page(tokenizer, shown, run.texts)
    write_json(run.metrics, {**numbers, **about})
    return seen, [*about.items(), *found.rows(), ("bits per character", f"{per_character:.3f}")], run


def _documents_to_measure(
    tokenizer: TextTokenizer, config: Any, source: str
) -> tuple[Iterator[Document], dict[str, str], int | None]:
    """Documents, ``data`` and ``split`` for the report, and how many tokens they have if it is known."""
    from gritvq.text import Corpus, Reading, TextData

    given = config.data
    if given.path is not None:
        reading = Reading(column=given.column or "text", unit=given.unit, encoding=given.encoding)
        return iter(Corpus(given.path, reading)), {"data": given.path, "split": "all"}, None
    settings = own_data(tokenizer, source)
    try:
        names = ("path", "validation", "num_validation", "seed")
        data = TextData(**{name: settings[name] for name in names}, reading=Reading(**settings["reading"]))
        tokens = settings["splits"]["validation"]["tokens"] if "splits" in settings else None
        about = {"data": data.path, "split": "held out by the tokenizer's own run"}
        return data.held_out(), about, tokens
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected the held-out documents of the data that {source} was trained on, got none ({error}); "
            "give others with --data.path"
        ) from error


def codes_page(tokenizer: TextTokenizer, documents: Sequence[Document], path: Path) -> None:
    """Documents, their codes, and what these are read as."""
    tokens = tokenizer.encode(list(documents))
    lines = []
    for document, own, again in zip(documents, tokens, tokenizer.decode(tokens), strict=True):
        text = document if isinstance(document, str) else "\n".join(document)
        lines += [text, f"codes {own.tolist()}", again]
    write_page(path, {"Texts, their codes, and what these are read as (most probable tokens)": lines})


def _write_codes(tokenizer: TextTokenizer, seen: _Seen, path: Path) -> None:
    """A page of the most frequent codes: what each is read as alone, and segments that have it."""
    import torch

    chosen = sorted(seen.counts, key=lambda code: (-seen.counts[code], code))[:_CODES]
    tokens = torch.zeros(len(chosen), 1, len(tokenizer.quantizer.codebook_sizes), dtype=torch.int64)
    tokens[:, 0, 0] = torch.tensor(chosen)
    alone = "alone" if tokens.shape[2] == 1 else "with 0 in the other channels"
    write_page(
        path,
        {
            f"Code {code}, {seen.counts[code]:,} segments: what it is read as {alone}, then the first segments": [
                text,
                *seen.segments[code],
            ]
            for code, text in zip(chosen, tokenizer.decode(list(tokens)), strict=True)
        },
    )


def work(tokenizer: TextTokenizer, config: Any) -> TextWork:
    """Documents to encode as tokens, see :func:`gritvq.cli.tokens.encode_arguments`."""
    from gritvq.bulk import TextWork
    from gritvq.text import Corpus, Reading

    reading = Reading(column=config.column or "text", unit=config.unit, encoding=config.encoding)
    return TextWork(tokenizer, Corpus(config.data, reading), config.batch_size)


def encoded(config: Any, work: TextWork, counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """What was encoded, for the report."""
    from gritvq.bulk import bits_per_token

    bits = bits_per_token(counts, work.tokenizer.quantizer.codebook_sizes)
    return [
        ("documents", f"{counts['samples']:,}"),
        ("tokens", f"{counts['positions']:,}"),
        ("bits per token", f"{bits:.2f}"),
        ("bits per character", f"{bits * counts['positions'] / counts['characters']:.3f}"),
    ]


def decode(tokenizer: TextTokenizer, config: Any, device: torch.device) -> None:
    """Decode tokens to a file of texts, see :func:`gritvq.cli.tokens.decode_arguments`."""
    from rich.progress import Progress

    from gritvq.files import replacing

    out = text_place(config.out or "decoded.jsonl", (".jsonl", ".txt"), config.overwrite)
    own, total = tokenizer.fingerprint(), 0
    for row in token_rows(config.tokens):  # check all tokens before anything is written
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
        for group in _groups(token_rows(config.tokens), _AT_ONCE):
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
    prompt = None if config.prompt is None else _prompt(form, config.prompt).to(device)
    model, texts = model.to(device), list[str]()
    with Progress(console=console(), transient=True) as progress:
        bar = progress.add_task("generating", total=config.num)
        for start in range(0, config.num, config.batch_size):
            count = min(config.batch_size, config.num - start)
            prompts = None if prompt is None else TextBatch(*(part.repeat(count, 1) for part in prompt))
            writing = Writing(**settings, seeds=sample_seeds(config.seed, count, first=start))
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


def _progress(items: Iterator[Any], size: int, doing: str) -> Iterator[list[Any]]:
    """Groups, with their number on stderr."""
    from rich.progress import Progress

    with Progress(console=console(), transient=True) as progress:
        bar = progress.add_task(doing, total=None)
        for group in _groups(items, size):
            yield group
            progress.advance(bar, len(group))


def _length(document: Document) -> int:
    """Characters of a document."""
    return sum(map(len, [document] if isinstance(document, str) else document))


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
        ValueError: If it is blank, or so long that no sentence is left to write, or has bytes that are no text.
    """
    from gritvq.text.subwords import encodable

    if encodable(prompt) != prompt:
        raise ValueError(f"expected a prompt of characters, got {prompt!r}, with bytes that are none; correct it")
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
    from gritvq.text.subwords import encodable

    parts = []
    for title, texts in sections.items():
        parts.append(f"## {title}\n")
        for number, text in enumerate(texts, 1):
            indented = "\n".join(f"    {line}" for line in text.splitlines()) or "    (empty)"
            parts.append(f"{number}.\n\n{indented}\n")
    with replacing(path) as scratch:
        scratch.write_text(encodable("\n".join(parts)), encoding="utf-8")
