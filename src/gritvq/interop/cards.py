"""Model cards: what an artifact is, what it was trained on, and how to load it, as far as its files say so."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.component import to_config
from gritvq.images.tokenizer import ImageTokenizer
from gritvq.interop.artifacts import Artifact, Shareable, modules_of, opened
from gritvq.items.tokenizers import ItemTokenizer
from gritvq.quantizers import presets
from gritvq.text.tokenizer import TextTokenizer

__all__ = ["model_card"]

UNKNOWN, PLOTS, _NOT_SAID = "unknown", "plots", "not said"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
Rows = list[tuple[str, str]]

_WHAT = {
    "image tokenizer": "It turns pictures into discrete tokens, and tokens into pictures.",
    "text tokenizer": "It turns texts into discrete tokens, some for each segment, and tokens into texts.",
    "item tokenizer": "It turns embeddings of items into tuples of indices, and these into embeddings.",
    "tokenizer": "It turns data into discrete tokens and back.",
    "semantic ids": "A tuple of indices for each item of a catalogue.",
    "recommender": "It predicts the semantic id of a user's next item from the ids of earlier ones.",
    "prior": "A generative model of the discrete tokens of a tokenizer.",
    "text model": "A generative model of text.",
}
_EXTRAS = {"item tokenizer": "", "semantic ids": "items", "recommender": "items", "prior": "priors"}
_EXTRAS |= {"text tokenizer": "text", "text model": "text"}
_PIPELINES = {
    "image tokenizer": "image-feature-extraction",
    "text tokenizer": "feature-extraction",
    "text model": "text-generation",
}
_CAPTIONS = {
    "reconstructions": "Held-out originals above their reconstructions",
    "usage": "How often each code is used",
    "codebook": "The codes",
    "samples": "Generated samples",
    "collisions": "Items with equal indices",
    "tree": "The tree of the ids",
}


def model_card(
    source: Shareable | str | Path,
    repo_id: str = "owner/name",
    *,
    license: str | None = None,
    metrics: Mapping[str, Any] | str | Path | None = None,
    run: str | Path | None = None,
    datasets: Sequence[str] = (),
    revision: str | None = None,
    trusted: Iterable[str] = (),
) -> str:
    """A model card for the Hugging Face Hub: YAML front matter and Markdown. Equal input gives equal text.

    It says what the artifact's files say, and "not said" where they say nothing. Of a run it shows the metrics and
    plots, the latter as ``plots/NAME.png``, where :func:`push_to_hub` puts them.

    Args:
        source: A tokenizer, prior, recommender, model of text or semantic ids; its folder; or the folder of its run.
        repo_id: Name on the Hub, ``"owner/name"``, for title and example.
        license: Identifier as the Hub has it, such as ``"mit"``; the card says ``unknown`` if None.
        metrics: Numbers by name, or a JSON file with them; those of the run if None.
        run: The run that wrote the artifact; not needed if ``source`` is its folder.
        datasets: Names of data sets on the Hub that it was trained on.
        revision: Revision in the example.
        trusted: Modules besides ``gritvq`` that its classes may come from.

    Raises:
        ValueError: If there is no artifact, it is damaged, the run wrote another one, or a name is malformed.

    Example:
        >>> from gritvq import fsq
        >>> from gritvq.images import ImageDecoder, ImageEncoder
        >>> tokenizer = ImageTokenizer(ImageEncoder(4, width=8), fsq(4, 16), ImageDecoder(4, width=8))
        >>> model_card(tokenizer, "somebody/small", license="mit").splitlines()[1:4]
        ['library_name: gritvq', 'license: mit', 'pipeline_tag: image-feature-extraction']
    """
    with opened(source, run, trusted) as artifact:
        return card_of(artifact, repo_id, license, metrics, datasets, revision)


def card_of(
    artifact: Artifact,
    repo_id: str,
    license: str | None,
    metrics: Mapping[str, Any] | str | Path | None,
    datasets: Sequence[str],
    revision: str | None,
) -> str:
    """See :func:`model_card`."""
    check_repo_id(repo_id)
    check_revision(revision)
    check_license(license)
    for name in datasets:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise ValueError(f"expected names of data sets on the Hub like 'owner/name', got {name!r}; correct it")
    kind = _kind_of(artifact)
    config = None if artifact.kind == "semantic_ids" else artifact.config[artifact.kind]
    modules = modules_of(config)
    sections = [
        ("What it is", _table(_facts(artifact, kind))),
        ("Training", _table(_training(artifact))),
        ("Numbers", _numbers(artifact, metrics)),
        ("Plots", _shown_plots(artifact)),
        ("Use", _use(artifact, kind, repo_id, revision, modules)),
        ("License", _license(license)),
        ("Fingerprint", _table(_fingerprint(artifact))),
    ]
    title = f"# {repo_id.rpartition('/')[2]}\n\n{kind[0].upper()}{kind[1:]} of `gritvq`. {_WHAT[kind]}\n"
    body = "".join(f"\n## {name}\n\n{content}\n" for name, content in sections if content)
    return f"{_front_matter(kind, license, datasets)}\n{title}{body}"


def check_license(license: str | None) -> None:
    """Raises a ValueError if an identifier of a license is malformed; the Hub knows which there are."""
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"expected the identifier of a license as the Hub has it, such as 'mit' or 'apache-2.0', got {license!r}; "
            "leave it out if it is unknown"
        )


def check_repo_id(repo_id: str) -> None:
    """Raises a ValueError if a name cannot be one of a repository on the Hub.

    Example:
        >>> check_repo_id("owner/my-tokenizer")
    """
    good = isinstance(repo_id, str) and len(repo_id) <= 96 and re.fullmatch(f"{_PART}/{_PART}", repo_id)
    if not good or "--" in repo_id or ".." in repo_id or repo_id.endswith(".git"):
        raise ValueError(
            f"expected a name 'owner/name' for the Hub, of letters, digits, '-', '_' and '.', got {repo_id!r}; choose "
            "another one"
        )


def check_revision(revision: str | None) -> None:
    """Raises a ValueError if this cannot be the name of a branch."""
    if revision is not None and (not re.fullmatch(r"[\w.-][\w./-]*", revision) or ".." in revision):
        raise ValueError(f"expected the name of a branch, got {revision!r}; use letters, digits, '-', '_' and '.'")


def plots_of(artifact: Artifact) -> list[Path]:
    """Plots that the artifact's run has written."""
    return [] if artifact.run is None else [path for path in artifact.run.plots if path.is_file()]


