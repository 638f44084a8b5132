"""What is on the disk: old or new whenever the writer dies, refused when a bit is flipped, open as the umask says."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gritvq import FreeCodebook, fsq
from gritvq.files import place_of_file, regular_file, replacing_files, write_json
from gritvq.items import (
    CollaborativeLoss,
    DepthDecoder,
    GenerativeRecommender,
    ItemTokenizer,
    ResidualKMeans,
    SemanticIds,
)
from gritvq.items.catalogue import open_vectors, read_catalogue, read_interactions
from gritvq.saving import load_weights, read_config, write_folder
from gritvq.tokens import TokenRow, read_tokens, write_tokens
from gritvq.training.checkpoints import CheckpointFiles

DEAD = 9


class Artefact:
    """One kind of thing on the disk, in two versions, 1 and 2.

    Args:
        write: Writes a version to a path.
        read: Says which version is there; an error of ours if it is none.
        name: Of its path.
    """

    def __init__(self, write: Callable[[Path, int], object], read: Callable[[Path], int], name: str = "artefact"):
        self.write, self.read, self.name = write, read, name


def _component(path: Path, version: int) -> None:
    codebook = FreeCodebook(2 * version, 3)
    codebook.weight.data.fill_(version)
    write_folder(path, "codebook", codebook, {"version": version})


def _component_version(path: Path) -> int:
    config = read_config(path, "codebook")
    codebook = FreeCodebook(config["codebook"]["init_args"]["dim"], 3)
    load_weights(codebook, path, config)
    assert codebook.weight.shape == (3, 2 * config["version"]) and (codebook.weight == config["version"]).all()
    return int(config["version"])


def _tokenizer(path: Path, version: int) -> None:
    x = torch.randn(16, 2 + version, generator=torch.Generator().manual_seed(version))
    ResidualKMeans(codebook_size=2 + version, num_levels=2).fit(x).save_pretrained(path)


def _tokenizer_version(path: Path) -> int:
    tokenizer = ItemTokenizer.from_pretrained(path)
    assert tokenizer.codebook_sizes == (tokenizer.dim,) * 2
    return tokenizer.dim - 2


def _ids_of(version: int) -> SemanticIds:
    codes = torch.arange(8)[:, None] // torch.tensor([4, 2])
    return SemanticIds.assign(codes + version, (8, 8), [f"v{version} {row}" for row in range(8)])


def _ids_version(path: Path) -> int:
    ids = SemanticIds.load(path)
    version = int(ids.items[0][1])  # type: ignore[index]
    assert ids == _ids_of(version)
    return version


def _recommender(path: Path, version: int) -> None:
    ids = _ids_of(version)
    backbone = DepthDecoder(ids.codebook_sizes, 4, num_layers=1, num_heads=1, hidden_dim=4)
    for parameter in backbone.parameters():
        parameter.data.fill_(version)
    GenerativeRecommender(backbone, ids, beam=version, priority=torch.full((8,), version)).save_pretrained(path)


def _recommender_version(path: Path) -> int:
    found = GenerativeRecommender.from_pretrained(path)
    assert found.ids == _ids_of(found.beam) and (found.priority == found.beam).all()
    assert all((parameter == found.beam).all() for parameter in found.backbone.parameters())
    return found.beam


def _tokens(path: Path, version: int) -> None:
    pictures = [
        TokenRow(f"v{version} {name}.png", torch.arange(6).view(2, 3, 1) + version, {"height": 8, "width": 12})
        for name in "ab"
    ]
    write_tokens(path, pictures)


def _tokens_version(path: Path) -> int:
    pictures = read_tokens(path)
    version = int(pictures[0].name[1])
    assert [picture.name for picture in pictures] == [f"v{version} a.png", f"v{version} b.png"]
    assert all(
        p.columns == {"height": 8, "width": 12} and torch.equal(p.tokens, torch.arange(6).view(2, 3, 1) + version)
        for p in pictures
    )
    return version


def _checkpoint(path: Path, version: int) -> None:
    CheckpointFiles().save_checkpoint({"state_dict": {"weight": torch.full((9,), version)}, "step": version}, path)


def _checkpoint_version(path: Path) -> int:
    found = CheckpointFiles().load_checkpoint(path, weights_only=True)
    assert (found["state_dict"]["weight"] == found["step"]).all()
    return int(found["step"])


def _any_files(path: Path, version: int) -> None:
    with replacing_files(path) as scratch:
        for name in ("a", "b/c"):
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_text(str(version))


def _any_version(path: Path) -> int:
    found = {place_of_file(path, "a").read_text(), place_of_file(path / "b", "c").read_text()}
    assert len(found) == 1
    return int(found.pop())


ARTEFACTS = {
    "component": Artefact(_component, _component_version),
    "item tokenizer": Artefact(_tokenizer, _tokenizer_version),
    "ids": Artefact(lambda path, version: _ids_of(version).save(path), _ids_version),
    "recommender": Artefact(_recommender, _recommender_version),
    "tokens npz": Artefact(_tokens, _tokens_version, "a.npz"),
    "tokens parquet": Artefact(_tokens, _tokens_version, "a.parquet"),
    "json": Artefact(write_json, lambda path: int(json.loads(path.read_text())), "a.json"),
    "checkpoint": Artefact(_checkpoint, _checkpoint_version, "last.ckpt"),
    "several files": Artefact(_any_files, _any_version),
}


def in_a_child(work: Callable[[], object]) -> int:
    """Exit code of a process that does the work; 0 where it ended well."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying(work: Callable[[], object], call: int, folder: Path) -> Callable[[], object]:
    """The work, ended without a word just before its n-th call that changes files in the folder."""
    left = [call]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(args[0], str) and args[0].startswith(str(folder)) and args[2] & ~os.O_CLOEXEC
        else:
            changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
        if changes:
            left[0] -= 1
            if not left[0]:
                os._exit(DEAD)

    def watched() -> None:
        sys.addaudithook(watch)
        work()

    return watched


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def soak(*kinds: str) -> list[Any]:
    """All kinds, these ones only where time does not matter."""
    return [pytest.param(kind, marks=pytest.mark.soak if kind in kinds else ()) for kind in ARTEFACTS]


