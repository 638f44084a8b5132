"""Sharing: what is pushed to the Hub comes back bitwise, and its card says what is true; the Hub is a folder here."""

from __future__ import annotations

import fnmatch
import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers.utils.hub  # noqa: F401  (it keeps what it finds in huggingface_hub, so before that is replaced)
import yaml
from PIL import Image

from gritvq import FreeCodebook, Quantizer, Tokenizer, VectorQuantizer, fsq, grit_vq, msvq, rq, vq_vae
from gritvq.cli import main
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.interop import model_card, prepare_upload, push_to_hub
from gritvq.items import DepthDecoder, GenerativeRecommender, ResidualKMeans, SemanticIds
from gritvq.priors import AutoregressivePrior, Prior
from gritvq.text import Segmentation, Subwords, TextFormat, TraceModel, Writing, segment_tokenizer, trace
from gritvq.tokens import TokenLayout
from gritvq.training import RunFolder

NAME = "somebody/small"
RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=404)


class Hub:
    """A folder with a folder for every repository and branch, behind the functions of ``huggingface_hub``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commits, self.tokens = folder, [], []
        self.private: dict[str, bool] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.private.setdefault(repo_id, private)
        (self.folder / repo_id / "main").mkdir(parents=True, exist_ok=True)
        return f"https://hub/{repo_id}"

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private[repo_id])

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        (self.folder / repo_id / branch).mkdir(exist_ok=True)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str, delete_patterns: list[str]
    ) -> None:
        place = self.folder / repo_id / (revision or "main")
        for path in [path for path in place.rglob("*") if path.is_file()]:
            if any(fnmatch.fnmatch(path.relative_to(place).as_posix(), pattern) for pattern in delete_patterns):
                path.unlink()
        shutil.copytree(folder_path, place, dirs_exist_ok=True)
        self.commits.append(commit_message)

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if not (self.folder / name).is_dir():
            raise huggingface_hub.errors.RepositoryNotFoundError("404", response=RESPONSE)
        place = self.folder / name / (revision or "main")
        if not place.is_dir():
            raise huggingface_hub.errors.RevisionNotFoundError("404", response=RESPONSE)
        cache = self.folder / "cache" / name / (revision or "main")
        shutil.rmtree(cache, ignore_errors=True)
        for path in [path for path in place.rglob("*") if path.is_file()]:
            within = path.relative_to(place).as_posix()
            if any(fnmatch.fnmatch(within, pattern) for pattern in allow_patterns):
                (cache / within).parent.mkdir(parents=True, exist_ok=True)
                (cache / within).symlink_to(path)  # as in the client's cache
        return str(cache)

    def files(self, name: str = NAME, revision: str = "main") -> set[str]:
        place = self.folder / name / revision
        return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}

    def card(self, name: str = NAME) -> str:
        return (self.folder / name / "main" / "README.md").read_text()


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    real_api, real_download = huggingface_hub.HfApi, huggingface_hub.snapshot_download

    class HfApi:
        def __init__(self, token: str | None = None) -> None:
            found.tokens.append(token)

        def __getattr__(self, name: str) -> Any:
            def called(*arguments: Any, **more: Any) -> Any:
                inspect.signature(getattr(real_api, name)).bind(self, *arguments, **more)  # the real one takes these
                return getattr(found, name)(*arguments, **more)

            return called

    def snapshot_download(*arguments: Any, **more: Any) -> str:
        inspect.signature(real_download).bind(*arguments, **more)
        return found.snapshot_download(*arguments, **more)

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return found


# --- one small artifact of each kind, and what it says ----------------------------------------------------------------


def image_tokenizer(preset: Callable[..., Quantizer] = grit_vq) -> ImageTokenizer:
    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    return ImageTokenizer(ImageEncoder(6, **shape), preset(6, 32), ImageDecoder(6, **shape)).eval()


def text_format() -> TextFormat:
    return TextFormat(Subwords.train([], 256), Segmentation(max_tokens=8, max_segments=4))


def text_tokenizer() -> Any:
    form = text_format()
    return segment_tokenizer(vq_vae(4, 16), form.vocab_size, width=16, depth=1, num_heads=2).use(form).eval()


def text_model() -> TraceModel:
    form = text_format()
    return trace(form.vocab_size, dim=4, width=16, depth=1, num_heads=2, length=64).use(form).eval()


def item_tokenizer() -> ResidualKMeans:
    return ResidualKMeans(codebook_size=4, num_levels=2).fit(EMBEDDINGS)


def semantic_ids(fingerprint: str = "abc") -> SemanticIds:
    codes = torch.randint(0, 4, (12, 2), generator=torch.Generator().manual_seed(0))
    made = {"encoder": "all-MiniLM-L6-v2", "quantizer": fingerprint}
    return SemanticIds.assign(codes, (4, 4), [f"item {n}" for n in range(12)], fingerprint=made)


def recommender() -> GenerativeRecommender:
    ids = semantic_ids()
    backbone = DepthDecoder(ids.codebook_sizes, 8, num_layers=1, num_heads=1, hidden_dim=8)
    return GenerativeRecommender(backbone, ids, priority=torch.arange(12.0)).eval()


def prior(num_classes: int | None = 3) -> AutoregressivePrior:
    layout = TokenLayout((32,), (2, 2))
    made = AutoregressivePrior(layout, num_classes=num_classes, width=16, depth=1, num_heads=2).eval()
    made.fingerprint = "f" * 64
    made.trained = {"version": "0.1.0", "steps": 7, "seed": 0, "classes": ["cat", "dog | wolf", "bird"]}
    return made


EMBEDDINGS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
PICTURES = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
WRITING = Writing(seeds=0, max_tokens=4, max_segments=2)

KINDS: dict[str, tuple[Callable[[], Any], Any, Callable[[Any], Any]]] = {
    "image tokenizer": (image_tokenizer, ImageTokenizer, lambda own: own.encode(PICTURES)),
    "text tokenizer": (text_tokenizer, Tokenizer, lambda own: own.encode("A cat sat. It slept.")),
    "item tokenizer": (item_tokenizer, ResidualKMeans, lambda own: own.encode(EMBEDDINGS)),
    "semantic ids": (semantic_ids, SemanticIds, lambda own: own.codes),
    "recommender": (recommender, GenerativeRecommender, lambda own: own.best([[0, 3], [1]], 5)),
    "prior": (prior, Prior, lambda own: own.sample(2, 1, generator=0)),
    "text model": (text_model, TraceModel, lambda own: own.generate(2, writing=WRITING).tokens),
}


def saved(kind: str, folder: str | Path) -> Path:
    made = KINDS[kind][0]()
    return made.save(folder) if kind == "semantic ids" else made.save_pretrained(folder)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, tuple):
        return all(map(same, first, second))
    return torch.equal(first, second)


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def rows_of(card: str) -> dict[str, str]:
    pairs = re.findall(r"^\| ((?:[^|\\]|\\.)+) \| ((?:[^|\\]|\\.)*) \|$", card, re.MULTILINE)
    return {name: value for name, value in pairs if name != "---"}


def run_examples(card: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    exec(compile(blocks[0], "card", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pushed_comes_back(kind: str, as_folder: bool, hub: Hub) -> None:
    make, cls, says = KINDS[kind]
    torch.manual_seed(0)
    made = make()
    wanted = says(made)
    source: Any = made
    if as_folder:
        source = made.save("artifact") if kind == "semantic ids" else made.save_pretrained("artifact")
        Path("artifact", "notes.txt").write_text("not part of it")
    for message in ("first", "second"):  # twice is fine
        assert push_to_hub(source, NAME, commit_message=message, license="mit") == f"https://hub/{NAME}"
    assert hub.commits == ["first", "second"]
    assert same(says(cls.from_pretrained(NAME)), wanted)
    wanted_files = {
        "semantic ids": {"ids.parquet", "semantic_ids.json"},
        "recommender": {
            *("config.json", "model.safetensors", "priority.safetensors"),
            *("ids/ids.parquet", "ids/semantic_ids.json"),
        },
    }.get(kind, {"config.json", "model.safetensors"})
    assert hub.files() == {"README.md", *wanted_files}
    card = hub.card()
    told = front_matter(card)
    assert told["library_name"] == "gritvq" and told["license"] == "mit" and kind.replace(" ", "-") in told["tags"]
    assert "datasets" not in told and rows_of(card)["kind"] == kind
    run_examples(card)
    assert model_card(source, NAME, license="mit") == card


def test_the_card_of_a_tokenizer_says_what_its_files_say(hub: Hub) -> None:
    tokenizer = image_tokenizer(rq)
    tokenizer.trained = {
        **{"version": "0.1.0", "steps": 1200, "seed": 3},
        "data": {"path": "/home/somebody/secret/cifar10", "splits": {"train": {"pictures": 50000, "from": "train"}}},
    }
    card = model_card(
        tokenizer, NAME, metrics={"psnr": 23.456789, "pictures": 10000, "tokens": 12345678.0, "nothing": None}
    )
    rows = rows_of(card)
    assert rows["class"] == "`gritvq.images.ImageTokenizer`" and rows["encoder"] == "`gritvq.images.ImageEncoder`"
    assert rows["codebook sizes"] == ", ".join(map(str, tokenizer.quantizer.codebook_sizes))
    assert rows["input"] == "pictures of 3 channels, any height and width"
    assert rows["pixels per token and side"] == "4"
    assert rows["parameters"] == f"{sum(p.numel() for p in tokenizer.parameters()):,}"
    assert rows["data"] == "cifar10" and "secret" not in card
    assert (rows["steps"], rows["seed"], rows["version of gritvq"]) == ("1,200", "3", "0.1.0")
    assert rows["split train"] == "50,000 pictures, from train"
    assert (rows["psnr"], rows["pictures"], rows["nothing"]) == ("23.4568", "10,000", "undefined")
    assert rows["tokens"] == "12,345,678"
    assert rows["fingerprint"] == f"`{tokenizer.fingerprint()}`"
    assert front_matter(card)["license"] == "unknown" and "\n## License\n\nUnknown" in card
    assert "## Plots" not in card


def test_a_card_says_nothing_that_nobody_knows() -> None:
    rows = rows_of(card := model_card(image_tokenizer()))
    for name in ("data", "splits", "steps", "seed", "version of gritvq"):
        assert rows[name] == "not said"
    assert "\n## Numbers\n\nNot said.\n" in card


def test_cards_of_the_other_kinds() -> None:
    rows = rows_of(model_card(prior()))
    assert rows["classes"] == "3" and rows["names of the classes"] == r"cat, dog \| wolf, bird" and rows["steps"] == "7"
    assert rows["fingerprint of its tokenizer"] == f"`{'f' * 64}`"
    rows = rows_of(model_card(semantic_ids()))
    assert rows["items"] == "12" and rows["encoder"] == "all-MiniLM-L6-v2" and rows["collisions"] == "append"
    assert rows["fingerprint of their tokenizer"] == "`abc`"
    made = recommender()
    rows = rows_of(model_card(made))
    assert rows["backbone"] == "`gritvq.items.DepthDecoder`" and rows["SHA-256 of its ids"] == f"`{made.ids_digest}`"
    assert rows_of(model_card(item_tokenizer()))["input"] == "embeddings of 5 components"
    assert "at most 8 tokens each" in rows_of(model_card(text_model()))["segments"]
    assert front_matter(model_card(text_model()))["pipeline_tag"] == "text-generation"


@pytest.mark.parametrize("preset", [msvq, fsq])
def test_the_example_has_pictures_of_a_size_that_fits(preset: Any, hub: Hub) -> None:
    push_to_hub(image_tokenizer(lambda d, k: preset(d, k)), NAME)
    assert run_examples(hub.card())["decoded"].ndim == 4


def test_the_example_of_an_unconditional_prior(hub: Hub) -> None:
    push_to_hub(prior(num_classes=None), NAME)
    assert run_examples(hub.card())["tokens"].shape == (2, 2, 2, 1)


class Own(FreeCodebook):
    """A user's class, from a module of their own."""


