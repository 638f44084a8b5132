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
from gritvq.cli.text import codes_page, write_page

if TYPE_CHECKING:
    from gritvq.text import TextData, TextEvaluation, TextTokenizer, TraceModel

__all__ = ["arguments", "fit"]

_SHOWN = 6  # documents on the page
_DOCUMENTS, _DRAWS = 512, 8  # documents that are measured, and draws of the latents of each
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
    found = _measured(model, data)
    write_json(run.metrics, {**found.values, **found.counts(), "draws_of_latents": found.num_samples})
    (_tokenizer_page if is_tokenizer else _page)(model, data, run.texts)
    files = {"tokenizer" if is_tokenizer else "model": run.tokenizer if is_tokenizer else run.text_model}
    rows = [*found.rows(), ("training time", taken)]
    report("held-out documents", rows, {**files, "texts": run.texts, "logs": run.logs})


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


def _measured(model: TraceModel | TextTokenizer, data: TextData) -> TextEvaluation:
    """Figures of the first held-out documents."""
    from gritvq.text import TextBatch, evaluate_text

    batches, left = list[TextBatch](), _DOCUMENTS
    for tokens, segments in data.val_dataloader():
        if left > 0:
            batches.append(TextBatch(tokens[:left], segments[:left]))
        left -= len(tokens)
    return evaluate_text(model, tracked(batches, "measuring, batch"), num_samples=_DRAWS)


def _page(model: TraceModel, data: TextData, path: Path) -> None:
    """Samples, reconstructions, and texts between two others."""
    from gritvq.text import TextBatch, Writing

    form = data.format
    sampling = Writing(top_p=0.95, seeds=0)
    said = "drawn from the prior; temperature 1, top-p 0.95, seed 0"
    sections = {f"Samples ({said})": form.texts(model.generate(_SHOWN, writing=sampling))}
    if model.latents is not None:
        device = model.decoder.transformer.embeddings.device
        first = next(iter(data.val_dataloader())).to(device)
        shown = TextBatch(first.tokens[:_SHOWN], first.segments[:_SHOWN])
        pairs = zip(form.texts(shown), form.texts(model.reconstruct(shown)), strict=True)
        sections["Held-out texts, each with what its latents are read as (most probable tokens)"] = [
            text for pair in pairs for text in pair
        ]
        one, other = (TextBatch(shown.tokens[[row]], shown.segments[[row]]) for row in (0, -1))
        between = form.texts(model.interpolate(one, other, 5))
        sections["From the latents of the first to those of the last, in equal steps"] = between
    write_page(path, sections)


def _tokenizer_page(tokenizer: TextTokenizer, data: TextData, path: Path) -> None:
    """Held-out texts with their codes, and what these are read as."""
    from gritvq.text import TextBatch

    first = next(iter(data.val_dataloader()))
    codes_page(tokenizer, data.format.texts(TextBatch(first.tokens[:_SHOWN], first.segments[:_SHOWN])), path)
