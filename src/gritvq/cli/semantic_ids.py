"""The verb ``semantic-ids``: makes semantic ids of a catalogue's items, and evaluates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.cli.embeddings import check_texts, given_vectors, item_vectors, origin_of, text_arguments
from gritvq.cli.output import list_files, report, trusted_argument
from gritvq.cli.run_folder import check_places, overwrite_argument
from gritvq.files import folder_exists, replacing_files
from gritvq.training.run_folder import RunFolder

__all__ = [
    "JOBS",
    "fit_arguments",
    "make_ids",
    "semantic_ids",
    "semantic_ids_arguments",
    "tokenizer_arguments",
    "write_ids",
]


def semantic_ids_arguments(parser: Any) -> None:
    """Arguments of the jobs of semantic-ids."""
    jobs = parser.add_subcommands(title="jobs", metavar="JOB", dest="job")
    for name, (describe_arguments, job) in JOBS.items():
        own = type(parser)(description=job.__doc__)
        jobs.add_subcommand(name, own, help=(job.__doc__ or "").splitlines()[0])
        describe_arguments(own)


def semantic_ids(parser: Any, config: Any) -> None:
    """Fit, apply, evaluate and extend semantic ids of a catalogue."""
    _, job = JOBS[config.job]
    job(config[config.job], lambda: parser.instantiate(config)[config.job])


# --- the catalogue ----------------------------------------------------------------------------------------------------


def _catalogue_arguments(parser: Any, required: bool = True) -> None:
    parser.add_argument(
        "--data",
        type=str if required else str | None,
        required=required,
        help="catalogue: a .parquet or .csv file, a folder with items.parquet or items.csv, or a data set of RecBole, "
        "Amazon reviews or MovieLens as it is downloaded",
    )
    parser.add_argument("--item", type=str, default="item", help="column of the items' keys")
    parser.add_argument(
        "--embeddings",
        type=str | None,
        default=None,
        help=".npy file (n, D), one row per item; by default item_embeddings.npy next to a catalogue in Parquet or CSV",
    )
    text_arguments(parser)


def _read(config: Any) -> Any:
    """The catalogue with its embeddings, if there are any."""
    from gritvq.items.catalogue import read_catalogue, vectors_beside

    check_texts(config, config.embeddings, "--embeddings")
    path, vectors = Path(config.data).expanduser(), None
    if config.text_model is None:
        vectors = Path(config.embeddings) if config.embeddings else vectors_beside(path, config.item)
    return read_catalogue(path, item=config.item, embeddings=vectors, vectors=config.text_model is None)


def _last_level(tokenizer: Any, vectors: Any, collisions: str) -> dict[str, Any]:
    """Arguments of policies that move items to other codes of the last level."""
    if collisions not in ("sinkhorn", "nearest_free"):
        return {}
    rows, table = tokenizer.last_level(vectors)
    return {"vectors": rows, "table": table}


def _categories(catalogue: Any, column: str | None) -> Sequence[Any] | None:
    from gritvq.items.ids.metrics import category_numbers

    if column is None:
        return None
    if column not in catalogue.columns:
        raise ValueError(f"expected a column of {', '.join(catalogue.columns) or 'none'}, got {column!r}; choose one")
    categories = catalogue.columns[column]
    category_numbers(categories, len(categories))  # checks them before anything is made
    return categories


def _judge(ids: Any, categories: Sequence[Any] | None, vectors: Any, tokenizer: Any, out: Path) -> None:
    """Write metrics and plots to a folder, and print the main numbers."""
    from gritvq.files import write_json
    from gritvq.items.ids.plots import collisions_plot, level_usage_plot, tree_plot

    decoded = noisy = None
    if vectors is not None and tokenizer is not None:
        decoded = tokenizer.decode(ids.codes[:, : len(tokenizer.codebook_sizes)])[
            :, : vectors.shape[1]
        ]  # the first view
        # the other policies replace codes, and ids of other views are not those of texts, with or without noise
        comparable = ids.collisions in ("append", "keep") and vectors.shape[1] == tokenizer.dim
        noisy = tokenizer.perturbed_codes(vectors) if comparable else None
    numbers = ids.report(categories, vectors, reconstructions=decoded, perturbed=noisy)
    run = RunFolder(out)
    files = {"ids": run.ids, "all numbers": run.report, "usage": run.usage, "collisions": run.collisions}
    out.mkdir(parents=True, exist_ok=True)
    write_json(run.report, {name: None if math.isnan(value) else value for name, value in numbers.items()})
    level_usage_plot(ids, files["usage"], numbers)
    collisions_plot(ids, files["collisions"], numbers)
    if categories is not None:
        files["tree"] = tree_plot(ids, categories, run.tree, numbers)
    levels = range(1, len(ids.codebook_sizes) + 1)
    perplexities = ", ".join(f"{numbers[f'level{level}/perplexity']:.1f}" for level in levels)
    before = len(levels) - (ids.collisions == "append")
    rows = [
        ("items", f"{numbers['items']:,.0f}"),
        ("distinct ids", f"{numbers['distinct']:,.0f} ({100 * numbers['uniqueness']:.2f} %)"),
        ("items in a collision", f"{100 * numbers['items_in_collision']:.2f} %"),
        ("largest group", f"{numbers['largest_group']:.0f}"),
        ("codes per level", ", ".join(str(size) for size in ids.codebook_sizes)),
        ("perplexity per level", perplexities),
        ("collisions", ids.collisions),
    ]
    if ids.collisions == "append":
        share = numbers[f"depth{before}/uniqueness"]
        rows.append(("distinct without the appended token", f"{100 * share:.2f} %"))
    if noisy is not None:
        rows.append(("ids kept under noise of a tenth of their spread", f"{100 * numbers['perturbed/kept_ids']:.2f} %"))
    if "level1/purity" in numbers:
        rows.append(("category purity of level 1", f"{numbers['level1/purity']:.3f}"))
    report("semantic ids", rows, {name: path for name, path in files.items() if path.exists()})


# --- the jobs ---------------------------------------------------------------------------------------------------------


def fit_arguments(parser: Any) -> None:
    """Arguments of semantic-ids fit."""
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    _catalogue_arguments(parser)
    tokenizer_arguments(parser)
    parser.add_argument("--categories", type=str | None, default=None, help="column of categories, for the report")
    parser.add_argument("--out", type=str, default="runs/semantic-ids", help="folder for tokenizer, ids and report")
    parser.add_argument("--overwrite", type=bool, default=False, help="whether existing ids may be replaced")


def tokenizer_arguments(parser: Any) -> None:
    """Arguments of tokenizer and collision policy."""
    from gritvq.items.tokenizers import ItemTokenizer

    parser.add_subclass_arguments(ItemTokenizer, "tokenizer", required=True)
    parser.set_defaults({"tokenizer": {"class_path": "gritvq.items.ResidualKMeans"}})
    parser.add_argument(
        "--collisions",
        default="append",
        choices=["append", "nearest_free", "sinkhorn", "keep"],
        help="how to resolve collisions of items with equal indices",
    )


def _fit(config: Any, parts: Callable[[], Any]) -> None:
    """Fit a tokenizer to item embeddings and assign ids to all items."""
    RunFolder(config.out).check(config.overwrite)
    catalogue = _read(config)
    categories = _categories(catalogue, config.categories)
    tokenizer = parts().tokenizer
    vectors = item_vectors(catalogue, config, "--embeddings")
    ids = make_ids(tokenizer, vectors, catalogue.keys, config.collisions, origin_of(catalogue, config, vectors))
    run = RunFolder(config.out)
    with replacing_files(run.path) as scratch:  # keeps an old run if the disk is full
        write_ids(scratch, tokenizer, ids)
    run.clear(but=(run.tokenizer, run.ids))
    _judge(ids, categories, vectors, tokenizer, run.path)


def make_ids(
    tokenizer: Any, vectors: Any, keys: Sequence[Any], collisions: Any, encoder: Mapping[str, str] | None = None
) -> Any:
    """Fit a tokenizer and assign ids to all items; ``encoder`` describes the origin of the vectors."""
    from gritvq.items.ids import SemanticIds

    tokenizer.fit(vectors, progress=True)
    return SemanticIds.assign(
        tokenizer.encode(vectors, progress=True),
        tokenizer.codebook_sizes,
        keys,
        collisions=collisions,
        fingerprint={**(encoder or given_vectors(vectors)), "quantizer": tokenizer.fingerprint()},
        **_last_level(tokenizer, vectors, collisions),
    )


def write_ids(out: Path, tokenizer: Any, ids: Any) -> None:
    """Write tokenizer and ids to a folder."""
    run = RunFolder(out)
    tokenizer.save_pretrained(run.tokenizer)
    ids.save(run.ids)


def _check_encoder(catalogue: Any, config: Any, vectors: Any, ids: Any) -> None:
    """Raises a ValueError if the vectors have another origin than those of the ids."""
    made, found = ids.fingerprint, origin_of(catalogue, config, vectors)
    differing = [name for name, value in found.items() if made.get(name, value) != value]
    if differing:
        raise ValueError(
            f"expected vectors of {', '.join(f'{name} {made[name]!r}' for name in differing)}, which the ids were made "
            f"of, got {', '.join(repr(found[name]) for name in differing)}; give the same --text_model, --fields or "
            "--embeddings"
        )


def _encode_arguments(parser: Any) -> None:
    parser.add_argument("run", type=str, help="folder written by semantic-ids fit")
    trusted_argument(parser)
    parser.add_argument("--embeddings", type=str, required=True, help=".npy file (n, D), read in chunks")
    parser.add_argument("--out", type=str, default="codes.npy", help="file to write: .npy, (n, L)")
    overwrite_argument(parser)


def _encode(config: Any, parts: Callable[[], Any]) -> None:
    """Encode any number of embeddings with a fitted tokenizer, without a collision policy."""
    import time

    import numpy as np

    from gritvq.items.catalogue import open_vectors

    if Path(config.out).resolve() == Path(config.embeddings).resolve():
        raise ValueError(
            f"expected another file to write than the embeddings {config.embeddings}; choose another --out"
        )
    out = _array_file(config)
    tokenizer = _tokenizer(config)
    vectors = open_vectors(Path(config.embeddings))
    started = time.perf_counter()
    codes = tokenizer.encode(vectors, progress=True)
    seconds = time.perf_counter() - started
    _write_array(out, np.ascontiguousarray(codes, dtype=np.min_scalar_type(max(tokenizer.codebook_sizes) - 1)))
    rows = [("items", f"{len(codes):,}"), ("items per second", f"{len(codes) / max(seconds, 1e-9):,.0f}")]
    report("encoded", rows, {"codes": out})


def _report_arguments(parser: Any) -> None:
    parser.add_argument("run", type=str, help="folder written by semantic-ids fit, or of ids")
    trusted_argument(parser)
    _catalogue_arguments(parser, required=False)
    parser.add_argument("--categories", type=str | None, default=None, help="column of categories")
    parser.add_argument("--out", type=str | None, default=None, help="folder for metrics and plots; default: the run")


def _report(config: Any, parts: Callable[[], Any]) -> None:
    """Evaluate ids: usage, collisions, prefixes, neighbors; metrics and plots."""
    from gritvq.items.ids import SemanticIds

    run = _run_with_ids(config.run)
    ids = SemanticIds.load(run.any_ids)
    tokenizer = _tokenizer(config) if folder_exists(run.tokenizer) else None
    if tokenizer is not None and ids.fingerprint.get("quantizer") != tokenizer.fingerprint():
        raise ValueError(
            f"expected the tokenizer that made the ids in {run.tokenizer}, got another; give {run.ids} to evaluate the "
            "ids alone"
        )
    categories = vectors = None
    if config.data is not None:
        catalogue = _read(config)
        rows = _rows_in(catalogue.keys, ids)
        catalogue = catalogue.select(rows)
        categories = _categories(catalogue, config.categories)
        if catalogue.embeddings is not None or config.text_model:
            vectors = item_vectors(catalogue, config, "--embeddings")
            if tokenizer is not None:
                _check_encoder(catalogue, config, vectors, ids)
    elif config.categories is not None:
        raise ValueError("expected --data with the column of categories, got none; give the catalogue")
    _judge(ids, categories, vectors, tokenizer, Path(config.out or (run.path if tokenizer else "runs/report")))


def _rows_in(keys: Sequence[Any], ids: Any) -> Any:
    """Rows of the catalogue in the order of the ids."""
    import torch

    place = {key: row for row, key in enumerate(keys)}
    missing = [key for key in ids.items if key not in place]
    if missing:
        raise ValueError(
            f"expected a catalogue with all {len(ids):,} items that have an id, got one without {missing[0]!r}"
            f"{f' and {len(missing) - 1:,} more' if missing[1:] else ''}; give the catalogue of these ids"
        )
    return torch.tensor([place[key] for key in ids.items])


def _add_arguments(parser: Any) -> None:
    parser.add_argument("run", type=str, help="folder written by semantic-ids fit")
    trusted_argument(parser)
    _catalogue_arguments(parser)
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="folder for the extended ids; default: the run's. One that extended them before is extended further",
    )
    overwrite_argument(parser)


def _add(config: Any, parts: Callable[[], Any]) -> None:
    """Assign ids to the catalogue's new items; existing ids do not change."""
    import torch

    from gritvq.items.ids import SemanticIds

    run = _run_with_ids(config.run)
    out = run.ids if config.out is None else Path(config.out)
    ids, tokenizer = _extended(SemanticIds.load(run.ids), run, out, config.overwrite), _tokenizer(config)
    catalogue = _read(config)
    known = set(ids.items)
    new = [row for row, key in enumerate(catalogue.keys) if key not in known]
    grown = ids
    if new:
        catalogue = catalogue.select(torch.tensor(new))
        vectors = item_vectors(catalogue, config, "--embeddings")
        _check_encoder(catalogue, config, vectors, ids)
        grown = ids.add(
            tokenizer.encode(vectors, progress=True),
            catalogue.keys,
            fingerprint={**ids.fingerprint, "quantizer": tokenizer.fingerprint()},
            **_last_level(tokenizer, vectors, ids.collisions),
        )
    grown.save(out)
    rows = [("items before", f"{len(ids):,}"), ("new items", f"{len(new):,}"), ("items now", f"{len(grown):,}")]
    if grown.codebook_sizes != ids.codebook_sizes:
        rows.append(("codes per level, grown", ", ".join(str(size) for size in grown.codebook_sizes)))
    report("added", rows, {})
    list_files({"ids": out})


