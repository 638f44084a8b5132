"""Priors learn, resume, are saved and loaded; token files become batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gritvq import vq_vae_2
from gritvq.priors import AutoregressivePrior, Prior, PriorTask, TokenData
from gritvq.priors.transformer import Transformer, new_cache
from gritvq.tokens import TokenLayout, TokenRow, write_tokens
from gritvq.training import RunFolder, TrainingPlan, train
from priors_common import LAYOUTS, prior_of

MATRIX = torch.tensor([[0.8, 0.1, 0.1], [0.05, 0.15, 0.8], [0.3, 0.6, 0.1]])  # of a Markov chain
LENGTH = 12


def chains(num: int, seed: int) -> Tensor:
    """(num, 12, 1) of the chain, from the uniform distribution."""
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randint(3, (num,), generator=generator)]
    for _ in range(LENGTH - 1):
        states.append(torch.multinomial(MATRIX[states[-1]], 1, generator=generator)[:, 0])
    return torch.stack(states, 1)[..., None]


def chain_nats(indices: Tensor) -> float:
    """What the chain itself says, nats per token: the least that is possible on average."""
    states = indices[..., 0]
    steps = MATRIX.log()[states[:, :-1], states[:, 1:]].sum(1)
    return float((math.log(3) - steps).mean() / LENGTH)


def token_file(path: Path, indices: Tensor, labels: list[Any] | None = None) -> Path:
    def rows() -> Iterator[TokenRow]:
        for n, tokens in enumerate(indices):
            yield TokenRow(f"{path.stem}-{n:05}", tokens, {} if labels is None else {"label": labels[n]})

    return write_tokens(path, rows())


def test_a_prior_learns_a_markov_chain_to_its_entropy(tmp_path: Path) -> None:
    data = TokenData(
        token_file(tmp_path / "train.parquet", chains(4000, 0)),
        token_file(tmp_path / "validation.parquet", chains(1000, 1)),
        batch_size=64,
    )
    prior = AutoregressivePrior(TokenLayout((3,), (LENGTH,)), width=32, depth=2, num_heads=2, dropout=0.0)
    task = PriorTask(prior, lr=5e-3, warmup_steps=10)
    task.check_data(data)
    run = tmp_path / "run"
    plan = TrainingPlan(max_steps=100, accelerator="cpu", validate_every=100)
    trainer = train(task, data, plan, folder=run, progress=False)
    measured = float(trainer.callback_metrics["val/nats_per_token"])
    least = chain_nats(chains(1000, 1))
    # Against uniform tokens, log 3 = 1.10; the chain has .73. Twelve thousandths of a nat are a per cent of the way.
    assert least - 0.005 < measured < least + 0.012
    bits = float(trainer.callback_metrics["val/bits_per_element"])
    assert bits == pytest.approx(measured / math.log(2))
    loaded = Prior.from_pretrained(RunFolder(run).prior)
    torch.testing.assert_close(loaded.log_prob(chains(9, 2)), prior.eval().log_prob(chains(9, 2)))
    assert RunFolder(run).is_run
    RunFolder(run).clear()
    assert not RunFolder(run).prior.exists()


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    labels = [("cat", "dog")[n % 2] for n in range(64)]
    data = TokenData(token_file(tmp_path / "t.npz", chains(64, 0), labels), batch_size=8, num_validation=16)
    assert data.classes == ["cat", "dog"] and data.num_rows == 64 - 6  # a tenth at most is held out

    def run(steps: int, folder: str, **more: Any) -> dict[str, Tensor]:
        torch.manual_seed(3)
        prior = AutoregressivePrior(TokenLayout((3,), (LENGTH,)), num_classes=2, width=8, depth=1, num_heads=1)
        task = PriorTask(prior, schedule="constant", warmup_steps=0)
        plan = TrainingPlan(max_steps=steps, accelerator="cpu", validate_every=0)
        train(task, data, plan, folder=tmp_path / folder, progress=False, **more)
        return {name: value.clone() for name, value in prior.state_dict().items()}

    whole = run(6, "whole")
    half = run(3, "half")
    resumed = run(6, "half", resume=RunFolder(tmp_path / "half").last_checkpoint)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(half["places.weight"], whole["places.weight"])


def test_class_dropout_forgets_its_share() -> None:
    """The share of rows whose loss is that of no class: 4000 draws, five standard errors."""
    prior = prior_of(AutoregressivePrior, "grid", class_dropout=0.3, dropout=0.0)
    indices = torch.zeros(4000, 2, 2, 1, dtype=torch.int64)
    seen: list[Tensor] = []
    prior.classes.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    prior.train().loss(indices, torch.zeros(4000, dtype=torch.int64))
    prior.eval().loss(indices, torch.zeros(4000, dtype=torch.int64))
    share = float((seen[0] == prior.num_classes).float().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000) and int(seen[1].max()) == 0


def test_the_loss_is_the_mean_log_probability() -> None:
    prior = prior_of(AutoregressivePrior, "channels")
    indices, classes = prior.sample(5, 1, generator=0), torch.ones(5, dtype=torch.int64)
    found = prior.loss(indices, classes)
    assert list(found) == ["nats_per_token"] and prior.num_tokens == 4
    torch.testing.assert_close(found["nats_per_token"], -prior.log_prob(indices, classes).mean() / 4)


def test_a_saved_prior_belongs_to_one_tokenizer(tmp_path: Path) -> None:
    prior = prior_of(AutoregressivePrior, "pyramid")
    prior.fingerprint = "a" * 40
    prior.save_pretrained(tmp_path / "prior", {"steps": 3})
    loaded = AutoregressivePrior.from_pretrained(tmp_path / "prior", layout=LAYOUTS["pyramid"], fingerprint="a" * 40)
    assert loaded.fingerprint == prior.fingerprint and not loaded.training
    torch.testing.assert_close(loaded.sample(3, 1, generator=1), prior.sample(3, 1, generator=1))
    scales = [((1, 1), (0,)), ((1, 1), (0,)), ((3, 1), (0,))]
    for given, said in (
        ({"fingerprint": "b" * 40}, "whose tokens mean something else"),
        (
            {"layout": TokenLayout((3,), (5,), scales=scales)},
            r"scales \[\[1, 1\], \[2, 2\]\].*got \[\[1, 1\], \[1",
        ),
        ({"layout": TokenLayout((4,), (5,), scales=LAYOUTS["pyramid"].scales)}, r"codebook sizes \[3\].*got \[4\]"),
        ({"layout": TokenLayout((3, 3), (5,))}, "codebook sizes"),
    ):
        with pytest.raises(ValueError, match=said):
            Prior.from_pretrained(tmp_path / "prior", **given)
    with pytest.raises(ValueError, match="another kind"):
        write = tmp_path / "other"
        from gritvq import grit_vq
        from gritvq.saving import write_folder

        write_folder(write, "tokenizer", grit_vq(4, 8))
        Prior.from_pretrained(write)


def test_validation_rows_of_files_in_the_order_of_classes_are_of_all_classes(tmp_path: Path) -> None:
    labels = [n // 100 for n in range(400)]
    held = token_file(tmp_path / "held.npz", torch.arange(400)[:, None, None], labels)
    train = token_file(tmp_path / "train.npz", torch.arange(400)[:, None, None], labels)
    first, again, other = (TokenData(train, held, batch_size=40, num_validation=40, seed=seed) for seed in (0, 0, 1))
    (batch,), (repeated,), (else_,) = (data.val_dataloader() for data in (first, again, other))
    assert torch.equal(batch.indices, repeated.indices) and not torch.equal(batch.indices, else_.indices)
    assert len(batch.indices.unique()) == 40 and batch.condition.unique().tolist() == [0, 1, 2, 3]


def test_batches_hold_every_row_once_per_epoch(tmp_path: Path) -> None:
    indices = torch.arange(20).view(20, 1, 1).expand(20, 2, 1)
    labels = [n % 4 for n in range(20)]
    for number in range(2):
        part = slice(10 * number, 10 * number + 10)
        token_file(tmp_path / f"{number}.parquet", indices[part], labels[part])
    held = token_file(tmp_path / "held.npz", indices[:5], labels[:5])
    held = held.rename(tmp_path.parent / f"{tmp_path.name}-held.npz")
    data = TokenData(tmp_path, held, batch_size=5, num_validation=3)
    epochs = [[data.batch(4 * epoch + n) for n in range(4)] for epoch in range(2)]
    for epoch in epochs:
        rows = torch.cat([batch.indices[:, 0, 0] for batch in epoch])
        classes = torch.cat([batch.condition for batch in epoch])
        assert rows.sort().values.tolist() == list(range(20)) and torch.equal(classes, rows % 4)
    assert not torch.equal(epochs[0][0].indices, epochs[1][0].indices)
    stream = iter(data.train_dataloader(lambda: 3))
    assert torch.equal(next(stream).indices, data.batch(3).indices)
    (validation,) = data.val_dataloader()
    assert (
        len(set(validation.indices[:, 0, 0].tolist()) & set(range(5))) == 3 and validation.indices.dtype == torch.int64
    )
    assert data.num_classes == 4 and data.classes == [0, 1, 2, 3] and data.shape == (2, 1)


def test_processes_share_one_global_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TokenData(token_file(tmp_path / "t.npz", torch.arange(13)[:, None, None]), batch_size=6, num_validation=1)
    alone = [data.batch(step).indices.flatten().tolist() for step in range(2)]
    data.batch_size = 3
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for step in range(2):
        parts = []
        for rank in range(2):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            parts.append(data.batch(step).indices.flatten().tolist())
        assert [each for pair in zip(*parts, strict=True) for each in pair] == alone[step]


def test_hierarchical_tokens_keep_the_channels_they_do_not_have(tmp_path: Path) -> None:
    """Two grids, one channel each: -1 stands for the other one, in files, batches and the prior's layout alike."""
    quantizer = vq_vae_2(4, 8)
    layout = TokenLayout.of(quantizer, (4, 4))
    indices = quantizer.encode(torch.randn(12, 4, 4, quantizer.input_dim, generator=torch.Generator().manual_seed(0)))
    assert bool((indices == -1).any())
    data = TokenData(token_file(tmp_path / "two.npz", indices), batch_size=5, num_validation=1)
    prior = AutoregressivePrior(layout, width=8, depth=1, num_heads=1)
    PriorTask(prior).check_data(data)
    rows = {tuple(row.flatten().tolist()) for row in indices}
    assert all(tuple(row.flatten().tolist()) in rows for row in data.batch(0).indices)
    assert float(prior.loss(data.batch(0).indices, None)["nats_per_token"]) == pytest.approx(math.log(8), rel=0.2)