def test_a_users_class_is_named(hub: Hub) -> None:
    tokenizer = image_tokenizer(lambda d, k: VectorQuantizer(Own(d, k)))
    folder = tokenizer.save_pretrained("artifact")
    with pytest.raises(ValueError, match=rf"pass trusted=\['{__name__}'\]"):
        push_to_hub(folder, NAME)
    assert not hub.commits
    push_to_hub(folder, NAME, trusted=[__name__])
    assert f'trusted=["{__name__}"]' in hub.card() and run_examples(hub.card())["tokens"].ndim == 4
    push_to_hub(tokenizer, NAME)  # one in memory runs already


# --- branches, privacy, data sets -------------------------------------------------------------------------------------


def test_branches(hub: Hub) -> None:
    first, second = image_tokenizer(), image_tokenizer()
    push_to_hub(first, NAME)
    push_to_hub(second, NAME, revision="v2", token="hf_x")
    assert hub.tokens == [None, "hf_x"]
    assert Tokenizer.from_pretrained(NAME).fingerprint() == first.fingerprint()
    assert Tokenizer.from_pretrained(NAME, revision="v2").fingerprint() == second.fingerprint()
    card = (hub.folder / NAME / "v2" / "README.md").read_text()
    assert run_examples(card)["tokenizer"].fingerprint() == second.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_hub_does_not_have(kind: str, hub: Hub, tmp_path: Path) -> None:
    _, cls, _ = KINDS[kind]
    with pytest.raises(ValueError, match=r"or a reachable Hub name, got 'no/body' \(RepositoryNotFoundError\)"):
        cls.from_pretrained("no/body")
    folder = saved(kind, "artifact")
    push_to_hub(folder, NAME)
    with pytest.raises(ValueError, match=r"expected a branch, tag or commit of 'somebody/small' .* got 'v9'"):
        cls.from_pretrained(NAME, revision="v9")
    with pytest.raises(ValueError, match=r"expected no revision for the folder artifact here, got 'v9'"):
        cls.from_pretrained(folder, revision="v9")
    with pytest.raises(ValueError, match=r"or a Hub name 'owner/name', got 'nothing', which is neither"):
        cls.from_pretrained("nothing")