def _run_with_ids(folder: str) -> RunFolder:
    """The run of ``semantic-ids fit``, also where a recommender's run holds it."""
    run = RunFolder(folder)
    return RunFolder(run.semantic_ids) if not folder_exists(run.ids) and folder_exists(run.semantic_ids) else run


def _extended(ids: Any, run: RunFolder, out: Path, overwrite: bool) -> Any:
    """What new items are added to: the ids of the run or those in ``out``, whichever extend the others.

    Raises:
        ValueError: If there are other ids, which would be lost.
    """
    import torch

    from gritvq.items.ids import SemanticIds

    if overwrite or out == run.ids or not SemanticIds.is_saved_in(out):
        return ids
    found = SemanticIds.load(out)
    both = min(len(found), len(ids))
    if found.items[:both] != ids.items[:both] or not torch.equal(found.codes[:both], ids.codes[:both]):
        raise ValueError(
            f"expected a new folder, or one with ids that extend those of {run.path}, got {out} with others; choose "
            "another --out, or replace them with --overwrite true"
        )
    return found if len(found) > len(ids) else ids


def _convert_arguments(parser: Any) -> None:
    parser.add_argument("data", type=str, help="folder with a data set of RecBole, Amazon reviews or MovieLens")
    parser.add_argument(
        "--interactions", type=str | None, default=None, help="file of events in the folder, if it holds several"
    )
    parser.add_argument("--items", type=str | None, default=None, help="file of metadata in the folder")
    for name in ("user", "item"):
        parser.add_argument(
            f"--{name}", type=str, default=name, help=f"column of {name}s of RecBole's files, if it has no usual name"
        )
    parser.add_argument("--out", type=str, required=True, help="folder for interactions.parquet and items.parquet")
    overwrite_argument(parser)