def test_files_of_no_use_are_refused(tmp_path: Path) -> None:
    some = chains(6, 0)
    plain = token_file(tmp_path / "plain.npz", some)
    views = write_tokens(tmp_path / "views.npz", (TokenRow(f"one#{n}", row) for n, row in enumerate(some)))
    labelled = token_file(tmp_path / "labelled.npz", some, ["a", "b"] * 3)
    mixed = token_file(tmp_path / "mixed.npz", some, ["a", None] * 3)
    numbers = token_file(tmp_path / "numbers.npz", some, [0, 1.5] * 3)
    longer = token_file(tmp_path / "longer.npz", torch.cat([some, some], 1), ["a", "b"] * 3)
    unknown = token_file(tmp_path / "unknown.npz", some, ["a", "z"] * 3)
    masked = token_file(tmp_path / "masked.npz", -1 - some)
    one_masked = token_file(tmp_path / "one.npz", torch.where(torch.arange(6).view(6, 1, 1) == 4, -1, some))
    all_masked = token_file(tmp_path / "all.npz", torch.full_like(some, -1))
    (tmp_path / "empty").mkdir()
    for given, said in (
        ((tmp_path / "empty",), "token files in"),
        (([],), "at least one token file"),
        ((tmp_path / "no.npz",), "does not exist"),
        ((plain, labelled), "one side with labels"),
        ((mixed,), "in all rows or in none"),
        ((numbers,), "integers >= 0 in the column"),
        (([labelled, longer],), "one shape"),
        ((labelled, longer), "validation samples"),
        ((labelled, unknown), r"got \['z'\] too"),
        ((masked,), "leave out masked samples"),
        ((one_masked,), "leave out masked samples"),
        ((plain, all_masked), "without the same channels as in training"),
        ((views,), "at least two samples"),
    ):
        with pytest.raises(ValueError, match=said):
            TokenData(*given)
    data = TokenData(labelled, num_validation=2)
    with pytest.raises(ValueError, match="num_classes=2 of the prior"):
        PriorTask(AutoregressivePrior(TokenLayout((3,), (LENGTH,)), width=8, depth=1, num_heads=1)).check_data(data)
    with pytest.raises(ValueError, match="of a sample as in the prior's layout"):
        PriorTask(prior_of(AutoregressivePrior, "grid")).check_data(data)
    with pytest.raises(ValueError, match="expected whole samples, got masked indices"):
        prior = AutoregressivePrior(TokenLayout((3,), (LENGTH,)), width=8, depth=1, num_heads=1)
        PriorTask(prior).check_data(TokenData(all_masked))
    later = torch.cat([chains(20, 0), chains(1, 1) + 1])  # a single row at the end
    data = TokenData(token_file(tmp_path / "later.npz", later), batch_size=1, num_validation=1)
    with pytest.raises(ValueError, match=r"indices below \(3,\) as in the prior's layout, got up to \[3\]"):
        PriorTask(AutoregressivePrior(TokenLayout((3,), (LENGTH,)), width=8, depth=1, num_heads=1)).check_data(data)
    assert TokenData(labelled, label=None, num_validation=2).num_classes is None