def test_a_public_repository_gets_nothing_private(hub: Hub) -> None:
    push_to_hub(image_tokenizer(), NAME)
    with pytest.raises(ValueError, match="expected a private repository, got 'somebody/small', which is public"):
        push_to_hub(image_tokenizer(), NAME, private=True)
    assert len(hub.commits) == 1
    push_to_hub(image_tokenizer(), "somebody/private", private=True)
    assert hub.private["somebody/private"] and len(hub.commits) == 2


def test_data_sets_are_in_the_front_matter(hub: Hub) -> None:
    push_to_hub(image_tokenizer(), NAME, datasets=["uoft-cs/cifar10", "mnist"])
    assert front_matter(hub.card())["datasets"] == ["uoft-cs/cifar10", "mnist"]


# --- runs -------------------------------------------------------------------------------------------------------------


def a_run(folder: str | Path, kind: str) -> RunFolder:
    """A run with a model, metrics, data and a plot."""
    run = RunFolder(folder)
    places = {"image tokenizer": run.tokenizer, "recommender": run.recommender, "prior": run.prior}
    places |= {"text model": run.text_model, "text tokenizer": run.tokenizer, "item tokenizer": run.tokenizer}
    saved(kind, places[kind])
    run.metrics.write_text('{"psnr": 20.5}')
    run.data.write_text('{"data": "photographs", "splits": {"train": {"pictures": 7, "from": "all but a square"}}}')
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(run.usage)
    run.config.write_text("tokenizer:\n  quantizer:\n    class_path: gritvq.grit_vq\n")
    return run


