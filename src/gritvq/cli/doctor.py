"""The verb ``doctor``: what is wrong with the codebook of a run or a tokenizer, in words."""

from __future__ import annotations

import inspect
import math
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from gritvq.cli.errors import parser_class, read_yaml
from gritvq.cli.machine import device_named, machine_arguments
from gritvq.cli.output import list_files
from gritvq.cli.run_folder import check_places, overwrite_argument
from gritvq.cli.settings import check_positive, check_unused, class_of
from gritvq.cli.tokens import document_arguments, loaded
from gritvq.training.run_folder import RunFolder

if TYPE_CHECKING:
    from gritvq.quantizers.base import Quantizer
    from gritvq.quantizers.diagnosis import Finding, TrainingFacts

__all__ = ["doctor", "doctor_arguments"]

_OF_PICTURES, _OF_TEXTS = ["data.strict"], ["data.unit", "data.encoding"]
_UNUSED = {"pictures": _OF_TEXTS, "texts": _OF_PICTURES, "items": [*_OF_PICTURES, *_OF_TEXTS, "data.column"]}


def doctor_arguments(parser: Any) -> None:
    """Arguments of doctor."""
    parser.add_argument(
        "path", type=str, help="folder of a run, also of one that goes on; or tokenizer folder or Hub name"
    )
    parser.add_argument(
        "--data.path",
        type=str | None,
        default=None,
        help="what 'gritvq encode' takes, or a .npy file of item embeddings or their catalogue; default: the training "
        "pictures, or the held-out documents, of the run",
    )
    document_arguments(parser, "data.")
    parser.add_argument("--data.strict", type=bool, default=False, help="whether an unreadable picture is an error")
    parser.add_argument("--num_images", type=int, default=512, help="pictures, documents or items to look at")
    machine_arguments(parser)
    parser.add_argument("--json", type=str | None, default=None, help="file for the findings, .json")
    overwrite_argument(parser)


class _Patient(NamedTuple):
    """What is examined.

    Attributes:
        run: The run, or None.
        settings: Its configuration; empty without one.
        tokenizer: Its tokenizer, or None where there is none yet.
        jobs: Module with the jobs of the tokenizer's domain.
        what: What the tokenizer takes.
        said: What of it is looked at.
    """

    run: RunFolder | None
    settings: dict[str, Any]
    tokenizer: Any
    jobs: Any
    what: str
    said: list[str]


def doctor(parser: Any, config: Any) -> None:
    """Say what is wrong with the codebook of a run or a tokenizer, with the number that shows it and what to do."""
    from gritvq.files import write_json
    from gritvq.quantizers.diagnosis import most_severe_first
    from gritvq.training.diagnosis import examine_logs, read_logs

    check_positive(batch_size=config.batch_size, num_images=config.num_images)
    device_named(config.device)
    out = None if config.json is None else Path(config.json)
    if out is not None:
        check_places(out.parent, [out.name], config.overwrite)
    patient = _patient(parser, config)
    found: list[Finding] = []
    if patient.tokenizer is not None:
        found += _of_tokenizer(patient, config)
    elif config.data.path is not None:
        raise ValueError(
            f"expected no --data.path for {config.path}, which has no tokenizer yet, got one; leave it out"
        )
    if patient.run is not None:
        sizes = _sizes(patient)
        logs = read_logs(patient.run.logs)
        seen = {finding.name for finding in found}
        found += [finding for finding in examine_logs(logs, max(sizes, default=None)) if finding.name not in seen]
        steps = max((step for values in logs.values() for step, _ in values), default=None)
        patient.said.append("no logs" if steps is None else f"logs up to step {steps + 1:,}")
    if not patient.said or patient.said == ["no logs"]:
        raise ValueError(
            f"expected a run with a tokenizer, a checkpoint or logs, got {config.path} without; wait for its first "
            "steps"
        )
    found = most_severe_first(found)
    _print(config.path, patient, found)
    if out is not None:
        rows = [{**_plain(finding), "arguments": _arguments(finding, patient.settings)} for finding in found]
        write_json(out, {"path": config.path, "examined": patient.said, "findings": rows})
        list_files({"findings": out})


# --- what is there ----------------------------------------------------------------------------------------------------


