"""``gritvq fit text``: training of models with a latent per segment, and of text tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.output import arguments_of, console, report, tracked
from gritvq.cli.run_folder import (
    check_settings,
    extras_of,
    open_run,
    parts_of_run,
    place_of,
    run_arguments,
    run_training,
    steps_done,
)
from gritvq.cli.text import write_page

if TYPE_CHECKING:
    from gritvq.text import TextBatch, TextData, TextTokenizer, TraceModel

__all__ = ["arguments", "fit"]

_SHOWN, _MEASURED = 6, 64  # documents on the page; batches that are measured
_OF_LATENTS = ("kl_weight", "free_bits", "bag_of_words")


def arguments(parser: Any) -> None:
    """Model, data, task and plan."""
    from gritvq.text import TextData, TextTask, TextTokenizer, TraceModel
    from gritvq.training import TrainingPlan

    parser.add_argument(
        "--model",
        type=TraceModel | TextTokenizer,
        required=True,
        help="gritvq.text.trace, gritvq.text.gaussian_vae, gritvq.text.language_model, or for a tokenizer "
        "gritvq.text.segment_tokenizer; vocab_size follows from the data",
    )
    parser.add_class_arguments(TextData, "data")
    parser.add_class_arguments(TextTask, "task", skip={"model"}, instantiate=False)
    parser.add_class_arguments(TrainingPlan, "plan")
    run_arguments(parser, "model or tokenizer (folder)")


def fit(parser: Any, config: Any, given: Mapping[str, Any]) -> None:
    """Train a model of text: a latent or a code for each sentence."""
    from gritvq.files import write_json
    from gritvq.text import TextTask, TextTokenizer, TextTokenizerTask
    from gritvq.training import TrainingPlan
    from gritvq.training.launch import Launch
    from gritvq.training.run import seed_everything

    place = place_of(config, Launch(TrainingPlan(**arguments_of(config.plan))))
    run = place.run
    data = _data(parser, config)
    data.setup("fit")
    _spread(config.model, data.format.vocab_size, given.get("model", {}))
    check_settings(parser, config, place)
    seed_everything(config.plan.seed)
    parts = parts_of_run(parser, config)
    settings = arguments_of(parts.task)
    is_tokenizer = isinstance(parts.model, TextTokenizer)
    task: TextTask | TextTokenizerTask
    if is_tokenizer:
        _check_unused(given.get("task", {}))
        task = TextTokenizerTask(parts.model, **{k: v for k, v in settings.items() if k not in _OF_LATENTS})
    else:
        task = TextTask(parts.model, **settings)
    task.check_data(data)  # before an old run is replaced
    done = steps_done(task, parts.plan, config, place, task.load)
    open_run(parser, config, place, done)
    if place.launch.first:
        console().print(f"data: {data.summary()}", markup=False, highlight=False, soft_wrap=True)
        write_json(run.data, data.describe())
    trainer, taken = run_training(task, data, parts.plan, place, done, **extras_of(parser, config))
    if not trainer.is_global_zero:
        return
    model = parts.model.to(trainer.strategy.root_device).eval()
    numbers = _measured_tokenizer(model, data) if is_tokenizer else _measured(model, data)
    write_json(run.metrics, numbers)
    (_tokenizer_page if is_tokenizer else _page)(model, data, run.texts)
    files = {"tokenizer" if is_tokenizer else "model": run.tokenizer if is_tokenizer else run.text_model}
    rows = [(name.replace("_", " "), f"{value:,.4g}") for name, value in numbers.items()]
    report("held-out documents", [*rows, ("training time", taken)], {**files, "texts": run.texts, "logs": run.logs})


def _data(parser: Any, config: Any) -> TextData:
    """The data of a configuration, made alone: the model needs its vocabulary."""
    from gritvq.text import TextData

    own = type(parser)()
    own.add_class_arguments(TextData, "data")
    data: TextData = own.instantiate(own.parse_settings({"data": config.data.as_dict()})).data
    return data


def _spread(model: Any, vocab_size: int, given: Any) -> None:
    """Set the number of tokens wherever a part of the model takes it.

    Raises:
        ValueError: If another one is given.
    """
    arguments = model.get("init_args", {})
    own = given.get("init_args", {}) if isinstance(given, dict) else {}
    for name, value in list(vars(arguments).items()) if not isinstance(arguments, dict) else []:
        if name == "vocab_size":
            if own.get(name) not in (None, vocab_size):
                raise ValueError(
                    f"expected vocab_size {vocab_size}, the subwords of the data and 3, got {own[name]}; leave it out"
                )
            arguments[name] = vocab_size
        elif hasattr(value, "class_path"):
            _spread(value, vocab_size, own.get(name, {}))


def _check_unused(given: Mapping[str, Any]) -> None:
    """Raises a ValueError if a setting of continuous latents is given for a tokenizer."""
    unused = [name for name in _OF_LATENTS if name in given]
    if unused:
        raise ValueError(
            f"expected no settings of continuous latents for a tokenizer, got task.{unused[0]}; leave it out"
        )


def _measured(model: TraceModel, data: TextData) -> dict[str, float]:
    """The bound on held-out documents, from one draw of the latents, and its parts."""
    import torch

    device = model.decoder.transformer.embeddings.device
    totals = torch.zeros(4, dtype=torch.float64)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for batch in tracked(_batches(data), "measuring, batch"):
            output = model(batch.to(device))
            sums = (-output.log_probs.sum(), output.kl.sum(), batch.valid.sum(), batch.present.sum())
            totals += torch.stack([each.cpu().double() for each in sums])
    nats, kl, tokens, segments = totals.tolist()
    numbers = {"nats_per_token": (nats + kl) / tokens, "tokens": tokens}
    if model.latents is not None:
        numbers |= {"reconstruction_nats_per_token": nats / tokens, "kl_per_segment": kl / segments}
        numbers |= {"least_kl_per_segment": model.least_kl}
    return numbers


def _measured_tokenizer(tokenizer: TextTokenizer, data: TextData) -> dict[str, float]:
    """Nats per token given the codes of held-out documents, and the use of codes."""
    import torch

    from gritvq.quantizers.metrics import CodebookUsage

    device = tokenizer.decoder.transformer.embeddings.device
    usage, nats, tokens = CodebookUsage(tokenizer.quantizer.codebook_sizes), 0.0, 0
    with torch.no_grad():
        for batch in tracked(_batches(data), "measuring, batch"):
            output = tokenizer(batch.to(device))
            usage.update(output.quantization.indices.cpu())
            nats, tokens = nats - float(output.reconstruction.double().sum()), tokens + int(batch.valid.sum())
    counts = usage.compute()
    return {"nats_per_token_given_codes": nats / tokens, "tokens": tokens} | {
        name: float(counts[name]) for name in ("usage", "perplexity", "dead_codes")
    }


def _batches(data: TextData) -> list[TextBatch]:
    loader = data.val_dataloader()
    return [batch for batch, _ in zip(loader, range(_MEASURED), strict=False)]


def _page(model: TraceModel, data: TextData, path: Path) -> None:
    """Samples, reconstructions, and texts between two others."""
    from gritvq.text import TextBatch, Writing

    form, limits = data.format, _limits(data)
    sampling = Writing(top_p=0.95, seeds=0, **limits)
    said = "drawn from the prior; temperature 1, top-p 0.95, seed 0"
    sections = {f"Samples ({said})": form.texts(model.generate(_SHOWN, writing=sampling))}
    if model.latents is not None:
        device = model.decoder.transformer.embeddings.device
        first = next(iter(data.val_dataloader())).to(device)
        shown = TextBatch(first.tokens[:_SHOWN], first.segments[:_SHOWN])
        greedy = Writing(temperature=0.0, **limits)
        pairs = zip(form.texts(shown), form.texts(model.reconstruct(shown, greedy)), strict=True)
        sections["Held-out texts, each with what its latents are read as (most probable tokens)"] = [
            text for pair in pairs for text in pair
        ]
        one, other = (TextBatch(shown.tokens[[row]], shown.segments[[row]]) for row in (0, -1))
        between = model.interpolate(one, other, 5, greedy)
        sections["From the latents of the first to those of the last, in equal steps"] = form.texts(between)
    write_page(path, sections)


def _tokenizer_page(tokenizer: TextTokenizer, data: TextData, path: Path) -> None:
    """Held-out texts with their codes, and what these are read as."""
    from gritvq.text import TextBatch

    first = next(iter(data.val_dataloader()))
    texts = data.format.texts(TextBatch(first.tokens[:_SHOWN], first.segments[:_SHOWN]))
    tokens = tokenizer.encode(texts)
    lines = []
    for text, own, again in zip(texts, tokens, tokenizer.decode(tokens), strict=True):
        lines += [text, f"codes {own.tolist()}", again]
    write_page(path, {"Held-out texts, their codes, and what these are read as (most probable tokens)": lines})


def _limits(data: TextData) -> dict[str, int]:
    return {"max_tokens": data.segmentation.max_tokens, "max_segments": data.segmentation.max_segments}