# --- sections ---------------------------------------------------------------------------------------------------------


def _kind_of(artifact: Artifact) -> str:
    """The kind in words."""
    if artifact.kind == "tokenizer":
        classes = {"image": ImageTokenizer, "text": TextTokenizer, "item": ItemTokenizer}
        found = [name for name, cls in classes.items() if isinstance(artifact.loaded, cls)]
        return f"{found[0]} tokenizer" if found else "tokenizer"
    return artifact.kind.replace("_", " ")


def _front_matter(kind: str, license: str | None, datasets: Sequence[str]) -> str:
    lines = ["---", "library_name: gritvq", f"license: {license or UNKNOWN}"]
    lines += [f"pipeline_tag: {_PIPELINES[kind]}"] if kind in _PIPELINES else []
    tags = ["gritvq", *([] if kind == "text model" else ["vector-quantization"]), kind.replace(" ", "-")]
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    lines += ["datasets:", *(f"- {json.dumps(name)}" for name in datasets)] if datasets else []
    return "\n".join([*lines, "---", ""])


def _facts(artifact: Artifact, kind: str) -> Rows:
    """Class, parts, codebooks and sizes."""
    loaded = artifact.loaded
    rows: Rows = [("kind", kind), *_presets(artifact)]
    if artifact.kind == "semantic_ids":
        rows += [("items", f"{len(loaded):,}"), *_codes(loaded.codebook_sizes), ("collisions", loaded.collisions)]
        return [*rows, ("distinct ids", f"{len(loaded.prefixes[-1].counts):,}")]
    described = loaded.backbone if artifact.kind == "recommender" else loaded
    rows += [("class", _code("gritvq.items.GenerativeRecommender"))] if described is not loaded else []
    rows += _parts("backbone" if described is not loaded else "class", to_config(described))
    if isinstance(loaded, ImageTokenizer):
        layout = loaded.quantizer.layout
        size = f"grids of {' x '.join(map(str, layout))} tokens" if layout else "any height and width"
        rows += _codes(loaded.quantizer.codebook_sizes)
        rows += [("input", f"pictures of {loaded.channels} channels, {size}")]
        rows += [("pixels per token and side", str(loaded.factor))]
    elif isinstance(loaded, TextTokenizer):
        rows += [*_codes(loaded.quantizer.codebook_sizes), *_text(loaded.vocab_size, loaded.format)]
    elif isinstance(loaded, ItemTokenizer):
        rows += [*_codes(loaded.codebook_sizes), ("input", f"embeddings of {loaded.dim:,} components")]
    elif artifact.kind == "recommender":
        rows += [("items", f"{loaded.num_items:,}"), *_codes(loaded.ids.codebook_sizes)]
        rows += [("items of a history that are read", f"{loaded.max_history:,}"), ("beam", f"{loaded.beam:,}")]
    elif artifact.kind == "prior":
        shape = " x ".join(map(str, loaded.layout.shape))
        rows += [*_codes(loaded.layout.vocabulary.codebook_sizes), ("shape of a sample", f"{shape} positions")]
        rows += [("classes", "none" if loaded.num_classes is None else f"{loaded.num_classes:,}")]
    elif artifact.kind == "text_model":
        rows += _text(loaded.vocab_size, loaded.format)
        rows += [("latent per segment", "none" if loaded.latents is None else f"{loaded.latents.dim} components")]
    parameters = sum(each.numel() for each in loaded.parameters())
    return [*rows, *([("parameters", f"{parameters:,}")] if parameters else [])]


