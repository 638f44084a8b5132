"""Which split a name says: training, validation or test."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["SPLITS", "folder_looks_held_out", "looks_held_out", "split_of"]

SPLITS = ("train", "validation", "test")
_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "validate", "minival", "dev", "devel", "eval", "evaluation"),
    "test": ("test", "testing", "tests", "testdev", "holdout", "heldout"),
}
_PICTURES = ("image", "images", "img", "imgs", "pictures", "photos")
_ENDINGS = ("", "set", "split", "data", *_PICTURES)  # ``valset``, ``testimages``
_SPLIT_OF = {word + ending: split for split, words in _WORDS.items() for word in words for ending in _ENDINGS}
_TWO_WORDS = {("hold", "out"): "holdout", ("held", "out"): "heldout"}
_FILLERS = {"of", "set", "split", "data", *_PICTURES}


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
        if split := _only_split(words):
            return split, part
    return next(((_SPLIT_OF[word], part) for part, words in said for word in words if word in _SPLIT_OF), None)


def folder_looks_held_out(folder: Path) -> bool:
    """Whether the name of a folder or file says so, or, where that says nothing, that of the folder around it.

    Example:
        >>> folder_looks_held_out(Path("coco/val2017")), folder_looks_held_out(Path("yolo/valid/images"))
        (True, True)
    """
    *_, outer, own = ["", *folder.absolute().parts]
    says_nothing = _FILLERS.issuperset(_words(own))
    return looks_held_out([Path(own).stem]) or (says_nothing and _only_split(_words(outer)) in ("validation", "test"))


def looks_held_out(parts: Iterable[str]) -> bool:
    """Whether a part names validation or test pictures, also beside other words: ``COCO_val2014_42``."""
    return any(_SPLIT_OF.get(word, "train") != "train" for part in parts for word in _words(part))


def _only_split(words: Sequence[str]) -> str | None:
    """The split that words say which say nothing else."""
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return splits.pop() if len(splits) == 1 and all(word in _FILLERS or word in _SPLIT_OF for word in words) else None


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