def test_a_run_brings_its_metrics_and_plots(hub: Hub) -> None:
    run = a_run("run", "image tokenizer")
    push_to_hub(run.path, NAME)
    assert hub.files() == {"README.md", "config.json", "model.safetensors", "plots/usage.png"}
    rows = rows_of(hub.card())
    assert (rows["psnr"], rows["data"], rows["preset"]) == ("20.5", "photographs", "`grit_vq`")
    assert "![How often each code is used](plots/usage.png)" in hub.card()
    first = hub.card()
    push_to_hub(run.tokenizer, NAME, run=run.path)
    assert hub.card() == first
    push_to_hub(run.tokenizer, NAME)  # the folder alone: an earlier upload's plots go
    assert hub.files() == {"README.md", "config.json", "model.safetensors"} and "20.5" not in hub.card()


@pytest.mark.parametrize(("kind", "cls"), [("prior", Prior), ("recommender", GenerativeRecommender)])
def test_of_a_run_the_model_is_pushed(kind: str, cls: Any, hub: Hub) -> None:
    run = a_run("run", kind)
    image_tokenizer().save_pretrained(run.tokenizer)  # beside a prior is its tokenizer
    push_to_hub(str(run.path), NAME)
    assert isinstance(cls.from_pretrained(NAME), cls) and rows_of(hub.card())["psnr"] == "20.5"
    with pytest.raises(ValueError, match=rf"expected the folder of the run that made it, got run, whose {kind}/ has"):
        push_to_hub(run.tokenizer, "somebody/tokenizer", run=run.path)
    assert len(hub.commits) == 1