@pytest.mark.parametrize("kind", soak("ids", "recommender", "item tokenizer", "tokens parquet"))
def test_old_or_new_wherever_the_writer_dies(kind: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[kind]
    artefact.write(tmp_path / "old" / artefact.name, 1)
    whole = files_of(tmp_path / "old")
    found = []
    for call in range(1, 200):
        folder = tmp_path / str(call)
        path = folder / artefact.name
        shutil.copytree(tmp_path / "old", folder)
        code = in_a_child(dying(lambda path=path: artefact.write(path, 2), call, folder))
        found.append(artefact.read(path))
        if code == 0:
            break
        assert code == DEAD
        assert in_a_child(lambda path=path: artefact.write(path, 1)) == 0
        assert artefact.read(path) == 1 and files_of(folder) == whole, call  # nothing is left over
    assert found == sorted(found) and set(found) == {1, 2} and len(found) > 3


@pytest.mark.parametrize("kind", soak("ids", "recommender", "item tokenizer", "tokens parquet", "component"))
def test_a_first_writer_that_dies_is_in_nobodys_way(kind: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[kind]
    for call in range(1, 200):
        folder = tmp_path / str(call)
        path = folder / artefact.name
        folder.mkdir()
        code = in_a_child(dying(lambda path=path: artefact.write(path, 1), call, folder))
        assert in_a_child(lambda path=path: artefact.write(path, 2)) == 0
        assert artefact.read(path) == 2 and not [name for name in files_of(folder) if "/." in f"/{name}"]
        if code == 0:
            return


@pytest.mark.soak
@pytest.mark.parametrize("kind", ARTEFACTS)
def test_ten_kills_at_random_times(kind: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[kind]
    path = tmp_path / artefact.name
    artefact.write(path, 1)
    clock = random.Random(0)
    killed = 0
    while killed < 10:

        def write_again_and_again() -> None:
            for turn in range(10**6):
                artefact.write(path, 1 + turn % 2)

        child = os.fork()
        if not child:
            try:
                write_again_and_again()
            finally:
                os._exit(1)
        time.sleep(clock.uniform(0.02, 0.5))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        killed += 1
        assert artefact.read(path) in (1, 2)


def test_scratch_of_a_living_writer_stays(tmp_path: Path) -> None:
    with replacing_files(tmp_path) as scratch:
        (scratch / "a").write_text("1")
        assert in_a_child(lambda: write_json(tmp_path / "b.json", 1)) == 0
        assert (scratch / "a").exists()
    assert files_of(tmp_path) == ["a", "b.json"]


def test_what_a_part_left_on_the_way_is_older_than_the_new_whole(tmp_path: Path) -> None:
    """A killed writer of a part leaves files that count; a later writer of the whole replaces them too."""
    for place, text in ((tmp_path / "part", "first"), (tmp_path / "part" / ".written", "second")):
        place.mkdir()
        (place / "a.txt").write_text(text)
    assert place_of_file(tmp_path / "part", "a.txt").read_text() == "second"
    with replacing_files(tmp_path) as scratch:
        (scratch / "part").mkdir()
        (scratch / "part" / "a.txt").write_text("third")
    assert place_of_file(tmp_path / "part", "a.txt").read_text() == "third"


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    _any_files(tmp_path / "old", 1)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="full"), replacing_files(tmp_path / name) as scratch:
            (scratch / "a").write_text("2")
            raise OSError("the disk is full")
    assert files_of(tmp_path) == ["old", "old/a", "old/b", "old/b/c"] and _any_version(tmp_path / "old") == 1


@pytest.mark.parametrize("kind", ["component", "ids", "recommender", "tokens npz", "tokens parquet", "checkpoint"])
def test_a_flipped_bit_is_refused(kind: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[kind]
    artefact.write(tmp_path / artefact.name, 1)
    refused = 0
    for path in (path for path in sorted(tmp_path.rglob("*")) if path.is_file()):
        content = path.read_bytes()
        step = 1 + len(content) // 50
        for place in range(0, len(content), step):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                assert artefact.read(tmp_path / artefact.name) == 1, (path.name, place)  # a space, the name of a field
            except ValueError as error:
                assert "expected" in str(error)
                refused += 1
        path.write_bytes(content)
    assert artefact.read(tmp_path / artefact.name) == 1 and refused > 20


@pytest.mark.parametrize("kind", ["component", "item tokenizer", "ids", "recommender"])
def test_an_edited_header_is_refused_and_one_without_checksums_is_read(kind: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[kind]
    path = tmp_path / artefact.name
    artefact.write(path, 1)
    name = "semantic_ids.json" if kind == "ids" else "config.json"
    header = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps({**header, "another": 1}))
    with pytest.raises(ValueError, match="does not fit its checksum"):
        artefact.read(path)
    sums = header.pop("sha256")
    if kind == "ids":
        header |= {"format_version": 1, "sha256": sums["ids.parquet"]}
    (path / name).write_text(json.dumps(header))  # of before there were checksums
    assert artefact.read(path) == 1


@pytest.mark.parametrize("missing", [1, 30, 64, 66, 80])
def test_a_checkpoint_without_its_end_is_refused(missing: int, tmp_path: Path) -> None:
    """Its records are whole, but its checksum is not."""
    path = tmp_path / "last.ckpt"
    _checkpoint(path, 1)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ValueError, match="expected a whole file"):
        _checkpoint_version(path)


def test_checkpoints_of_before_are_read_and_their_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    weight = torch.randn(64)
    torch.save({"state_dict": {"weight": weight}}, path)  # as Lightning does: CRC-32 of every record, unread by PyTorch
    assert torch.equal(CheckpointFiles().load_checkpoint(path, weights_only=True)["state_dict"]["weight"], weight)
    content = bytearray(path.read_bytes())
    content[content.find(weight.numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["weight"], weight)
    with pytest.raises(ValueError, match="whose checksum differs; it is damaged, take another one"):
        CheckpointFiles().load_checkpoint(path, weights_only=True)


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_permissions_are_those_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        for kind, artefact in ARTEFACTS.items():
            artefact.write(tmp_path / "all" / kind / artefact.name, 1)
            artefact.write(tmp_path / "all" / kind / artefact.name, 2)
    finally:
        os.umask(before)
    for path in (tmp_path / "all").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


@pytest.mark.parametrize("kind", ["component", "ids"])
def test_a_pipe_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[kind]
    artefact.write(tmp_path / "a", 1)
    for name in files_of(tmp_path / "a"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
        with pytest.raises(ValueError, match="expected"):
            artefact.read(tmp_path / name)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("file", "link"):
        assert regular_file(tmp_path / name) == tmp_path / name
    for name, reason in (
        ("none", "does not exist"),
        ("file/x", "does not exist"),
        ("x" * 300, "does not exist"),
        ("a\0b", "does not exist"),
        (".", "is a folder"),
        ("pipe", "is a pipe, a socket or a device"),
        ("device", "is a pipe, a socket or a device"),
    ):
        with pytest.raises(ValueError, match=f"expected a table, got .*, which {reason}"):
            regular_file(tmp_path / name, "a table")
    for place in ("pipe", "device"):
        for read in (
            read_catalogue,
            read_interactions,
            open_vectors,
            lambda path: CollaborativeLoss(str(path)).check(1, fsq(2, 4)),
        ):
            with pytest.raises(ValueError, match="expected"):
                read(tmp_path / place)


def test_a_figure_leaves_the_backend_and_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib\n"
        "from gritvq.plotting import new_figure, save_figure\n"
        "matplotlib.use('svg')\n"
        "figure, axes = new_figure(3, 2, 1, 2)\n"
        "print(save_figure(figure, 'a.png').stat().st_size > 0, matplotlib.get_backend(), *figure.get_size_inches())\n"
        "print(len(axes), 'matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["True", "svg", "3.0", "2.0", "2", "False"]