def _convert(config: Any, parts: Callable[[], Any]) -> None:
    """Write a downloaded data set as interactions.parquet and items.parquet."""
    from gritvq.items.layouts import convert_item_data

    out, names = Path(config.out), ["interactions.parquet", "items.parquet"]
    check_places(out, names, config.overwrite)
    numbers = convert_item_data(
        config.data,
        out,
        user=config.user,
        item=config.item,
        interactions=config.interactions,
        items=config["items"],
    )
    rows = [(name, f"{count:,}") for name, count in numbers.items()]
    report("converted", rows, {Path(name).stem: out / name for name in names})


def _vectors_arguments(parser: Any) -> None:
    from gritvq.items.catalogue import read_item_data

    parser.add_function_arguments(read_item_data, "data", skip={"vectors"})
    parser.add_argument(
        "--dim", type=int, default=32, help="size of a vector; the quantizer's dim for CollaborativeLoss"
    )
    parser.add_argument("--k_core", type=int | None, default=None, help="as in fit items, whose rows these then are")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search for eigenvectors")
    parser.add_argument("--out", type=str, default="collaborative.npy", help="file to write: .npy, (n, dim)")
    overwrite_argument(parser)


def _write_vectors(config: Any, parts: Callable[[], Any]) -> None:
    """Write vectors of who had which items, made of training events alone; NaN for items that occur with no other."""
    from gritvq.cli.fit_items import read_data
    from gritvq.items.collaborative import collaborative_vectors

    out = _array_file(config)
    split = read_data(config.data.as_dict(), config.k_core).interactions.split()
    vectors = collaborative_vectors(split.train, split.num_items, config.dim, seed=config.seed).numpy()
    _write_array(out, vectors)
    unknown = int((vectors[:, 0] != vectors[:, 0]).sum())  # NaN
    rows = [("items", f"{len(vectors):,}"), ("items that occur with no other", f"{unknown:,}")]
    report("collaborative vectors of training events", rows, {"vectors": out})