def test_a_sample_on_both_sides_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Views of one sample have its name up to ``#``; documents have numbers for names, and their source."""
    one, another = chains(1, 0)[0], chains(1, 0)[0].flip(0) + 1
    assert not torch.equal(one, another)

    def file(name: str, *rows: tuple[str, str | None], tokens: torch.Tensor = one) -> Path:
        columns = [{} if source is None else {"source": source} for _, source in rows]
        return write_tokens(
            tmp_path / f"{name}.npz",
            [TokenRow(own, tokens, more) for (own, _), more in zip(rows, columns, strict=True)],
        )

    views = file("views", ("a#0", None), ("a#1", None), ("b#0", None))
    both = file("both", ("c", None), ("b", None))
    with pytest.raises(
        ValueError, match=r"got 'b' of .*both.npz in both, with the same tokens, and 0 more; leave valid"
    ):
        TokenData(views, both)
    with pytest.raises(ValueError, match=r"got 'a#0' of .*views.npz in both, with the same tokens, and 1 more"):
        TokenData(views, views)
    assert TokenData(views, file("other", ("c", None), ("B", None))).num_held_out == 2
    assert TokenData(file("counted", ("0", None), ("1#2", None)), file("from_0", ("0", None))).num_held_out == 1
    texts = file("texts", ("000000", "a.txt, line 1"), ("000001", "a.txt, line 2"))
    assert TokenData(texts, file("others", ("000000", "b.txt, line 1"))).num_held_out == 1
    with pytest.raises(ValueError, match=r"got '000001' of .*again.npz"):
        TokenData(texts, file("again", ("000000", "b.txt, line 1"), ("000001", "a.txt, line 2")))
    assert not caplog.records
    namesakes = file("namesakes", ("c", None), ("b", None), tokens=another)  # another picture, or another view of it
    assert TokenData(views, namesakes).num_held_out == 2
    (record,) = caplog.records
    alike = [TokenRow(name, one if name == "a" else another) for name in "abc"]  # one of three by chance
    train = write_tokens(tmp_path / "folder.npz", [TokenRow(name, one) for name in "abc"])
    assert TokenData(train, write_tokens(tmp_path / "alike.npz", alike)).num_held_out == 3
    assert len(caplog.records) == 2
    assert (
        record.levelname == "WARNING"
        and "1 validation samples have names of training samples, 'b' of" in record.message
    )