def _presets(artifact: Artifact) -> Rows:
    """The presets that the configuration of a tokenizer's run names; the artifact itself names classes."""
    run = artifact.run
    if artifact.kind != "tokenizer" or run is None or not run.config.is_file():
        return []
    named = re.findall(r"class_path: gritvq\.(?:\w+\.)*(\w+)", run.config.read_text(encoding="utf-8"))
    return [("preset", ", ".join(map(_code, found)))] if (found := sorted({*named} & {*presets.__all__})) else []


def _codes(sizes: Sequence[int]) -> Rows:
    return [("codebook sizes", ", ".join(f"{size:,}" for size in sizes))]


def _text(vocab_size: int, form: Any) -> Rows:
    rows = [("tokens of the vocabulary", f"{vocab_size:,}")]
    if form is None:
        return rows
    cut = form.segmentation
    said = f"by {cut.by}, at most {cut.max_tokens:,} tokens each, at most {cut.max_segments:,} in a part of a document"
    return [*rows, ("segments", said)]


def _parts(name: str, description: Mapping[str, Any], depth: int = 2) -> Rows:
    """Classes of a component and of the components inside, by the names of the arguments."""
    rows = [(name, _code(description["class_path"]))]
    if not depth:
        return rows
    for argument, value in description["init_args"].items():
        inner = argument if name in ("class", "backbone") else f"{name}.{argument}"
        if isinstance(value, dict) and "class_path" in value:
            rows += _parts(inner, value, depth - 1)
        elif isinstance(value, list) and value and all(isinstance(one, dict) and "class_path" in one for one in value):
            counts = Counter(one["class_path"] for one in value)
            rows += [(inner, ", ".join(f"{count} x {_code(path)}" for path, count in counts.items()))]
    return rows