def test_ids_of_a_run(hub: Hub) -> None:
    run = RunFolder("run")
    item_tokenizer().save_pretrained(run.tokenizer)
    semantic_ids().save(run.ids)
    run.report.write_text(json.dumps({"items": 12, "entropy": 1.25}))
    push_to_hub(run.ids, NAME, run="run")
    assert rows_of(hub.card())["entropy"] == "1.25" and "`report.json` of the run" in hub.card()
    push_to_hub("run", "somebody/tokenizer")
    assert rows_of(hub.card("somebody/tokenizer"))["kind"] == "item tokenizer"
    shutil.rmtree(run.tokenizer)
    push_to_hub("run", "somebody/ids")
    assert SemanticIds.from_pretrained("somebody/ids") == semantic_ids()


def test_a_trained_run(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "2", "--codebook_size", "64", "--out", "demo"]) == 0
    assert main(["push", "demo", NAME, "--license", "apache-2.0"]) == 0
    assert "https://hub/somebody/small" in capsys.readouterr().out
    rows, metrics = rows_of(hub.card()), json.loads(Path("demo/metrics.json").read_text())
    assert (rows["data"], rows["steps"], rows["preset"]) == ("photographs", "2", "`grit_vq`")
    assert rows["split train"].startswith("7 pictures") and rows["psnr"] == f"{metrics['psnr']:.6g}"
    assert {"plots/usage.png", "plots/codebook.png", "plots/reconstructions.png"} <= hub.files()
    assert Tokenizer.from_pretrained(NAME).fingerprint() == Tokenizer.from_pretrained("demo/tokenizer").fingerprint()


