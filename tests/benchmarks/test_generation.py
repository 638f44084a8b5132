"""The benchmark of generation, on a few made pictures."""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from benchmarks.gpu.sizes import make_vgg
from benchmarks.quality import generation
from benchmarks.quality.pictures import keep_row, kept_row


@pytest.fixture
def job(gray_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> generation.Job:
    """A run of a few steps on gray pictures whose classes are brightnesses."""
    monkeypatch.setattr(generation, "NUM", 160)
    monkeypatch.setattr(generation, "BATCH", 80)
    plan: dict[str, Any] = {
        "codebook_size": 8,
        "channels": {gray_pictures.name: 1},
        "tokenizer": {
            "dim": 4,
            "network": {"factor": 4, "width": 8, "num_blocks": 1},
            "data": {"num_validation": 20, "batch_size": 8},
            "task": {},
            "max_steps": 2,
        },
        "prior": {
            "network": {"width": 16, "depth": 1, "num_heads": 2},
            "task": {},
            "batch_size": 8,
            "compile": False,  # takes longer than all else here
            "max_steps": 2,
        },
        "guidance": [2.0, 3.0],
    }
    return generation.Job(str(gray_pictures), None, plan, "study", "vq_vae_ema", {"decay": 0.9}, 0, tmp_path / "work")


def test_a_run_measures_what_it_made_and_goes_on_from_it(job: generation.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    found = generation.run(job)
    assert found["settings"] == "decay=0.9" and found["codebook_size"] == 8
    assert 0 < found["fd_floor"] < found["rfd"] and found["gfd"] > found["fd_floor"]
    assert all(0 <= found[f"accuracy{name}"] <= 1 for name in ("", "_guided", "_guided_3", "_decoded", "_real"))
    assert 0.5 < found["nats_per_token"] < 4  # ln 8 = 2.08 of equal probabilities
    assert found["bits_per_pixel"] == pytest.approx(found["nats_per_token"] / np.log(2) / 16)
    assert found["fixed_bits_per_pixel"] == 3 / 16
    assert {path.name for path in job.folders[1].glob("*.npy")} == {
        f"samples{name}.npy" for name in ("", "_guided", "_guided_3")
    }
    monkeypatch.setattr(generation, "RESULTS", job.work / "results")
    drawn, reconstructed = generation.pictures_of([job, job._replace(seed=1)])
    assert list(drawn) == list(reconstructed) == ["test pictures", "vq_vae_ema"]
    originals, own = reconstructed.values()
    assert own.shape == originals.shape == drawn["vq_vae_ema"].shape == (10, 1, 28, 28) and (own != originals).any()
    test, labels = generation.labelled(job.data, "test")
    assert np.array_equal(originals, test[:10].numpy()) and labels[:10].tolist() == list(range(10))
    moved = job._replace(work=job.work / "elsewhere")  # where no model is
    for before, after in zip((drawn, reconstructed), generation.pictures_of([moved]), strict=True):
        assert list(before) == list(after) and all(np.array_equal(before[name], after[name]) for name in before)
    tokenizer = generation.tokenizer_of(job)
    assert np.array_equal(own, generation.decoded(tokenizer, generation.encoded(tokenizer, test[:10])).numpy())
    monkeypatch.setattr(generation, "train", lambda *_, **__: pytest.fail("trained again"))
    again = generation.run(job)
    timed = [name for name in found if name.endswith("per_second")]
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in found.items() if k not in timed}


def test_a_contender_without_a_prior_and_fewer_pictures(job: generation.Job) -> None:
    whole = generation.run(job._replace(settings={"decay": 0.9, "prior": None}))
    assert whole["settings"] == "decay=0.9 prior=None" and not any("gfd" in name or "nats" in name for name in whole)
    assert [path.name for path in job.folders[0].iterdir()] == ["tokenizer"]
    few = generation.run(job._replace(plan={**job.plan, "num_pictures": 120}, settings={"decay": 0.9, "prior": None}))
    test, labels = generation.some(*generation.labelled(job.data, "test"), 120)
    assert len(test) == 120 < 160 and len(labels.unique()) > 3
    tokenizer = generation.tokenizer_of(job)
    psnr, _ = generation.evaluate(tokenizer, [test.float() / 255])
    assert few["psnr"] == psnr["psnr"] != whole["psnr"]
    ruler = generation.ruler_for(job.data, None, num=120)
    assert few["fd_floor"] == ruler.distance(ruler.test, ruler.known) and len(ruler.known) == 120


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "fsq", "prior": {"kind": "MaskedPrior", "num_steps": 2}}, "kind=MaskedPrior num_steps=2"),
        ({"preset": "rq", "num_levels": 2, "prior": {"head": "depth"}}, "num_levels=2 head=depth"),
    ],
)
def test_other_tokens_and_priors(job: generation.Job, settings: dict[str, Any], words: str) -> None:
    found = generation.run(job._replace(method="other", settings=settings))
    assert found["method"] == "other" and found["settings"] == words
    assert found["bits_per_pixel"] > 0 and found["gfd"] > found["fd_floor"]
    assert found["bits_per_pixel"] < 2 * found["fixed_bits_per_pixel"]  # untrained, but not absurd