def _patient(parser: Any, config: Any) -> _Patient:
    run = RunFolder(config.path)
    if not run.config.is_file():
        if run.path.is_dir() and run.is_run and not run.tokenizer.is_dir():
            raise ValueError(
                f"expected a run of a tokenizer, got {config.path}, which has another model; give another run"
            )
        source = str(run.tokenizer) if (run.tokenizer / "config.json").is_file() else config.path
        tokenizer, jobs, what = loaded(source, config.trusted, items=True)
        near = RunFolder(Path(source).resolve().parent)
        settings = _settings(near) if near.config.is_file() else {}
        patient = _Patient(None, settings, tokenizer, jobs, what, [f"the tokenizer {source}"])
    else:
        settings = _settings(run)
        if "ids" in settings or "prior" in settings:
            raise ValueError(
                f"expected a run of 'gritvq fit images' or 'gritvq fit text', got {config.path}, which trained "
                "something else; give the run of its tokenizer"
            )
        tokenizer, jobs, what, said = None, None, "pictures" if "model" not in settings else "texts", "no tokenizer yet"
        if (run.tokenizer / "config.json").is_file():
            tokenizer, jobs, what = loaded(str(run.tokenizer), config.trusted)
            said = "the tokenizer"
        elif run.last_checkpoint.is_file() and what == "pictures":
            from gritvq.cli import images as jobs

            tokenizer, step = _from_checkpoint(run)
            said = f"the checkpoint of step {step:,}"
        patient = _Patient(run, settings, tokenizer, jobs, what, [said] if tokenizer is not None else [])
    check_unused(parser, config, _UNUSED[patient.what], f"a tokenizer of {patient.what}")
    return patient


def _settings(run: RunFolder) -> dict[str, Any]:
    """The configuration of a run."""
    try:
        found = read_yaml(run.config)
    except yaml.YAMLError as error:
        raise ValueError(f"expected the configuration of a run, got {run.config} ({error}); repair it") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected the configuration of a run, got {run.config} without settings; repair it")
    return found


def _from_checkpoint(run: RunFolder) -> tuple[Any, int]:
    """The tokenizer of pictures of a run that goes on, from its configuration and its last checkpoint."""
    import torch

    from gritvq.cli import fit
    from gritvq.cli.fit_images import spread
    from gritvq.files import check_archive
    from gritvq.training.task import steps_done

    own, config, given = fit.configuration(parser_class(), "images", ["--config", str(run.config)])
    spread(config, given)
    config.callbacks = config.loggers = None
    with torch.random.fork_rng():
        tokenizer = own.instantiate(config).tokenizer
    try:
        check_archive(run.last_checkpoint)
        checkpoint = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True)
        prefix = "tokenizer."
        state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        tokenizer.load_state_dict(state, strict=False)
        return tokenizer.eval(), steps_done(checkpoint)
    except Exception as error:  # reading damaged files fails in many ways
        raise ValueError(
            f"expected a readable checkpoint of this configuration, got {run.last_checkpoint} ({error}); wait for the "
            "next one"
        ) from error


def _sizes(patient: _Patient) -> tuple[int, ...]:
    """Codes of each channel, also of a run without a tokenizer."""
    if patient.tokenizer is not None:
        return tuple(patient.tokenizer.quantizer.codebook_sizes)
    size = (_quantizer_of(patient.settings)[1].get("init_args") or {}).get("codebook_size")
    return (size,) if isinstance(size, int) else ()