def test_a_trained_run_of_a_recommender(hub: Hub) -> None:
    events = [f"{user},{item},{item}" for user in range(30) for item in range(5)]
    Path("data").mkdir()
    Path("data/interactions.csv").write_text("user,item,time\n" + "\n".join(events) + "\n")
    Path("data/items.csv").write_text("item,title\n" + "\n".join(f"{n},item {n}" for n in range(5)) + "\n")
    codes = torch.randint(0, 4, (5, 2), generator=torch.Generator().manual_seed(0))
    SemanticIds.assign(codes, (4, 4), range(5)).save("ids")
    words = ["fit", "items", "--data.folder", "data", "--ids", "ids", "--plan.max_steps", "2", "--out", "run"]
    words += ["--backbone", "gritvq.items.DepthDecoder", "--backbone.dim", "8", "--backbone.num_heads", "1"]
    assert main([*words, "--backbone.num_layers", "1", "--backbone.hidden_dim", "8"]) == 0
    push_to_hub("run", NAME)
    rows = rows_of(hub.card())
    assert (rows["data"], rows["steps"], rows["seed"]) == ("data", "2", "0")
    assert rows["split train"] == "30 users, 90 events" and rows["split test"] == "30 users, 30 events"
    assert rows["weights"] in ("of the best validation", "of the last step") and float(rows["ndcg@10"]) > 0
    loaded = GenerativeRecommender.from_pretrained(NAME)
    assert loaded.trained["steps"] == 2 and same(loaded.scores([[0]]), _loaded_here("run").scores([[0]]))


def _loaded_here(run: str) -> GenerativeRecommender:
    return GenerativeRecommender.from_pretrained(RunFolder(run).recommender)


OLD = Path(__file__).parents[1] / "artefacts" / "0.1.0"


@pytest.mark.parametrize("folder", sorted(path.name for path in OLD.iterdir() if path.is_dir()))
def test_artifacts_of_the_first_version(folder: str, hub: Hub) -> None:
    push_to_hub(OLD / folder, NAME)
    place = hub.folder / NAME / "main"
    for path in (OLD / folder).rglob("*"):
        assert path.is_dir() or (place / path.relative_to(OLD / folder)).read_bytes() == path.read_bytes()
    run_examples(hub.card())


