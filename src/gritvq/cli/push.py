"""The verb ``push``: artifacts to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gritvq.cli.output import report, trusted_argument

__all__ = ["push", "push_arguments"]


def push_arguments(parser: Any) -> None:
    """Arguments of push."""
    parser.add_argument(
        "folder",
        type=str,
        help="folder of a tokenizer, prior, recommender, model of text or semantic ids; or of a run, whose model is "
        "pushed with its metrics and plots",
    )
    parser.add_argument("name", type=str, help="OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("--private", type=bool, default=False, help="whether only its owners see the repository")
    parser.add_argument(
        "--license", type=str | None, default=None, help="such as mit or apache-2.0; the card says unknown without it"
    )
    parser.add_argument("--datasets", type=list[str], default=[], help="data sets on the Hub: [OWNER/NAME,...]")
    parser.add_argument("--revision", type=str | None, default=None, help="branch to push to, made if there is none")
    parser.add_argument("--message", type=str, default="Upload with gritvq", help="message of the commit")
    parser.add_argument(
        "--run", type=str | None, default=None, help="run that wrote the artifact, if the folder is not that of a run"
    )
    parser.add_argument(
        "--dry_run", type=bool, default=False, help="upload nothing, and write what would be uploaded to --out"
    )
    parser.add_argument("--out", type=str, default="to-push", help="new folder for the files of --dry_run")
    trusted_argument(parser)


def push(parser: Any, config: Any) -> None:
    """Push an artifact, or the model of a run, to the Hugging Face Hub, with a model card."""
    from gritvq.interop import prepare_upload, push_to_hub

    names = ("license", "run", "datasets", "revision", "trusted")
    settings = {name: config[name] for name in names}
    rows = [
        ("repository", config.name),
        ("branch", config.revision or "main"),
        ("license", config.license or "unknown; give --license"),
    ]
    if not config.dry_run:
        address = push_to_hub(
            config.folder, config.name, private=config.private, commit_message=config.message, **settings
        )
        report("pushed", [*rows, ("address", address)], {})
        return
    out = Path(config.out)
    files = prepare_upload(config.folder, config.name, out, **settings)
    size = sum(path.stat().st_size for path in files)
    rows += [("files", f"{len(files):,}"), ("size", f"{size / 1e6:,.2f} MB")]
    report("would be pushed", rows, {path.relative_to(out).as_posix(): path for path in files})