def _quantizer_of(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a run's quantizer is set, and its class and arguments."""
    for place in ("tokenizer", "model"):
        found = settings.get(place)
        for name in ("init_args", "quantizer") if place == "model" else ("quantizer",):
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return f"{place}.quantizer", found
    return "", {}


# --- examining --------------------------------------------------------------------------------------------------------


def _of_tokenizer(patient: _Patient, config: Any) -> list[Finding]:
    """Findings of tokenizer and data; adds to what is said to be examined."""
    import torch

    from gritvq.quantizers.diagnosis import examine

    tokenizer = patient.tokenizer.to(device_named(config.device)).eval()
    if patient.what == "items":
        return _of_items(patient, config)
    quantizer: Quantizer = tokenizer.quantizer
    source = str(patient.run.tokenizer) if patient.run is not None else config.path
    settings = patient.settings.get("data") if patient.what == "pictures" else None
    try:
        with torch.no_grad():
            latents, about, per_sample = patient.jobs.latents(tokenizer, config, source, settings)
    except ValueError as error:
        if config.data.path is not None:
            raise
        patient.said.append(f"no data ({error})")
        return examine(quantizer)
    count = latents.numel() // latents.shape[-1]
    patient.said.append(f"{count:,} latents of {about}")
    return examine(quantizer, latents, training=_facts(patient, per_sample))


def _of_items(patient: _Patient, config: Any) -> list[Finding]:
    """Findings of a tokenizer of items: of its quantizer, or of each table that it searches."""
    import torch

    from gritvq.quantizers.diagnosis import examine

    tokenizer, given = patient.tokenizer, config.data.path is not None
    if given:
        parts, about = patient.jobs.searches(tokenizer, config)
        patient.said.append(about)
    else:
        parts = tokenizer.searches(torch.zeros(1, tokenizer.dim))
        patient.said.append("no data (give item embeddings with --data.path)")
    found: list[Finding] = []
    for name, (quantizer, latents) in parts.items():
        if found and not bool(latents.isfinite().all(1).any()):  # by codes of the levels before, which are found
            continue
        for finding in examine(quantizer, latents if given else None):
            part = ".".join(part for part in (name, finding.part) if part)
            says = f"{name}: {finding.says}" if name else finding.says
            found.append(finding._replace(part=part, says=says))
    return found


def _facts(patient: _Patient, per_sample: float) -> TrainingFacts | None:
    """How the run trains, as its configuration says; None of one that does not say it."""
    from gritvq.quantizers.diagnosis import TrainingFacts
    from gritvq.training.optimizer import OptimizerSettings

    try:
        task, plan, data = (patient.settings[name] for name in ("task", "plan", "data"))
        steps = int(plan["max_steps"])
        names = ("lr", "warmup_steps", "schedule")
        optimizer = OptimizerSettings(**{name: task[name] for name in names})
        at = range(0, steps, max(1, steps // 1000))
        mean = sum(optimizer.rate(step, steps) for step in at) / len(at)
        batches = plan["accumulate"] * plan["devices"] * plan["num_nodes"]
        return TrainingFacts(float(task["lr"]), steps, round(data["batch_size"] * batches * per_sample), mean)
    except (KeyError, TypeError, ValueError):
        return None


# --- saying -----------------------------------------------------------------------------------------------------------


def _print(path: str, patient: _Patient, found: Sequence[Finding]) -> None:
    count = {0: "nothing found", 1: "1 finding"}.get(len(found), f"{len(found)} findings")
    for line in _lines(f"{path}: {count}"):
        print(line)
    for line in _lines(f"examined: {'; '.join(patient.said)}"):
        print(line)
    for number, finding in enumerate(found, 1):
        print()
        arguments = _arguments(finding, patient.settings)
        told = f" In a new run: {' '.join(arguments)}" if arguments else ""
        for text, first in (
            (f"{number}. {finding.name[:1].upper()}{finding.name[1:]}. {finding.says}", ""),
            (f"Number {finding.number:.4g}, limit {finding.limit:.4g}.", "   "),
            (f"What to do: {finding.advice}{told}", "   "),
        ):
            for line in _lines(text, first, "   "):
                print(line)


def _lines(text: str, first: str = "", others: str = "") -> list[str]:
    """A paragraph; it wraps in a terminal."""
    if not sys.stdout.isatty():
        return [first + text]
    width = max(40, min(100, shutil.get_terminal_size().columns))
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def _arguments(finding: Finding, settings: Mapping[str, Any]) -> list[str]:
    """Arguments of ``gritvq fit`` that mend a finding: those that the run's quantizer takes and does not have yet."""
    place, described = _quantizer_of(settings)
    try:
        takes = set(inspect.signature(class_of(described["class_path"])).parameters)
    except Exception:  # none, or a class that is not there
        return []
    own = described.get("init_args") or {}
    lr = (settings.get("task") or {}).get("lr")
    given: list[str] = []
    for name, value in finding.settings:
        if name == "lr" and isinstance(lr, int | float):
            given.append(f"--task.lr {lr / 3:.2g}")
        elif name in takes and own.get(name) != value:
            short = name in ("dim", "codebook_size") and place == "tokenizer.quantizer"  # of encoder and decoder too
            given.append(f"--{name} {value}" if short else f"--{place}.{name} {value}")
    return given


def _plain(finding: Finding) -> dict[str, Any]:
    """A finding as JSON, in which there is no infinity."""
    numbers = {name: value for name in ("number", "limit") if math.isfinite(value := getattr(finding, name))}
    return {
        "name": finding.name,
        "part": finding.part,
        "says": finding.says,
        "number": numbers.get("number"),
        "limit": numbers.get("limit"),
        "advice": finding.advice,
    }