def _array_file(config: Any) -> Path:
    """The file to write, which must be a .npy."""
    out = Path(config.out)
    if out.suffix != ".npy":
        raise ValueError(f"expected a .npy file to write, got {out}; choose another --out")
    check_places(out.parent, [out.name], config.overwrite)
    return out


def _write_array(out: Path, table: Any) -> None:
    """Write a contiguous array, whole or not at all."""
    import numpy as np

    from gritvq.files import replacing

    with replacing(out) as scratch, scratch.open("wb") as file:  # numpy.save does not notice a full disk
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(table))
        file.write(table.data)


def _tokenizer(config: Any) -> Any:
    from gritvq.items.tokenizers import ItemTokenizer

    folder = _run_with_ids(config.run).tokenizer
    if not folder_exists(folder):
        raise ValueError(
            f"expected a folder written by semantic-ids fit, got {config.run}, which has no {folder.name} in it; "
            "choose another one"
        )
    return ItemTokenizer.from_pretrained(folder, config.trusted)


JOBS: dict[str, tuple[Callable[[Any], None], Callable[[Any, Callable[[], Any]], None]]] = {
    "fit": (fit_arguments, _fit),
    "encode": (_encode_arguments, _encode),
    "report": (_report_arguments, _report),
    "add": (_add_arguments, _add),
    "convert": (_convert_arguments, _convert),
    "vectors": (_vectors_arguments, _write_vectors),
}