def test_every_row_is_checked(tmp_path: Path) -> None:
    train, validation = (token_file(tmp_path / f"{name}.npz", chains(5, 0)) for name in ("train", "validation"))
    seen = list[tuple[str, str]]()
    TokenData(train, validation, check=lambda row, file: seen.append((row.name, file.name)))
    assert seen == [(f"{name}-{n:05}", f"{name}.npz") for name in ("train", "validation") for n in range(5)]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
def test_a_compiled_training_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # C++ would take a minute
    data = TokenData(token_file(tmp_path / "t.npz", chains(64, 0)), batch_size=8)

    def run(compiled: bool) -> AutoregressivePrior:
        torch.manual_seed(3)
        prior = AutoregressivePrior(TokenLayout((3,), (LENGTH,)), width=8, depth=1, num_heads=1, dropout=0.0)
        plan = TrainingPlan(max_steps=3, compile=compiled, accelerator="cpu", validate_every=0)
        task = PriorTask(prior, schedule="constant", warmup_steps=0)
        frames: list[str] = []
        prior.transformer.register_forward_hook(lambda *_: frames.append(str(torch.compiler.is_compiling())))
        train(task, data, plan, folder=None, progress=False)
        assert ("True" in frames) == compiled
        return prior.eval()

    plain, compiled = run(False), run(True)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, atol=2e-5, rtol=1e-4)
    assert torch.equal(compiled.sample(4, generator=0), plain.sample(4, generator=0))