def _training(artifact: Artifact) -> Rows:
    """What the artifact and ``data.json`` of its run say of data and training."""
    if artifact.kind == "semantic_ids":
        made = dict(artifact.config["fingerprint"])
        made.pop("quantizer", None)
        return [*made.items()] or [("made of", _NOT_SAID)]
    told = artifact.config.get("training")
    told = told if isinstance(told, Mapping) else {}
    data = told.get("data")
    beside = _json_of(artifact.run.data) if artifact.run is not None and artifact.run.data.is_file() else {}
    data = data if isinstance(data, Mapping) else beside
    rows: Rows = [("data", _data_name(data.get("path", data.get("data"))))]
    splits = data.get("splits")
    for name, content in splits.items() if isinstance(splits, Mapping) else ():
        parts = content.items() if isinstance(content, Mapping) else [("", content)]
        said = [f"{_value(part)} {key}" if isinstance(part, int) else f"{key} {part}" for key, part in parts]
        rows += [(f"split {name}", ", ".join(said))]
    if not isinstance(splits, Mapping):
        rows += [("splits", _NOT_SAID)]
    rows += [(key, _value(beside[key])) for key in ("rows",) if key in beside]
    for key in ("height", "width"):
        rows += [(f"{key} of the pictures", _value(told[key]))] if key in told else []
    if isinstance(told.get("classes"), list):
        some = ", ".join(map(str, told["classes"][:10]))
        rows += [("names of the classes", some + (", ..." if told["classes"][10:] else ""))]
    rows += [("weights", str(told["weights"]))] if "weights" in told else []
    for key, name in (("steps", "steps"), ("seed", "seed"), ("version", "version of gritvq")):
        value = told.get(key)
        rows += [(name, str(value) if key == "seed" and value is not None else _value(value))]
    return rows


def _data_name(path: Any) -> str:
    """The name of the data; of a place on somebody's machine only its last part."""
    if not isinstance(path, str) or not path:
        return _NOT_SAID
    return Path(path).name if Path(path).is_absolute() or path.startswith(("~", ".")) else path


def _numbers(artifact: Artifact, metrics: Mapping[str, Any] | str | Path | None) -> str:
    """Metrics, in their own order."""
    said = ""
    if metrics is None and artifact.run is not None:
        places = {artifact.run.metrics: "on its held-out data", artifact.run.report: "for the ids of its catalogue"}
        metrics = next((place for place in places if place.is_file()), None)
        said = f"`{metrics.name}` of the run, {places[metrics]}:\n\n" if metrics is not None else ""
    if metrics is None:
        return f"{_NOT_SAID.capitalize()}."
    found = metrics if isinstance(metrics, Mapping) else _json_of(Path(metrics))
    rows = [(name, "undefined" if value is None else _value(value)) for name, value in _flat(found).items()]
    return said + (_table(rows) if rows else f"{_NOT_SAID.capitalize()}.")


