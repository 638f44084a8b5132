"""A generative recommender: predicts the next item's semantic id, level by level or all levels at once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from gritvq.component import eval_mode
from gritvq.export import Format
from gritvq.items.ids import FilteredOrder, ItemFilter, PrefixTrie, SemanticIds
from gritvq.items.interactions import Histories, check_items
from gritvq.items.recommenders.backbones import Backbone, Candidates, Context
from gritvq.items.recommenders.backbones.parallel import LookupDecoder
from gritvq.items.recommenders.beam_search import Beams, beam_search, exact_scores
from gritvq.items.recommenders.graph import ItemGraph
from gritvq.items.recommenders.parallel import ParallelScorer, RankedItems, channel_log_probs, check_no_nan
from gritvq.items.recommenders.ranking import top_items
from gritvq.saving import (
    CONFIG,
    WEIGHTS,
    load_weights,
    local_folder,
    read_config,
    read_tensors,
    rebuilt,
    write_folder,
)

__all__ = ["GenerativeRecommender"]

_KIND, _IDS, _PRIORITY = "recommender", "ids", "priority.safetensors"


class GenerativeRecommender(nn.Module):
    """A sequence model over semantic ids that predicts the next item of a user.

    Items are rows of ``ids``. The model reads the newest ``max_history`` items of a history and generates only existing
    ids, by beam search along their trie; a parallel backbone scores all of them exactly, without a search. Items that
    share an id have the same score; lists sort them by decreasing ``priority``, then by row.

    Args:
        backbone: The sequence model.
        ids: Semantic ids of the n items.
        max_history: Largest number of items read.
        beam: Default beam size; unused if the backbone is parallel.
        priority: Priority of each item (n,), such as its number of training events.
        exclude_seen: Whether lists and scores leave out all items of the history they are made for, besides those of
            ``exclude``, for data in which nobody takes an item twice. A softmax over the catalogue is trained without
            those among the items that it reads, too.

    Attributes:
        ids: The items' ids, as they were given.
        codes: Those that the model reads (n, Q): of a loaded recommender, appended tokens it does not know are clamped.
        trained: What a loaded recommender says of its training, plain values by name.

    Raises:
        ValueError: If the backbone was made for other codebook sizes or shorter histories, or a number is out of range.

    Example:
        >>> from gritvq.items import DepthDecoder
        >>> ids = SemanticIds(torch.tensor([[0, 1], [2, 3], [2, 0], [2, 0]]), (4, 4))
        >>> backbone = DepthDecoder(ids.codebook_sizes, 8, num_layers=1, num_heads=1, hidden_dim=8)
        >>> recommender = GenerativeRecommender(backbone, ids).eval()
        >>> sorted(recommender.recommend([[0, 3], [1]], 5)[0].tolist()), recommender.scores([[0, 3], []]).shape
        ([-1, 0, 1, 2, 3], torch.Size([2, 4]))
    """

    codes: Tensor
    priority: Tensor

    def __init__(
        self,
        backbone: Backbone,
        ids: SemanticIds,
        *,
        max_history: int = 20,
        beam: int = 50,
        priority: Float[Tensor, " n"] | None = None,
        exclude_seen: bool = False,
    ) -> None:
        super().__init__()
        if backbone.codebook_sizes != tuple(ids.codebook_sizes):
            raise ValueError(
                f"expected a backbone for the ids' codebook sizes {list(ids.codebook_sizes)}, got one for "
                f"{list(backbone.codebook_sizes)}; build it with ids.codebook_sizes"
            )
        if max_history < 1 or beam < 1:
            raise ValueError(f"expected max_history >= 1 and beam >= 1, got {max_history} and {beam}; give larger ones")
        longest = getattr(backbone, "max_items", max_history + 1)
        if max_history >= longest:
            raise ValueError(
                f"expected a backbone for {max_history} items and the next one, got one of max_items {longest}; make "
                f"it with max_items {max_history + 1}, or reduce max_history"
            )
        self.backbone, self.ids, self.max_history, self.beam = backbone, ids, max_history, beam
        self.exclude_seen = exclude_seen
        self.trained: dict[str, Any] = {}
        priority = torch.zeros(len(ids.codes)) if priority is None else priority.detach().cpu().float()
        self._trie: PrefixTrie | None = None
        self._scorer: ParallelScorer | None = None
        if backbone.parallel:
            self._scorer = ParallelScorer(ids.codes, ids.codebook_sizes, priority=priority)
        self.register_buffer("codes", ids.codes.clone(), persistent=False)
        self.register_buffer("priority", priority, persistent=False)

    @property
    def ids_digest(self) -> str:
        """SHA-256 of the ids, codebook sizes and keys that the weights depend on."""
        return _digest(self.ids)

    @property
    def num_items(self) -> int:
        """Number n of items."""
        return len(self.codes)

    @property
    def trie(self) -> PrefixTrie:
        """Trie of the ids, made when it is first used: a parallel backbone with long ids needs none."""
        if self._trie is None:
            trie = PrefixTrie(self.codes.cpu(), self.backbone.codebook_sizes, priority=self.priority.cpu())
            self._trie = trie.to(self.codes.device)
        return self._trie

    @property
    def order(self) -> Int[Tensor, " n"]:
        """All item rows, in the order in which lists have items of equal scores."""
        return self.trie.rows if self._scorer is None else self._scorer.order

    def forward(self, histories: Histories | Sequence[Sequence[int]]) -> Float[Tensor, ""]:
        """Loss on the newest ``max_history`` + 1 items of each history, see the backbone.

        Args:
            histories: Item rows of B users, oldest first, at least one each.

        Raises:
            ValueError: If an item row is out of range, or a history is empty.
        """
        codes, lengths = self._codes(histories, self.max_history + 1)
        if not bool((lengths > 0).all()):
            empty = int((lengths == 0).nonzero()[0])
            raise ValueError(f"expected at least one item in each history, got none in history {empty}; leave it out")
        candidates = Candidates(self.codes)
        if self.exclude_seen:
            seen = Histories.of(histories).aligned(self.max_history + 1)
            candidates = Candidates(self.codes, seen.to(codes.device))
        return self.backbone.loss(codes, lengths, candidates)

    @torch.no_grad()
    def recommend(
        self,
        histories: Histories | Sequence[Sequence[int]],
        k: int = 10,
        *,
        beam: int | None = None,
        exact: bool = False,
        allowed: Bool[Tensor, "*B n"] | None = None,
        exclude: Histories | Sequence[Sequence[int]] | None = None,
        graph: ItemGraph | None = None,
    ) -> Int[Tensor, "B k"]:
        """The k best items, best first, padded with -1; see :meth:`best`.

        Example:
            >>> from gritvq.items import DepthDecoder
            >>> ids = SemanticIds(torch.tensor([[0, 1], [2, 3], [2, 0], [2, 0]]), (4, 4))
            >>> backbone = DepthDecoder(ids.codebook_sizes, 8, num_layers=1, num_heads=1, hidden_dim=8)
            >>> recommender, histories = GenerativeRecommender(backbone, ids), [[0, 3], [1]]
            >>> in_stock = torch.tensor([True, False, True, False])
            >>> recommender.recommend(histories, 2, allowed=in_stock, exclude=histories).sort().values.tolist()
            [[-1, 2], [0, 2]]
        """
        return self.best(histories, k, beam=beam, exact=exact, allowed=allowed, exclude=exclude, graph=graph).items

    @torch.no_grad()
    def best(
        self,
        histories: Histories | Sequence[Sequence[int]],
        k: int = 10,
        *,
        beam: int | None = None,
        exact: bool = False,
        allowed: Bool[Tensor, "*B n"] | None = None,
        exclude: Histories | Sequence[Sequence[int]] | None = None,
        graph: ItemGraph | None = None,
    ) -> RankedItems:
        """The k best items and scores, log-probabilities of ids: by beam search, or exactly by a parallel backbone.

        The scores of a :class:`gritvq.items.CatalogueDecoder` are log-probabilities up to a constant of each history;
        those of a model with ``content_dim`` have its content added.

        Filters act inside the search, so a list is short only if they leave fewer than k items, whatever the beam; if
        they leave none, it is -1 throughout.

        Args:
            histories: Item rows of B users, oldest first; may be empty, and there may be none.
            k: Number of items.
            beam: Beam size; None means the recommender's, and at least k. Unused if the backbone is parallel.
            exact: Whether to score the whole catalogue instead of searching.
            allowed: Whether an item may be recommended, to all users (n,) or to each (B, n), bool; None allows all.
            exclude: Item rows that must not be recommended to each user, B sequences, such as the whole histories,
                which ``exclude_seen`` excludes anyway.
            graph: Search along this graph, which :meth:`graph` made, instead of scoring the whole catalogue; with
                ``beam`` items per step.

        Raises:
            ValueError: If an item row is out of range, k or the beam is smaller than 1, a filter has another shape,
                the graph is another recommender's, or the model's log-probabilities are NaN.
        """
        beam = self._beam(k, beam)
        item_filter = self._filter(histories, allowed, exclude)
        if graph is not None and graph.scorer is not self._scorer:
            raise ValueError("expected a graph of this recommender, got another one; make it with its method graph")
        if not len(histories):
            return RankedItems(self.codes.new_empty(0, k), self.priority.new_empty(0, k))
        if graph is not None:
            log_probs = self._channel_log_probs(histories)
            check_no_nan(log_probs)
            return graph.best(log_probs, k, beam=beam, item_filter=item_filter)
        if self._scorer is not None:
            return self._scorer.best(self._channel_log_probs(histories), k, item_filter=item_filter)
        if exact:
            order = self.order.to(self.codes.device)
            scores = self.scores(histories, allowed=allowed, exclude=exclude)[:, order]
            check_no_nan(scores)
            places = top_items(scores, k)
            found = scores.gather(1, places.clamp(min=0)).masked_fill(places < 0, -math.inf)
            return RankedItems(torch.where(places < 0, -1, order[places.clamp(min=0)]), found)
        listed = None if item_filter is None else item_filter.along(self.trie.rows)
        beams = self._search(histories, beam, listed)
        items, places = self.trie.expand_places(beams.leaves, k, listed)
        return RankedItems(items, beams.scores.gather(1, places).masked_fill(items < 0, -math.inf))

    def graph(self, num_neighbors: int = 50, progress: bool = False) -> ItemGraph:
        """A graph of items with similar ids, for :meth:`best` with a parallel backbone; make it after training.

        Args:
            num_neighbors: Edges of each item, see :meth:`gritvq.items.ItemGraph.of`.
            progress: Whether to show a progress bar; needs the extra ``train``.

        Raises:
            ValueError: If the backbone is not parallel, or the number is below 1.
        """
        if self._scorer is None or not isinstance(self.backbone, LookupDecoder):
            raise ValueError(
                f"expected a ParallelDecoder or CatalogueDecoder, got {type(self.backbone).__name__}; search its ids "
                "by beams instead"
            )
        return ItemGraph.of(self._scorer, self.backbone.tables(), num_neighbors, progress)

    @torch.no_grad()
    def search(
        self,
        histories: Histories | Sequence[Sequence[int]],
        beam: int,
        *,
        allowed: Bool[Tensor, "*B n"] | None = None,
        exclude: Histories | Sequence[Sequence[int]] | None = None,
    ) -> Beams:
        """The best ids by beam search, as leaves of ``trie``; filters as of :meth:`best`."""
        item_filter = self._filter(histories, allowed, exclude)
        return self._search(histories, beam, None if item_filter is None else item_filter.along(self.trie.rows))

    @torch.no_grad()
    def scores(
        self,
        histories: Histories | Sequence[Sequence[int]],
        *,
        block: int = 512,
        allowed: Bool[Tensor, "*B n"] | None = None,
        exclude: Histories | Sequence[Sequence[int]] | None = None,
    ) -> Float[Tensor, "B n"]:
        """Exact scores of all items, as of :meth:`best`; equal for items that share an id.

        Args:
            histories: Item rows of B users, oldest first; may be empty.
            block: Prefixes scored at a time, see :func:`gritvq.items.exact_scores`. Unused if the backbone is parallel.
            allowed: Items that may be recommended, see :meth:`best`; all others have the score minus infinity.
            exclude: Items that must not be recommended to each user, see :meth:`best`; their score is minus infinity.

        Raises:
            ValueError: If an item row is out of range, or a filter has another shape.
        """
        item_filter = self._filter(histories, allowed, exclude)
        if not len(histories):
            return self.priority.new_empty(0, self.num_items)
        if self._scorer is not None:
            found = self._scorer.scores(self._channel_log_probs(histories))
        else:
            with eval_mode(self):
                found = exact_scores(self.backbone, self._read(histories), self.trie, block=block)
            found = found[:, self.trie.leaves_of_rows()]
        return found if item_filter is None else found.masked_fill(~item_filter.mask().to(found.device), -math.inf)

    def export(
        self, folder: str | os.PathLike[str], format: Format = "onnx", *, k: int = 10, beam: int | None = None
    ) -> Path:
        """Write model, codes and trie as one program ``recommender`` that runs without gritvq.

        It maps ``histories`` (B, max_history), item rows of int64, oldest first, padded with -1 behind the newest, and
        ``allowed`` (B, n), bool, to ``items`` (B, k) and ``scores`` (B, k) as of :meth:`best`; B is free. It leaves out
        the items of ``histories`` if the recommender excludes seen items: older ones have to be cleared in ``allowed``.
        Item keys are not in it: they are ``ids.items``. Rounding may change the order of items with nearly equal
        scores; equal ones keep their order in ONNX, and have any in the torch format.

        Args:
            folder: Folder of the file; one of the same name is replaced.
            format: See :func:`gritvq.export.write_programs`.
            k: Number of items.
            beam: Beam size; None means the recommender's, and at least k. Unused if the backbone is parallel.

        Raises:
            ValueError: If k or the beam is smaller than 1, packages are missing, or an operator cannot be exported.
        """
        from gritvq.items.recommenders.program import write_recommender

        return write_recommender(self, folder, format, k, self._beam(k, beam))

    def save_pretrained(self, folder: str | os.PathLike[str], training: Mapping[str, Any] | None = None) -> Path:
        """Write ``config.json``, ``model.safetensors``, the ids (folder ``ids``) and the priority; no pickle.

        Args:
            folder: New, empty, or one that holds a recommender, which is replaced.
            training: Plain values about the run, for ``config.json``; ``trained`` where None.

        Raises:
            ValueError: If the path is a file, or a folder with other files.
        """
        told = dict(self.trained if training is None else training)
        extra = {"max_history": self.max_history, "beam": self.beam, "ids": _digest(self.ids)}
        extra |= ({"exclude_seen": True} if self.exclude_seen else {}) | ({"training": told} if told else {})
        others = {
            _IDS: self.ids.save,
            _PRIORITY: lambda path: save_file({"priority": self.priority.cpu().contiguous()}, path),
        }
        return write_folder(folder, _KIND, self.backbone, extra, others)

    @staticmethod
    def is_saved_in(folder: str | os.PathLike[str]) -> bool:
        """Whether a folder has the ``config.json`` of a recommender, not of something else."""
        try:
            return _KIND in read_config(Path(folder), _KIND)
        except ValueError:
            return False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        ids: SemanticIds | None = None,
        trusted: Iterable[str] = (),
        *,
        revision: str | None = None,
    ) -> GenerativeRecommender:
        """Load a recommender from a folder or, by name, from the Hugging Face Hub; in eval mode.

        Args:
            folder: Folder written by :meth:`save_pretrained`, or ``"owner/name"`` (needs ``huggingface_hub``).
            ids: The ids it was trained on, matched by key: in any order, and possibly with more items, such as those
                of :meth:`SemanticIds.add` or those that the training left out. Item rows are then those of these ids.
                None loads those in the folder. Appended tokens that are larger than in training are clamped to the
                largest known one in ``codes``, so such an item shares the score of another item; ``ids`` stay as given.
            trusted: Modules besides ``gritvq`` that its classes may come from.
            revision: Branch, tag or commit on the Hub.

        Raises:
            ValueError: If files are missing or damaged, or the ids are not those of training.
        """
        files = (CONFIG, WEIGHTS, _PRIORITY, f"{_IDS}/*")
        folder = local_folder(folder, revision=revision, what="the folder of a recommender", files=files)
        config = read_config(folder, _KIND, {"ids": str, "max_history": int, "beam": int})
        own = SemanticIds.load(folder / _IDS) if ids is None or _digest(ids) != config["ids"] else ids
        ids = own if ids is None else ids
        places = None if _digest(own) != config["ids"] else _places(own, ids)
        if places is None:
            raise ValueError(
                f"expected the ids that {folder} was trained on, sha256 {config['ids'][:12]}, or these with items "
                f"added, got others, {_digest(ids)[:12]}; train again, or load it without ids to use those in the "
                "folder"
            )
        backbone = rebuilt(config[_KIND], folder, trusted)
        if not isinstance(backbone, Backbone):
            raise ValueError(
                f"expected a recommender's backbone in {folder}, got {type(backbone).__name__}; copy the folder again"
            )
        load_weights(backbone, folder, config)
        priority = torch.zeros(len(ids))
        priority[places] = _read_priority(folder, config, len(own))
        sizes, read = backbone.codebook_sizes, ids
        if ids.collisions == "append" and ids.codebook_sizes[:-1] == sizes[:-1] and ids.codebook_sizes != sizes:
            read = SemanticIds(ids.codes.minimum(torch.tensor(sizes) - 1), sizes, ids.items)
        settings = {name: config[name] for name in ("max_history", "beam")}
        exclude_seen = config.get("exclude_seen", False)
        if not isinstance(exclude_seen, bool):
            raise ValueError(f"expected exclude_seen true or false in {folder}, got {exclude_seen!r}; copy it again")
        made = cls(backbone, read, **settings, priority=priority, exclude_seen=exclude_seen).eval()
        made.ids = ids
        made.trained = training if isinstance(training := config.get("training"), dict) else {}
        return made

    def _beam(self, k: int, beam: int | None) -> int:
        """The beam size of a search for k items."""
        if k < 1 or (beam is not None and beam < 1):
            raise ValueError(f"expected k >= 1 and a beam >= 1, got {k} and {beam}; give larger ones")
        return max(k, self.beam if beam is None else beam)

    def _filter(
        self,
        histories: Histories | Sequence[Sequence[int]],
        allowed: Tensor | None,
        exclude: Histories | Sequence[Sequence[int]] | None,
    ) -> ItemFilter | None:
        if self.exclude_seen and (exclude is None or len(exclude) == len(histories)):  # else the filter says so
            exclude = histories if exclude is None else Histories.of(histories).joined(Histories.of(exclude))
        if allowed is None and exclude is None:
            return None
        return ItemFilter(self.num_items, len(histories), allowed=allowed, exclude=exclude)

    def _search(self, histories: Histories | Sequence[Sequence[int]], beam: int, listed: FilteredOrder | None) -> Beams:
        if not len(histories):
            return Beams(self.codes.new_empty(0, beam), self.priority.new_empty(0, beam))
        with eval_mode(self):
            found = beam_search(self.backbone, self._read(histories), self.trie, beam, listed=listed)
        check_no_nan(found.scores)
        return found

    def _read(self, histories: Histories | Sequence[Sequence[int]]) -> Context:
        return self.backbone.read(*self._codes(histories, self.max_history))

    def _channel_log_probs(self, histories: Histories | Sequence[Sequence[int]]) -> Tensor:
        """Log-probabilities (B, V) of the codes of all channels."""
        with eval_mode(self):
            return channel_log_probs(self.backbone, self._read(histories))

    def _codes(self, histories: Histories | Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
        """Ids (B, T, Q) of the newest items, padded with 0, and the number of items per history."""
        given = Histories.of(histories)
        check_items(given.items, self.num_items)
        rows = given.aligned(length).to(self.codes.device)
        valid = rows >= 0
        return self.codes[rows.clamp(min=0)] * valid[..., None], valid.sum(1)


def _read_priority(folder: Path, config: Mapping[str, Any], num_items: int) -> Tensor:
    priority = read_tensors(folder, _PRIORITY, config).get("priority")
    if priority is None or priority.shape != (num_items,):
        found = "none" if priority is None else tuple(priority.shape)
        raise ValueError(
            f"expected a priority of {num_items} items in {folder / _PRIORITY}, got {found}; copy the folder again"
        )
    return priority


def _places(old: SemanticIds, ids: SemanticIds) -> Tensor | None:
    """Rows of the old items; None unless all have their old ids and codebook sizes (except the appended token's)."""
    levels = len(old.codebook_sizes) - (old.collisions == "append")
    if ids.collisions != old.collisions or ids.codebook_sizes[:levels] != old.codebook_sizes[:levels]:
        return None
    rows = ids.rows_of(old.items, unknown="skip")
    fits = len(ids.codebook_sizes) == len(old.codebook_sizes) and bool((rows >= 0).all())
    return rows if fits and torch.equal(ids.codes[rows], old.codes) else None


def _digest(ids: SemanticIds) -> str:
    told = hashlib.sha256(repr((tuple(ids.codebook_sizes), ids.items)).encode())
    told.update(ids.codes.contiguous().numpy().tobytes())
    return told.hexdigest()