# --- what is wrong uploads nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["name", "a/b/c", "/a", "a/", "a b/c", "-a/b", "a/b-", "a/b.git", "a/b--c", "a/b..c", "ä/b", "", "a/" + "b" * 100],
)
def test_bad_names(name: str, hub: Hub) -> None:
    with pytest.raises(ValueError, match="expected a name 'owner/name' for the Hub"):
        push_to_hub(image_tokenizer(), name)
    with pytest.raises(ValueError, match="expected a name 'owner/name' for the Hub"):
        prepare_upload(image_tokenizer(), name, "out")
    with pytest.raises(ValueError, match="expected a name 'owner/name' for the Hub"):
        model_card(image_tokenizer(), name)
    assert not hub.commits and not hub.folder.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"license": "MIT License"}, "expected the identifier of a license"),
        ({"license": ""}, "expected the identifier of a license"),
        ({"datasets": ["a b"]}, "expected names of data sets on the Hub like 'owner/name', got 'a b'"),
        ({"revision": "a b"}, "expected the name of a branch, got 'a b'"),
        ({"revision": ""}, "expected the name of a branch, got ''"),
        ({"run": "nowhere"}, "expected the folder of the run that made it, got nowhere, which has none like it"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, hub: Hub) -> None:
    with pytest.raises(ValueError, match=message):
        push_to_hub(image_tokenizer(), NAME, **settings)
    assert not hub.commits and not hub.folder.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_artifact_is_not_pushed(kind: str, hub: Hub) -> None:
    folder = saved(kind, "artifact")
    weights = folder / ("ids.parquet" if kind == "semantic ids" else "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="with another checksum"):
        push_to_hub(folder, NAME)
    weights.unlink()
    with pytest.raises(ValueError, match=r"found none; copy the whole folder"):
        push_to_hub(folder, NAME)
    config = folder / ("semantic_ids.json" if kind == "semantic ids" else "config.json")
    config.write_text(config.read_text().replace("sha256", "sha255"))
    with pytest.raises(ValueError):
        push_to_hub(folder, NAME)
    assert not hub.commits and not hub.folder.exists()


def test_no_artifact_at_all(hub: Hub) -> None:
    Path("empty").mkdir()
    Path("file").write_text("x")
    Path("foreign").mkdir()
    Path("foreign/config.json").write_text('{"model_type": "gpt2"}')
    for source, message in (
        ("empty", "got 'empty', which has neither"),
        ("nowhere", "got 'nowhere', which is not a folder"),
        ("file", "got 'file', which is not a folder"),
        ("foreign", "expected a folder of gritvq in .*got something else"),
        (torch.nn.Linear(2, 2), "expected a tokenizer, prior, recommender, .*got Linear"),
    ):
        with pytest.raises(ValueError, match=message):
            push_to_hub(source, NAME)  # type: ignore[arg-type]
    assert not hub.commits and not hub.folder.exists()


def test_a_file_outside_of_the_folder_is_not_taken_along(hub: Hub) -> None:
    from gritvq.files import write_header

    folder = image_tokenizer().save_pretrained("artifact")
    Path("secret").write_text("x")
    content = json.loads((folder / "config.json").read_text())
    write_header(folder / "config.json", content)
    sealed = json.loads((folder / "config.json").read_text())
    sealed["sha256"] |= {"../secret": "0" * 64}
    del sealed["sha256"]["config.json"]
    (folder / "config.json").write_text(json.dumps(sealed))
    with pytest.raises(ValueError, match=r"expected files inside of artifact, got '\.\./secret'"):
        push_to_hub(folder, NAME)
    assert not hub.commits


def test_without_the_package(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"to upload to 'somebody/small', got none; pip install 'gritvq\[hub\]'"):
        push_to_hub(image_tokenizer(), NAME)
    assert "# small" in model_card(image_tokenizer(), NAME)  # needs none


def test_errors_of_the_hub_are_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> NoReturn:
        raise huggingface_hub.errors.HfHubHTTPError("403 Forbidden: no rights\n\nCannot access.", response=RESPONSE)

    monkeypatch.setattr(hub, "upload_folder", refused)
    with pytest.raises(
        ValueError, match="got HfHubHTTPError: 403 Forbidden: no rights; is it reachable, and are you logged in"
    ) as caught:
        push_to_hub(image_tokenizer(), NAME)
    assert "\n" not in str(caught.value)


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_what_would_be_pushed(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run("run", "image tokenizer")
    assert main(["push", "run", NAME, "--license", "mit", "--dry_run", "true", "--out", "out"]) == 0
    said = capsys.readouterr().out
    files = {"README.md", "config.json", "model.safetensors", "plots/usage.png"}
    assert {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()} == files
    assert all(f"{name}: out/{name}" in said for name in files) and not hub.folder.exists()
    assert Tokenizer.from_pretrained("out").fingerprint() == Tokenizer.from_pretrained(run.tokenizer).fingerprint()
    assert main(["push", "run", NAME, "--license", "mit"]) == 0
    assert hub.card() == Path("out/README.md").read_text()
    assert main(["push", "run", NAME, "--dry_run", "true", "--out", "out"]) == 2
    assert "expected a new or empty folder to write to, got out" in capsys.readouterr().err


def test_the_verb_pushes_a_folder(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    saved("semantic ids", "ids")
    words = ["push", "ids", NAME, "--private", "true", "--revision", "v1", "--message", "Ids", "--datasets", "[a/b]"]
    assert main(words) == 0
    assert hub.private[NAME] and hub.commits == ["Ids"] and "license" in capsys.readouterr().out
    assert SemanticIds.from_pretrained(NAME, revision="v1") == semantic_ids()


def test_a_recommender_is_asked_by_name(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    push_to_hub(recommender(), NAME)
    assert main(["recommend", NAME, "--history", "[item 0,item 3]", "--k", "2"]) == 0
    assert "item" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ids", "name"], "expected a name 'owner/name' for the Hub"),
        (["nowhere", NAME], "got 'nowhere', which is not a folder"),
        (["ids", NAME, "--license", "Not A License"], "expected the identifier of a license"),
        (["ids", NAME, "--run", "nowhere"], "expected the folder of the run that made it"),
        (["ids", NAME, "--private", "perhaps"], "private"),
    ],
)
def test_the_verb_on_bad_input(words: list[str], message: str, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    from program import wrong

    saved("semantic ids", "ids")
    assert message in wrong(["push", *words], capsys)
    assert not hub.folder.exists()