def _flat(numbers: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in numbers.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _shown_plots(artifact: Artifact) -> str:
    shown = []
    for path in plots_of(artifact):
        said = _CAPTIONS.get(path.stem, path.stem)
        shown.append(f"![{said}]({PLOTS}/{path.name})\n\n{said}.")
    return "\n\n".join(shown)


def _license(license: str | None) -> str:
    if license is None:
        return "Unknown: none was given."
    return f"`{license}`"


def _fingerprint(artifact: Artifact) -> Rows:
    rows: Rows = []
    if artifact.kind == "tokenizer":
        rows += [("fingerprint", _code(artifact.loaded.fingerprint()))]
    elif artifact.kind == "prior":
        made_for = artifact.loaded.fingerprint
        rows += [("fingerprint of its tokenizer", _NOT_SAID if made_for is None else _code(made_for))]
    elif artifact.kind == "recommender":
        rows += [("SHA-256 of its ids", _code(artifact.loaded.ids_digest))]
    elif artifact.kind == "semantic_ids":
        made = artifact.config["fingerprint"].get("quantizer")
        rows += [("fingerprint of their tokenizer", _NOT_SAID if made is None else _code(made))]
    name = "ids.parquet" if artifact.kind == "semantic_ids" else "model.safetensors"
    return [*rows, (f"SHA-256 of {name}", _code(artifact.checksum()))]


def _use(artifact: Artifact, kind: str, repo_id: str, revision: str | None, modules: Sequence[str]) -> str:
    """How to load it: a code block that runs."""
    given = [f'"{repo_id}"']
    given += [f'revision="{revision}"'] if revision else []
    given += [f"trusted={json.dumps(list(modules))}"] if modules else []
    imports, lines = _example(artifact, kind, ", ".join(given))
    extras = ",".join(filter(None, ("hub", _EXTRAS.get(kind, ""))))
    needed = f"`pip install 'gritvq[{extras}]'`"
    if modules:
        needed += f"; its classes come from {', '.join(map(_code, modules))} too, which must be installed"
    return f"{needed}\n\n```python\n{imports}\n\n" + "\n".join(lines) + "\n```"


def _example(artifact: Artifact, kind: str, given: str) -> tuple[str, list[str]]:
    """Imports and lines."""
    loaded = artifact.loaded
    if kind.endswith("tokenizer"):
        load = [f"tokenizer = Tokenizer.from_pretrained({given})"]
        round_trip = ["tokens = tokenizer.encode(data)", "decoded = tokenizer.decode(tokens)"]
        imports = "from gritvq import Tokenizer"
        if isinstance(loaded, ImageTokenizer):
            height, width = (side * loaded.factor for side in (8, 8, *loaded.quantizer.layout)[-2:])
            made = f"data = torch.rand(2, {loaded.channels}, {height}, {width})  # pictures in [0, 1]"
            return f"import torch\n\n{imports}", [*load, made, *round_trip]
        if isinstance(loaded, ItemTokenizer):
            made = f"data = torch.randn(4, {loaded.dim})  # embeddings of items"
            return f"import torch\n\n{imports}", [*load, made, *round_trip]
        if isinstance(loaded, TextTokenizer) and loaded.format is not None:
            return imports, [*load, 'data = "A first sentence. And a second one."', *round_trip]
        return imports, load
    if kind == "semantic ids":
        lines = ["codes = ids.ids_of(ids.items[:2])", "items = ids.items_of(codes)"]
        return "from gritvq.items import SemanticIds", [f"ids = SemanticIds.from_pretrained({given})", *lines]
    if kind == "recommender":
        lines = [
            f"recommender = GenerativeRecommender.from_pretrained({given})",
            "history = recommender.ids.rows_of(recommender.ids.items[:1])  # rows of the items that a user had",
            "rows = recommender.recommend([history.tolist()], k=5)[0]",
            "items = [recommender.ids.items[row] for row in rows.tolist() if row >= 0]",
        ]
        return "from gritvq.items import GenerativeRecommender", lines
    if kind == "prior":
        wanted = "2" if loaded.num_classes is None else "2, 0"
        lines = [f"prior = Prior.from_pretrained({given})", f"tokens = prior.sample({wanted}, generator=0)"]
        lines[1] += "  # for the decode of its tokenizer" + ("" if loaded.num_classes is None else "; of class 0")
        return "from gritvq.priors import Prior", lines
    lines = [f"model = TraceModel.from_pretrained({given})"]
    if loaded.format is None:
        return "from gritvq.text import TraceModel", lines
    lines += ["texts = model.format.texts(model.generate(2, writing=Writing(seeds=0)))"]
    return "from gritvq.text import TraceModel, Writing", lines


# --- text -------------------------------------------------------------------------------------------------------------


def _table(rows: Rows) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(text: str) -> str:
    """Text in one cell of a table: no line breaks, no bars, no HTML."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", str(text)).strip()
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{text}`"


def _value(value: Any) -> str:
    if value is None:
        return _NOT_SAID
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{int(value):,}" if isinstance(value, int) or value.is_integer() else f"{value:.6g}"


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"expected readable JSON in {path}, got none ({error}); write it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected values by name in {path}, got {type(content).__name__}; write it again")
    return content
