"""Sharing artifacts on the Hugging Face Hub, with a model card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gritvq.files import holds_files, replacing_files
from gritvq.interop.artifacts import Shareable, opened
from gritvq.interop.cards import PLOTS, card_of, check_repo_id, check_revision, plots_of
from gritvq.lazy import optional

__all__ = ["prepare_upload", "push_to_hub"]

CARD = "README.md"


def prepare_upload(
    source: Shareable | str | Path,
    repo_id: str,
    folder: str | Path,
    *,
    license: str | None = None,
    run: str | Path | None = None,
    datasets: Sequence[str] = (),
    revision: str | None = None,
    trusted: Iterable[str] = (),
) -> list[Path]:
    """Write what :func:`push_to_hub` uploads to a folder: artifact, ``README.md`` and plots; nothing is uploaded.

    Args:
        source: As for :func:`push_to_hub`.
        repo_id: As for :func:`push_to_hub`.
        folder: New or empty folder.
        license: As for :func:`push_to_hub`.
        run: As for :func:`push_to_hub`.
        datasets: As for :func:`push_to_hub`.
        revision: As for :func:`push_to_hub`.
        trusted: As for :func:`push_to_hub`.

    Returns:
        The files, sorted.

    Raises:
        ValueError: If an argument is wrong, the artifact is damaged, or the folder holds something.
    """
    check_repo_id(repo_id)
    check_revision(revision)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or holds_files(folder)):
        raise ValueError(f"expected a new or empty folder to write to, got {folder}; choose another one")
    with opened(source, run, trusted) as artifact:
        card = card_of(artifact, repo_id, license, None, datasets, revision)
        copies = {name: artifact.place(name) for name in artifact.files}
        copies |= {f"{PLOTS}/{path.name}": path for path in plots_of(artifact)}
        with replacing_files(folder) as scratch:
            for name, place in copies.items():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, scratch / name)
            (scratch / CARD).write_text(card, encoding="utf-8")
    return sorted(folder / name for name in (CARD, *copies))


def push_to_hub(
    source: Shareable | str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload with gritvq",
    license: str | None = None,
    run: str | Path | None = None,
    datasets: Sequence[str] = (),
    token: str | None = None,
    trusted: Iterable[str] = (),
) -> str:
    """Upload an artifact with a model card, so that ``from_pretrained(repo_id)`` loads it; needs ``huggingface_hub``.

    The artifact is loaded and its checksums are compared first, and nothing is uploaded if anything is wrong. A model
    card that the repository has is replaced, as are the plots of an earlier upload; its other files stay.

    Args:
        source: A tokenizer, prior, recommender, model of text or semantic ids; its folder; or the folder of its run,
            whose metrics and plots then come along.
        repo_id: ``"owner/name"``; the repository is made if there is none.
        private: Whether only its owners see it. A public repository that is there already is refused then.
        revision: Branch to upload to, made if there is none; the main branch if None.
        commit_message: Message of the commit.
        license: Identifier as the Hub has it, such as ``"mit"``; the card says ``unknown`` if None.
        run: The run that wrote the artifact, for metrics and plots; not needed if ``source`` is its folder.
        datasets: Names of data sets on the Hub that it was trained on, for the card.
        token: Access token; the one of ``hf auth login`` or the variable ``HF_TOKEN`` if None.
        trusted: Modules besides ``gritvq`` that its classes may come from.

    Returns:
        Address of the repository.

    Raises:
        ValueError: If an argument is wrong, the artifact is damaged, the package is missing, or the Hub refuses.
    """
    check_repo_id(repo_id)
    hub = optional("huggingface_hub", "hub", f"to upload to {repo_id!r}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "upload"
        settings: dict[str, Any] = {"license": license, "run": run, "datasets": datasets, "trusted": trusted}
        prepare_upload(source, repo_id, folder, revision=revision, **settings)
        try:
            api = hub.HfApi(token=token)
            address = str(api.create_repo(repo_id, private=private, exist_ok=True))
            is_public = private and not api.repo_info(repo_id).private
            if not is_public:
                if revision is not None:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                api.upload_folder(
                    repo_id=repo_id,
                    folder_path=str(folder),
                    revision=revision,
                    commit_message=commit_message,
                    delete_patterns=[f"{PLOTS}/*.png"],
                )
        except Exception as error:  # the client's many errors: no token, no permission, no network, no such license
            said = next(iter(str(error).strip().splitlines()), "").rstrip(". ")
            raise ValueError(
                f"expected a Hub that takes {repo_id!r}, got {type(error).__name__}{': ' if said else ''}{said}; is it "
                "reachable, and are you logged in ('hf auth login') with a token that may write there?"
            ) from error
    if is_public:
        raise ValueError(f"expected a private repository, got {repo_id!r}, which is public; choose another name")
    return address