def test_a_transformer_compiles_in_one_piece() -> None:
    transformer = Transformer(width=8, depth=2, num_heads=2, dropout=0.0, length=5)
    inputs = torch.randn(3, 5, 8)
    whole = torch.compile(transformer, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(whole(inputs), transformer(inputs), atol=1e-5, rtol=1e-5)


def test_attention_of_bfloat16_is_in_float32_on_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = prior_of(AutoregressivePrior, "grid")
    indices, classes = prior.sample(64, 1, generator=0), torch.ones(64, dtype=torch.int64)
    seen: list[torch.dtype] = []  # what autocast, if it is on, makes of the inputs
    fused = torch.nn.functional.scaled_dot_product_attention

    def watched(*inputs: Tensor, **more: Any) -> Tensor:
        cast = torch.is_autocast_enabled("cpu")
        seen.extend(torch.get_autocast_dtype("cpu") if cast else each.dtype for each in inputs[:3])
        return fused(*inputs, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    exact = prior.log_prob(indices, classes)
    with torch.autocast("cpu", torch.bfloat16):
        found = prior.log_prob(indices, classes)
    assert seen == [torch.float32] * 12  # three inputs of two layers, twice
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0.02)
    assert not torch.equal(found, exact)


def test_a_cache_that_grows_in_place_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = new_cache(), transformers.DynamicCache()
    generator = torch.Generator().manual_seed(0)
    held: list[tuple[Tensor, Tensor]] = []

    def step(positions: int, layers: int = 2) -> None:
        for layer in range(layers):
            keys, values = torch.randn(2, 3, 4, positions, 5, generator=generator)
            found = ours.update(keys, values, layer)
            expected = theirs.update(keys, values, layer)
            assert all(map(torch.equal, found, expected))
            held.append((found[0], found[0].clone()))
        assert ours.get_seq_length() == theirs.get_seq_length()

    with torch.no_grad():
        for positions in (3, 1, 1, 4, 9, 1, 1, 2):
            step(positions)
        addresses = set()
        for _ in range(8):
            step(1)
            addresses.add(ours.layers[0].keys.data_ptr())
        assert len(addresses) < 3  # a buffer is kept
        for cache in (ours, theirs):
            cache.crop(-4)
        step(1)
        chosen = torch.tensor([2, 0])
        for cache in (ours, theirs):
            cache.batch_select_indices(chosen)
    with torch.no_grad():
        keys, values = torch.randn(2, 2, 4, 1, 5, generator=generator)
        assert all(map(torch.equal, ours.update(keys, values, 0), theirs.update(keys, values, 0)))
    assert all(torch.equal(now, then) for now, then in held)  # what was returned stays

    with torch.no_grad():  # other types and sizes are joined as theirs are, or refused
        keys, values = torch.randn(2, 2, 4, 1, 5, generator=generator).double()
        found, expected = ours.update(keys, values, 0), theirs.update(keys, values, 0)
        assert found[0].dtype == expected[0].dtype == torch.float64 and all(map(torch.equal, found, expected))
        with pytest.raises(RuntimeError):
            ours.update(keys[:1], values[:1], 0)
        empty = new_cache()
        empty.layers.append(type(ours.layers[0])())  # as DynamicCache begins before transformers 4.56
        assert torch.equal(empty.update(keys, values, 0)[0], keys)
    with torch.inference_mode():
        fresh = new_cache()
        fresh.update(keys, values, 0)
        fresh.update(keys, values, 0)
    with torch.no_grad():
        assert fresh.update(keys, values, 0)[1].shape[2] == 3

    ours, theirs = new_cache(), transformers.DynamicCache()
    learned = torch.randn(2, 4, 1, 5, generator=generator).requires_grad_()
    before, after = ours.update(learned, 2 * learned, 0), ours.update(learned, learned, 0)
    (before[1].sum() + after[0].sum()).backward()
    assert learned.grad is not None and torch.equal(learned.grad, torch.full_like(learned, 4.0))
