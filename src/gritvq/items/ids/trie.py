"""Prefix trie of a catalogue's ids: which indices may follow a prefix, for batches of prefixes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.items.ids.checks import checked_codes, checked_sizes
from gritvq.items.ids.filters import FilteredOrder
from gritvq.tokens import EOS, Vocabulary

__all__ = ["PrefixTrie", "TrieLogitsProcessor"]

_FEW = 16  # a level is sparse if on average at most 1 / _FEW of its codes may follow a prefix


class PrefixTrie(nn.Module):
    """All prefixes of a set of ids in compressed sparse row form; a module, so it moves with ``.to(device)``.

    A node is a distinct prefix. Node 0 is the empty prefix; nodes are sorted by level and lexicographically within a
    level, so node v has the children ``first_child[v] .. first_child[v + 1] - 1``. A child is found by binary search in
    the sorted keys ``parent * max(K) + index``. Node -1 means no prefix: it has no children, and every step from it
    returns -1. Several rows may share an id.

    The rows below any node are neighbors in ``rows``, so that a filter of rows is a filter of nodes: see
    :meth:`reaches`. Memory is 32 bytes per node and 8 per row; no n x K matrix is built.

    Args:
        codes: Ids (n, Q), one row per item, int64.
        codebook_sizes: Codes K per level, Q entries.
        priority: Sorts rows that share an id, largest first (n,); ties and None keep the order of the rows.

    Raises:
        ValueError: If there are no rows, shapes are wrong, or an index is out of range.

    Example:
        >>> trie = PrefixTrie(torch.tensor([[0, 1], [0, 2], [1, 0], [0, 2]]), (2, 3))
        >>> nodes = trie.step(trie.root(2), torch.tensor([0, 1]))
        >>> trie.allowed(nodes, 1)
        tensor([[False,  True,  True],
                [ True, False, False]])
        >>> leaves = trie.walk(torch.tensor([[0, 2], [1, 0], [1, 1]]))
        >>> [trie.rows_of(leaf) for leaf in leaves.tolist()]
        [[1, 3], [2], []]

    References:
        Su et al., "Vectorizing the trie: efficient constrained decoding for LLM-based generative retrieval on
        accelerators" (STATIC), 2026, arXiv 2602.22647 (the transition matrix); we have no dense levels.
    """

    first_child: Tensor
    code: Tensor
    keys: Tensor
    first_row: Tensor
    rows: Tensor

    def __init__(
        self, codes: Int[Tensor, "n Q"], codebook_sizes: Sequence[int], *, priority: Float[Tensor, " n"] | None = None
    ) -> None:
        super().__init__()
        self.codebook_sizes = checked_sizes(codebook_sizes)
        levels, codes = len(self.codebook_sizes), checked_codes(codes, self.codebook_sizes)
        if not len(codes):
            raise ValueError("expected at least one id, got none; pass the ids of items")
        if priority is not None and priority.shape != codes.shape[:1]:
            raise ValueError(
                f"expected one priority per row, ({len(codes)},), got {tuple(priority.shape)}; pass n of them"
            )
        order = torch.arange(len(codes))
        if priority is not None:
            order = priority.detach().cpu().argsort(descending=True, stable=True)
        for level in reversed(range(levels)):
            order = order[codes[order, level].argsort(stable=True)]
        ordered = codes[order]

        self.offsets = [0, 1]  # level l has the nodes offsets[l] .. offsets[l + 1] - 1
        self.largest_fan_out: list[int] = []
        differs = torch.zeros(len(codes), dtype=torch.bool)
        differs[0] = True
        parent = torch.zeros(len(codes), dtype=torch.int64)  # of every row's prefix
        parents, edges, starts = [], [], [torch.zeros(1, dtype=torch.int64)]
        for level in range(levels):
            differs[1:] |= ordered[1:, level] != ordered[:-1, level]
            heads = differs.nonzero()[:, 0]
            parents.append(parent[heads])
            edges.append(ordered[heads, level])
            starts.append(heads)
            self.largest_fan_out.append(int((parents[-1] - self.offsets[level]).bincount().amax()))
            parent = self.offsets[-1] + differs.cumsum(0) - 1
            self.offsets.append(self.offsets[-1] + len(heads))
        every_parent = torch.cat(parents)
        code = torch.cat([torch.zeros(1, dtype=torch.int64), *edges])
        inner = torch.arange(self.num_nodes + 1)
        tables = {
            "first_child": 1 + torch.searchsorted(every_parent, inner),
            "code": code,
            "keys": every_parent * max(self.codebook_sizes) + code[1:],
            "first_row": torch.cat([*starts, torch.tensor([len(codes)])]),  # of every node, in the order of the ids
            "rows": order,
        }
        self.largest_group = int(tables["first_row"][self.offsets[-2] :].diff().amax())
        for name, table in tables.items():
            self.register_buffer(name, table.contiguous(), persistent=False)  # rebuilt from the ids

    @property
    def num_levels(self) -> int:
        """Length Q of an id."""
        return len(self.codebook_sizes)

    @property
    def num_nodes(self) -> int:
        """Number of distinct prefixes, including the empty one and whole ids."""
        return self.offsets[-1]

    @property
    def num_leaves(self) -> int:
        """Number of distinct ids."""
        return self.offsets[-1] - self.offsets[-2]

    def root(self, batch: int) -> Int[Tensor, " B"]:
        """Nodes of B empty prefixes."""
        return torch.zeros(batch, dtype=torch.int64, device=self.code.device)

    def allowed(self, nodes: Int[Tensor, "*batch"], level: int) -> Bool[Tensor, "*batch K"]:
        """Which indices of ``level`` may follow the prefixes ``nodes``; none after a node of another level.

        Args:
            nodes: Prefixes of length ``level``; -1 for no prefix.
            level: 0 .. Q - 1.

        Raises:
            ValueError: If there is no such level.
        """
        self._check(level)
        first, count = self.offsets[level], self.offsets[level + 1] - self.offsets[level]
        flat = nodes.flatten()
        if count < len(flat):  # compute every node of the level once; an additional row is for no prefix
            masks = self._masks(torch.arange(first, first + count + 1, device=flat.device), level)
            places = flat - first
            good = (places >= 0) & (places < count)
            return masks[places.where(good, torch.full_like(places, count))].unflatten(0, nodes.shape)
        return self._masks(flat, level).unflatten(0, nodes.shape)

    def step(self, nodes: Int[Tensor, "*batch"], codes: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """The children of ``nodes`` with the indices ``codes``; -1 if that is not a prefix of an id."""
        largest = max(self.codebook_sizes)
        keys = nodes * largest + codes
        found = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        good = (self.keys[found] == keys) & (nodes >= 0) & (codes >= 0) & (codes < largest)
        return (found + 1).where(good, torch.full_like(found, -1))

    def walk(self, prefixes: Int[Tensor, "*batch l"]) -> Int[Tensor, "*batch"]:
        """The nodes of prefixes (*batch, l), l <= Q; -1 if no id starts with them."""
        nodes = torch.zeros(prefixes.shape[:-1], dtype=torch.int64, device=self.code.device)
        for level in range(prefixes.shape[-1]):
            nodes = self.step(nodes, prefixes[..., level])
        return nodes

    def level(self, level: int) -> Int[Tensor, " nodes"]:
        """All nodes of prefixes of length ``level``, 0 .. Q, in lexicographic order."""
        return torch.arange(self.offsets[level], self.offsets[level + 1], device=self.code.device)

    def prefixes_of(self, nodes: Int[Tensor, " B"], length: int) -> Int[Tensor, "B l"]:
        """The prefixes (B, l) of nodes of level ``length``; undefined for other nodes."""
        codes = []
        for _ in range(length):
            codes.append(self.code[nodes])
            nodes = self.keys[nodes - 1] // max(self.codebook_sizes)
        return torch.stack([*reversed(codes)], 1) if codes else nodes.new_zeros(len(nodes), 0)

    def children_of(self, nodes: Int[Tensor, " B"]) -> tuple[Int[Tensor, " C"], Int[Tensor, " C"]]:
        """All children of the nodes, and the position of each child's parent in ``nodes``."""
        known = nodes >= 0
        nodes = nodes.where(known, torch.zeros_like(nodes))
        counts = (self.first_child[nodes + 1] - self.first_child[nodes]) * known
        places = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), counts)
        within = torch.arange(len(places), device=nodes.device) - (counts.cumsum(0) - counts)[places]
        return self.first_child[nodes][places] + within, places

    def padded_children(self, nodes: Int[Tensor, "*batch"], level: int) -> Int[Tensor, "*batch F"]:
        """The children of prefixes of length ``level``, in the order of their codes, padded with -1.

        F is the largest number of children that a prefix of this length has. A node of another length has none.
        """
        self._check(level)
        here = (nodes >= self.offsets[level]) & (nodes < self.offsets[level + 1])
        inner = nodes.where(here, torch.zeros_like(nodes))
        end = self.first_child[inner + 1].where(here, torch.zeros_like(nodes))
        columns = torch.arange(self.largest_fan_out[level], device=nodes.device)
        children = self.first_child[inner][..., None] + columns
        return children.where(children < end[..., None], torch.full_like(children, -1))

    def reaches(self, nodes: Int[Tensor, " B *batch"], listed: FilteredOrder) -> Bool[Tensor, " B *batch"]:
        """Whether the ids that start with a node have a row that its list may have; false for -1.

        Args:
            nodes: Nodes of any level.
            listed: The rows that each of B lists may have, along ``rows``.
        """
        start, end = self._span(nodes)
        return (listed.num_before(end) > listed.num_before(start)) & (nodes >= 0)

    def sizes_of(self, leaves: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Number of rows with the id of each leaf; 0 for other nodes."""
        start, end = self._span(leaves)
        return (end - start) * (leaves >= self.offsets[-2]) * (leaves < self.num_nodes)

    def expand(self, leaves: Int[Tensor, "B W"], count: int, listed: FilteredOrder | None = None) -> Int[Tensor, "B k"]:
        """The first ``count`` rows of ranked leaves.

        Args:
            leaves: Leaves, best first; other nodes have no rows.
            count: Number of rows k.
            listed: The rows that each list may have, along ``rows``; None for all.

        Returns:
            Rows (B, k) by leaf, then by decreasing priority, then by row; -1 after the last.
        """
        return self.expand_places(leaves, count, listed)[0]

    def expand_places(
        self, leaves: Int[Tensor, "B W"], count: int, listed: FilteredOrder | None = None
    ) -> tuple[Int[Tensor, "B k"], Int[Tensor, "B k"]]:
        """Rows as of :meth:`expand`, and the position of each row's leaf in ``leaves``; undefined after the last."""
        start, end = self._span(leaves)
        sizes = self.sizes_of(leaves)
        if listed is not None:
            sizes = (listed.num_before(end) - listed.num_before(start)) * (sizes > 0)
        ends = sizes.cumsum(1)
        wanted = torch.arange(count, device=leaves.device).expand(leaves.shape[0], -1).contiguous()
        if torch.compiler.is_exporting():  # the same with operators that ONNX has
            groups = (ends[:, None] <= wanted[..., None]).sum(-1)
        else:
            groups = torch.searchsorted(ends, wanted, right=True)
        good = groups < leaves.shape[1]
        groups = groups.clamp(max=leaves.shape[1] - 1)
        within = wanted - (ends - sizes).gather(1, groups)
        places = start.gather(1, groups)
        if listed is None:
            places = places + within
        else:  # the first place with so many listed rows between the leaf's first place and it; by bisection
            known, last = listed.num_before(places), end.gather(1, groups) - 1
            for _ in range((self.largest_group - 1).bit_length()):
                middle = (places + last) // 2
                enough = listed.num_before(middle + 1) - known > within
                places, last = places.where(enough, middle + 1), middle.where(enough, last)
        rows = self.rows[places.clamp(max=len(self.rows) - 1)]
        return rows.where(good, torch.full_like(rows, -1)), groups

    def leaves_of_rows(self) -> Int[Tensor, " n"]:
        """Position of each row's id among the distinct ids."""
        sizes = self.first_row[self.offsets[-2] :].diff()
        places = torch.arange(self.num_leaves, device=self.rows.device).repeat_interleave(sizes)
        return torch.empty_like(places).scatter_(0, self.rows, places)

    def rows_of(self, leaf: int) -> list[int]:
        """Rows with the id of a leaf; empty for other nodes."""
        if not self.offsets[-2] <= leaf < self.num_nodes:
            return []
        return self.rows[int(self.first_row[leaf]) : int(self.first_row[leaf + 1])].tolist()

    def _masks(self, nodes: Tensor, level: int) -> Tensor:
        """Masks (nodes, K) of allowed indices."""
        children, size = self.padded_children(nodes, level), self.codebook_sizes[level]
        codes = self.code[children.clamp(min=0)].masked_fill_(children < 0, size)
        mask = torch.zeros(len(nodes), size + 1, dtype=torch.bool, device=nodes.device)
        return mask.scatter_(1, codes, True)[:, :size]  # the last column is for padding

    def _span(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """First place in ``rows`` of each node's rows, and the place after the last; undefined for what is no node."""
        known = nodes.clamp(0, self.num_nodes - 1)
        start, end = self.first_row[known], self.first_row[known + 1]
        return start, end.where(end > start, torch.full_like(end, len(self.rows)))  # the next node is a level below

    def _check(self, level: int) -> None:
        if not 0 <= level < self.num_levels:
            raise ValueError(f"expected a level in [0, {self.num_levels}), got {level}; nothing follows whole ids")


class TrieLogitsProcessor:
    """Restricts ``generate`` of transformers to existing ids; pass it in the list ``logits_processor``.

    Tokens are those of a :class:`gritvq.tokens.Vocabulary` of the levels. Scores of tokens that are not allowed are set
    to -inf in place. After a whole id, and after tokens that no id starts with, only ``end_token`` is allowed.

    Args:
        trie: Trie of the ids, on the device of the scores.
        prompt_length: Tokens before the id: 1 for an encoder-decoder, the prompt's length for a decoder-only model.
        first_token: Token of index 0 at level 0.
        end_token: Token that ends an id.

    Example:
        >>> trie = PrefixTrie(torch.tensor([[0, 1], [1, 0]]), (2, 2))
        >>> processor = TrieLogitsProcessor(trie, prompt_length=1, first_token=3, end_token=2)
        >>> processor(torch.tensor([[1, 3], [1, 4]]), torch.zeros(2, 7)).isfinite().nonzero().tolist()
        [[0, 6], [1, 5]]
    """

    def __init__(
        self, trie: PrefixTrie, *, prompt_length: int, first_token: int = EOS + 1, end_token: int = EOS
    ) -> None:
        self.trie, self.prompt_length, self.end_token = trie, prompt_length, end_token
        self.vocabulary = Vocabulary(trie.codebook_sizes, first_token=first_token)

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Mask the scores of the next token.

        Raises:
            ValueError: If there are fewer tokens than ``prompt_length``, or the model's vocabulary is too small.
        """
        level, levels = input_ids.shape[1] - self.prompt_length, self.trie.num_levels
        if level < 0 or scores.shape[1] < self.vocabulary.vocab_size:
            raise ValueError(
                f"expected at least {self.prompt_length} tokens and a vocabulary of {self.vocabulary.vocab_size}, got "
                f"{input_ids.shape[1]} and {scores.shape[1]}; correct prompt_length, or the model's vocabulary"
            )
        nodes = self.trie.walk(self.vocabulary.indices_of(input_ids[:, self.prompt_length :][:, :levels]))
        ends = scores[:, self.end_token].clone()
        if level >= levels:
            scores.fill_(-math.inf)
            scores[:, self.end_token] = ends
            return scores
        first, last = self.vocabulary.first_tokens[level : level + 2]
        children = self.trie.offsets[level + 2] - self.trie.offsets[level + 1]
        prefixes = self.trie.offsets[level + 1] - self.trie.offsets[level]
        if _FEW * children <= prefixes * (last - first):  # copying a few scores is faster than masking all
            found, rows = self.trie.children_of(nodes)
            tokens = first + self.trie.code[found]
            kept = scores[rows, tokens]
            scores.fill_(-math.inf)[rows, tokens] = kept
        else:
            scores[:, :first].fill_(-math.inf)
            scores[:, last:].fill_(-math.inf)
            scores[:, first:last].masked_fill_(~self.trie.allowed(nodes, level), -math.inf)
        scores[:, self.end_token] = ends.masked_fill_(nodes >= 0, -math.inf)
        return scores
