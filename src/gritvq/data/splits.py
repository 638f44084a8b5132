"""Which split a name says: training, validation or test."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["SPLITS", "looks_held_out", "split_of"]

SPLITS = ("train", "validation", "test")
_WORDS = {
    "train": ("train", "training", "trainset"),
    "validation": ("val", "valid", "validation", "validate", "valset", "minival", "dev", "devel", "eval", "evaluation"),
    "test": ("test", "testing", "tests", "testset", "testdev", "holdout", "heldout"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_TWO_WORDS = {("hold", "out"): "holdout", ("held", "out"): "heldout"}
_FILLERS = {"of", "set", "split", "data"}


def split_of(parts: Sequence[str]) -> tuple[str, str] | None:
    """The split that the parts of a relative path name, and the part that says so; None where none does.

    A part is cut into words at everything that is no letter and before capitals (``train2017``, ``DIV2K_valid_HR``,
    ``trainA``). A part of nothing but a split's word, numbers and fillers (``test-00000-of-00001``, ``training_set``)
    comes before one that says more (``cats-test``), and an outer part before an inner one.

    Args:
        parts: Names of folders from outside in, and of a file without its ending where it counts.

    Returns:
        ``"train"``, ``"validation"`` or ``"test"`` with the part, or None.

    Example:
        >>> split_of(["images", "val2017"]), split_of(["train", "test_tube"]), split_of(["cats", "tabby"])
        (('validation', 'val2017'), ('train', 'train'), None)
    """
    said = [(part, words) for part in parts if not _SPLIT_OF.keys().isdisjoint(words := _words(part))]
    for part, words in said:
        splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
        if len(splits) == 1 and all(word in _FILLERS or word in _SPLIT_OF for word in words):
            return splits.pop(), part
    return next(((_SPLIT_OF[word], part) for part, words in said for word in words if word in _SPLIT_OF), None)


def looks_held_out(parts: Iterable[str]) -> bool:
    """Whether a part names validation or test pictures, also beside other words: ``COCO_val2014_42``."""
    return any(_SPLIT_OF.get(word, "train") != "train" for part in parts for word in _words(part))


def _words(part: str) -> list[str]:
    """The words of a name, in lower case and without numbers."""
    cut = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", part)
    words = [word.lower() for word in re.findall(r"[^\W\d_]+", cut)]
    joined: list[str] = []
    for word in words:
        if joined and (joined[-1], word) in _TWO_WORDS:
            word = _TWO_WORDS[joined.pop(), word]
        joined.append(word)
    return joined
