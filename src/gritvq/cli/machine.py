"""The device that a verb computes on."""

from __future__ import annotations

from typing import Any

from gritvq.cli.output import trusted_argument

__all__ = ["device_argument", "device_named", "machine_arguments"]


def device_argument(parser: Any) -> None:
    """``--device``, for :func:`device_named`."""
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda:1; auto uses a GPU if there is one"
    )


def device_named(name: str) -> Any:
    """The device of this name; raises a ValueError if this machine has none."""
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # depends on the type of device
        raise ValueError(
            f"expected a device that this machine has, got {name!r} ({str(error).splitlines()[0]}); try --device auto"
        ) from error
    return device


def machine_arguments(parser: Any, items: int | None = None) -> None:
    """``--batch_size``, ``--device`` and ``--trusted`` of verbs that use a tokenizer.

    Args:
        parser: Of the verb.
        items: What ``--batch_size`` is for items if not given, as the help says; the verb then gets None.
    """
    said = "samples that are computed together, at most"
    if items is None:
        parser.add_argument("--batch_size", type=int, default=64, help=said)
    else:
        said = f"{said}; 64, or {items} items, if not given"
        parser.add_argument("--batch_size", type=int | None, default=None, help=said)
    device_argument(parser)
    trusted_argument(parser)
