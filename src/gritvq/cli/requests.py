"""Recommendations for a file of requests, as a stream: ``gritvq recommend --requests``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.output import report, tracked
from gritvq.cli.run_folder import check_places
from gritvq.files import replacing
from gritvq.lazy import optional

if TYPE_CHECKING:
    from gritvq.items import GenerativeRecommender, Histories, Request, SemanticIds

__all__ = ["check_request_place", "keys_like", "recommend_requests"]

_GROUP = 2**16  # rows of a row group


def check_request_place(config: Any) -> Path:
    """The file to write; raises a ValueError if it cannot be."""
    out = Path(config.out)
    if out.suffix != ".parquet":
        raise ValueError(f"expected a .parquet file to write, got {out}; choose another --out")
    if out.resolve() == Path(config.requests).expanduser().resolve():
        raise ValueError(f"expected another file to write than the requests {config.requests}; choose another --out")
    check_places(out.parent, [out.name], config.overwrite)
    return out


def recommend_requests(recommender: GenerativeRecommender, config: Any, allowed: Any, known: Any = None) -> None:
    """Write a list for each request: columns ``request``, ``rank`` from 1, ``item`` and ``score``.

    The file is read twice: once to check all of it before anything is written, and once for the work. In memory are a
    batch, a row group of the result and the ids of the requests.

    Args:
        recommender: Makes the lists.
        config: Of the verb.
        allowed: Which items may be in them.
        known: Interactions of the users that the ids name, in place of histories in the file.
    """
    from gritvq.items import iter_requests

    out, ids = check_request_place(config), recommender.ids

    def batches() -> Iterator[tuple[list[Request], Histories, int]]:
        history = config.history_column if known is None else None
        rows = iter_requests(config.requests, id=config.id_column, history=history)
        rows = rows if known is None else _of_users(rows, known)
        while some := list(itertools.islice(rows, config.batch_size)):
            yield some, *_histories(some, ids, config.unknown)

    total, unknown, numeric = _check(batches(), config.requests)
    short = listed = 0

    def tables() -> Iterator[Any]:
        nonlocal short, listed
        for some, histories, _ in tracked(batches(), "recommending, batch", -(-total // config.batch_size)):
            found = recommender.best(
                histories,
                config.k,
                beam=config.beam,
                exact=config.exact,
                allowed=allowed,
                exclude=histories if config.exclude_seen else None,
            )
            items, scores = found.items.cpu(), found.scores.cpu()
            users, ranks = (items >= 0).nonzero(as_tuple=True)
            short += int((items[:, -1] < 0).sum())
            listed += len(users)
            yield [
                [some[user].id for user in users.tolist()],
                (ranks + 1).int().numpy(),
                [ids.items[row] for row in items[users, ranks].tolist()],
                scores[users, ranks].float().numpy(),
            ]

    with replacing(out) as scratch:
        _write(scratch, tables(), numeric, isinstance(ids.items[0], int))
    rows = [("requests", f"{total:,}"), ("items listed", f"{listed:,}")]
    rows += [(f"requests with fewer than {config.k} items", f"{short:,}")] if short else []
    rows += [("unknown items left out", f"{unknown:,}")] if unknown else []
    report("recommended", rows, {"recommendations": out})


def _of_users(requests: Iterable[Request], known: Any) -> Iterator[Request]:
    """The same requests with the histories of the data.

    Raises:
        ValueError: If an id is none of the data's users.
    """
    place = {key: row for row, key in enumerate(known.user_keys)}
    for request in requests:
        row = place.get(keys_like([request.id], known.user_keys)[0])
        if row is None:
            raise ValueError(
                f"expected ids of the data's {len(place):,} users, such as {known.user_keys[0]!r}, got {request.id!r}; "
                "give the histories of new users in a file of their own"
            )
        events = known.histories[row].tolist()
        yield request._replace(history=[known.item_keys[event] for event in events])


def _check(batches: Iterable[tuple[list[Request], Any, int]], path: str) -> tuple[int, int, bool]:
    """Number of requests and of unknown items, and whether ids are numbers.

    Raises:
        ValueError: If there is no request, an id occurs twice, or ids are both text and numbers.
    """
    seen: set[Any] = set()
    unknown, kinds = 0, set()
    for some, _, skipped in batches:
        unknown += skipped
        for request in some:
            if request.id in seen:
                raise ValueError(
                    f"expected every request once in {path}, got the id {request.id!r} twice; make ids unique, or join "
                    "their histories"
                )
            seen.add(request.id)
            kinds.add(type(request.id))
    if not seen:
        raise ValueError(f"expected at least one request in {path}, got none; add rows with an id and a history")
    if len(kinds) > 1:
        raise ValueError(f"expected request ids in {path} that are all text or all whole numbers, got both; convert")
    return len(seen), unknown, int in kinds


def _histories(requests: Sequence[Request], ids: SemanticIds, unknown: str) -> tuple[Histories, int]:
    """Item rows of the histories without unknown items, and how many of these there were.

    Raises:
        ValueError: If there are unknown items, unless they are skipped.
    """
    import torch

    from gritvq.items import Histories

    keys = keys_like([key for request in requests for key in request.history], ids.items)
    rows = ids.rows_of(keys, unknown="skip")
    owners = torch.arange(len(requests)).repeat_interleave(torch.tensor([len(each.history) for each in requests]))
    known = rows >= 0
    if unknown == "error" and not bool(known.all()):
        place = int((~known).nonzero()[0])
        raise ValueError(
            f"expected items that have an id, got {keys[place]!r} in the history of request "
            f"{requests[int(owners[place])].id!r}; give ids with new items by --ids ('gritvq semantic-ids add' makes "
            "them), or leave unknown items out by --unknown skip"
        )
    counts = torch.zeros(len(requests) + 1, dtype=torch.int64).index_add_(0, owners[known] + 1, known[known].long())
    return Histories(counts.cumsum(0), rows[known]), int((~known).sum())


def keys_like(given: Sequence[int | str], known: Sequence[Any]) -> list[Any]:
    """Keys of the command line or of a file, with the type of the data's keys."""
    if not isinstance(known[0], int):
        return [str(key) for key in given]
    keys: list[int] = []
    for key in given:
        try:
            keys.append(int(key))
        except ValueError as error:
            raise ValueError(f"expected whole numbers as keys, as in the data, got {key!r}; correct it") from error
    return keys


def _write(path: Path, parts: Iterable[list[Any]], numeric_ids: bool, numeric_items: bool) -> None:
    pyarrow, parquet = optional("pyarrow", "items"), optional("pyarrow.parquet", "items")
    kinds = {True: pyarrow.int64(), False: pyarrow.string()}
    names = ["request", "rank", "item", "score"]
    types = [kinds[numeric_ids], pyarrow.int32(), kinds[numeric_items], pyarrow.float32()]
    schema = pyarrow.schema(list(zip(names, types, strict=True)))
    held, size = [], 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for columns in parts:
            arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, types, strict=True)]
            held.append(pyarrow.table(arrays, schema=schema))
            size += len(held[-1])
            if size >= _GROUP:
                writer.write_table(pyarrow.concat_tables(held))
                held, size = [], 0
        if size:
            writer.write_table(pyarrow.concat_tables(held))