def test_a_tokenizer_with_losses_that_look_at_pictures(
    job: generation.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_vgg(4)
    plan = yaml.safe_load((generation.HERE / "generation.yaml").read_text())
    task = copy.deepcopy(plan["studies"]["losses"]["methods"]["vq_vae_ema, perceptual and adversarial"]["task"])
    task["perceptual"]["init_args"]["features"]["init_args"]["path"] = "vgg.h5"
    task["adversarial"]["init_args"]["start"] = 1
    judged = job._replace(settings=job.settings | {"task": task})
    assert "adversarial.weight=0.2 adversarial.start=1" in judged.words and "discriminator.width=32" in judged.words
    assert "perceptual.features=VGG16Features" in judged.words
    one, other = generation.tokenizer_of(job), generation.tokenizer_of(judged)
    assert job.folders[0] != judged.folders[0] and one.decoder.channels == 1
    images = torch.rand(2, 1, 28, 28)
    assert not torch.equal(one(images).reconstruction, other(images).reconstruction)


@pytest.mark.parametrize("channels", [1, 3])
def test_contenders_of_all_studies_can_be_made(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_vgg(4)
    plan = yaml.safe_load((generation.HERE / "generation.yaml").read_text())
    for study, content in plan.pop("studies").items():
        for method, settings in content["methods"].items():
            job = generation.Job("cifar10", None, plan, study, method, settings, 0, Path("work"))
            size = min(settings.get("codebook_size", 1024), 2435)
            small = job._replace(plan=plan | {"tokenizer": {"dim": 4}}, settings=settings | {"codebook_size": size})
            quantizer = generation.quantizer_of(small._replace(settings={"preset": method} | small.settings))
            own = {"width": 16, "depth": 1, "num_heads": 2} | (settings.get("prior") or {})
            kind = getattr(generation.priors, own.pop("kind", "AutoregressivePrior"))
            side = settings.get("sides", [8])[-1]
            prior = kind(generation.TokenLayout.of(quantizer, (side, side)), num_classes=10, **own)
            assert prior.num_tokens >= 64, method
            losses = copy.deepcopy(settings.get("task", {}))
            for part in losses.values():
                if isinstance(part, dict) and "features" in part["init_args"]:
                    part["init_args"]["features"]["init_args"]["path"] = "vgg.h5"
            made = {name: generation.part_of(part, channels) for name, part in losses.items()}
            assert set(made) <= set(inspect.signature(generation.TokenizerTask).parameters), method
            images = torch.rand(2, channels, 28, 28)
            if "perceptual" in made:
                assert made["perceptual"](images, 1 - images) > 0, method
            if "adversarial" in made:
                assert made["adversarial"].generator(images).isfinite(), method


@pytest.fixture
def study(job: generation.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words for a study of two runs that share a tokenizer, and one that cannot be made; results in ``tmp_path``."""
    methods = {
        "one": {"preset": "vq_vae_ema", "decay": 0.9},
        "wrong": {"preset": "vq_vae_ema", "decay": 2.0},
        "masked": {"preset": "vq_vae_ema", "decay": 0.9, "prior": {"kind": "MaskedPrior", "num_steps": 2}},
    }
    plan = copy.deepcopy(job.plan) | {"studies": {"small": {"seeds": [0], "methods": methods}}}
    plan["prior"]["max_steps"] = {Path(job.data).name: plan["prior"]["max_steps"]}
    plan["guidance"] = {Path(job.data).name: plan["guidance"]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    for name in ("RESULTS", "DOCS"):
        monkeypatch.setattr(generation, name, tmp_path / name)
        (tmp_path / name).mkdir()
    monkeypatch.setattr(generation, "ProcessPoolExecutor", lambda number, **_: ThreadPoolExecutor(number))
    words = ["--data", job.data, "--plan", str(tmp_path / "plan.yaml"), "--study", "small", "--jobs", "2"]
    return [*words, "--work", str(job.work)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All results of a study."""
    (path,) = folder.glob("RESULTS/generation_*.csv")
    return generation.read_results(path, generation.IDENTITY)


def measured_as(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Runs that train nothing and note their names; that of ``wrong`` fails."""

    def prepare(job: generation.Job) -> None:
        calls.append(f"tokenizer of {job.method}")
        if job.method == "wrong":
            raise ValueError("expected another decay")

    def run(job: generation.Job) -> dict[str, Any]:
        calls.append(job.method)
        identity = {"study": job.study, "method": job.method, "settings": job.words, "codebook_size": 8, "seed": 0}
        return identity | {"psnr": 20.0}

    monkeypatch.setattr(generation, "prepare", prepare)
    monkeypatch.setattr(generation, "run", run)


def test_a_run_that_fails_costs_no_other_one(study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    measured_as(monkeypatch, calls)
    with pytest.raises(SystemExit, match=r"1 of 3 runs failed.*\n.*wrong, seed 0: ValueError: expected another decay"):
        generation.main(study)
    assert sorted(row["method"] for row in rows_of(tmp_path)) == ["masked", "one"]
    assert sorted(calls) == ["masked", "one", "tokenizer of one", "tokenizer of wrong"]
    assert calls.index("tokenizer of one") < min(calls.index("one"), calls.index("masked"))
    assert len(list(tmp_path.glob("DOCS/generation_small_fashion-mnist_cpu*.png"))) == 1
    assert len(list(tmp_path.glob("DOCS/generation_small_fashion-mnist_decoded_cpu*.png"))) == 1
    with pytest.raises(SystemExit, match="1 of 1 runs"):
        generation.main(study)


def test_a_run_with_other_settings_is_another_run(
    study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    measured_as(monkeypatch, calls)
    study += ["--methods", "one", "masked"]
    generation.main(study)
    generation.main(study)
    assert calls.count("one") == calls.count("masked") == 1
    plan = (tmp_path / "plan.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(plan.replace("decay: 0.9", "decay: 0.8", 1))
    generation.main(study)
    assert calls.count("one") == 2 and calls.count("masked") == 1
    found = {row["method"]: row["settings"] for row in rows_of(tmp_path)}
    assert found == {"one": "decay=0.8", "masked": "decay=0.9 kind=MaskedPrior num_steps=2"}
    assert len(rows_of(tmp_path)) == 2  # that of the old settings is gone


def test_a_study_for_a_gpu(study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load((generation.HERE / "generation.yaml").read_text())
    plan, own = generation.plan_of(content, "large", "cifar10")
    assert own["device"] == "cuda" and plan["prior"]["network"]["width"] == 512 and plan["prior"]["max_steps"] == 20000
    assert plan["tokenizer"]["network"] == {"factor": 4, "width": 128, "num_blocks": 2}
    assert {each["codebook_size"] for each in own["methods"].values()} == {4096, 16384}
    plan_file = tmp_path / "plan.yaml"
    plan_file.write_text(plan_file.read_text().replace("seeds:", "device: cuda\n    seeds:", 1))
    with pytest.raises(SystemExit, match="2"):
        generation.main(study)
    assert "expected --device cuda for the study small, got cpu" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="2"):
            generation.main([*study, "--device", "cuda"])
        assert "found none" in capsys.readouterr().err


def test_parts_of_quantizers_are_made_and_named() -> None:
    plan = yaml.safe_load((generation.HERE / "generation.yaml").read_text())
    settings = plan["studies"]["tokenizers"]["methods"]["grit_vq, elasticity 0.8"]
    job = generation.Job("cifar10", None, plan, "tokenizers", "grit_vq, elasticity 0.8", settings, 0, Path())
    assert job.words == "lr_scale=[10, 60] radius.alpha=0.8"
    assert generation.quantizer_of(job).surrogate.radius.alpha == 0.8


def test_the_folders_of_runs_on_a_cpu_are_those_of_before() -> None:
    content = yaml.safe_load((generation.HERE / "generation.yaml").read_text())
    found = []
    for study, method, seed, device in (
        ("tokenizers", "grit_vq", 0, "cpu"),
        ("orders", "masked", 1, "cpu"),
        ("orders", "masked", 1, "cuda"),
    ):
        plan, own = generation.plan_of(content, study, "cifar10")
        job = generation.Job("cifar10", None, plan, study, method, own["methods"][method], seed, Path(), device)
        found.append(str(job.folders[1]))
    assert found[0] == "cifar10-grit_vq-1024-0-0ed99384/prior-3586da3c"
    assert found[1] == "cifar10-msvq-1024-1-639ef1f3/prior-cc1730ae"
    assert found[2] not in found[:2] and found[2].startswith("cifar10-msvq-1024-1-")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu(job: generation.Job) -> None:
    found = generation.run(job._replace(device="cuda"))
    assert found["codebook_size"] == 8 and 0 < found["fd_floor"] < found["rfd"]


def test_the_rows_of_the_repository_are_those_of_the_plan() -> None:
    plan = yaml.safe_load((generation.HERE / "generation.yaml").read_text())
    keys = {
        (study, *generation.Job("cifar10", None, plan, study, method, settings, seed, Path("work")).key)
        for study, content in plan.pop("studies").items()
        for method, settings in content["methods"].items()
        for seed in content["seeds"]
    }
    for path in generation.RESULTS.glob("generation_cpu*.csv"):
        for row in generation.read_results(path, generation.IDENTITY):
            assert tuple(row[name] for name in generation.IDENTITY) in keys, row["method"]


def test_batches_are_a_function_of_seed_and_step() -> None:
    indices, labels = torch.arange(40).view(10, 2, 2, 1), torch.arange(10)
    data = generation.Tokens(indices, labels, 4, seed=1)
    whole = [batch for batch, _ in zip(data.train_dataloader(), range(5), strict=False)]
    later = next(iter(data.train_dataloader(lambda: 3)))
    assert torch.equal(later[0], whole[3][0]) and not torch.equal(whole[0][1], whole[1][1])
    assert torch.equal(later[0][:, 0, 0, 0], 4 * later[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_of_pictures_are_kept_exactly(channels: int, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, channels, 5, 7), dtype=np.uint8)
    keep_row(pictures, tmp_path / "new" / "row.png")
    assert np.array_equal(kept_row(tmp_path / "new" / "row.png", 4), pictures)


def test_the_classifier_of_the_repository_is_the_one_that_is_described() -> None:
    network = generation.FashionClassifier()
    weights = generation.load_file(generation.FASHION)
    network.load_state_dict({name: t.float() for name, t in weights.items()})
    images = torch.zeros(2, 1, 28, 28)
    assert network.eval()(images).shape == (2, 96, 7, 7) and generation.FASHION.stat().st_size < 500_000
