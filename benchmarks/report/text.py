"""The section of measurements in the page about text, and the place of the page of texts in the navigation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from benchmarks.quality.common import HERE
from benchmarks.report.tables import circumstances, markdown_table

from gritvq.results import read_results

_IDENTITY = ("study", "method", "settings", "codebook_size", "seed")
_WRITTEN = {
    "distinct_1": ("Dist-1", ".3f"),
    "distinct_2": ("Dist-2", ".3f"),
    "self_bleu": ("self-BLEU", ".1f"),
    "different_texts": ("different", ".3f"),
    "words": ("words/text", ".1f"),
    "sentence_distinct_2": ("Dist-2, a sentence", ".3f"),
    "sentence_self_bleu": ("self-BLEU, a sentence", ".1f"),
    "sentence_words": ("words/sentence", ".1f"),
}
_COST = {"parameters": ("parameters", ",.0f"), "seconds_per_step": ("s/step", ".2f")}
_LATENTS = {
    "nats_per_token": ("nats/token", ".3f"),
    "perplexity": ("perplexity", ".1f"),
    "elbo_nats_per_token": ("bound", ".3f"),
    "effective_samples": ("effective draws", ".1f"),
    "kl_per_segment": ("KL", ".2f"),
    "least_kl_per_segment": ("least KL", ".1f"),
    "mutual_information_per_segment": ("information", ".2f"),
    "active_units": ("active", ".0f"),
    "token_accuracy": ("accuracy", ".3f"),
    "token_accuracy_of_prior_means": ("of prior means", ".3f"),
    **_COST,
}
_CODES = {
    "nats_per_token_with_prior": ("bound, prior", ".3f"),
    "nats_per_token_bound": ("bound, equal codes", ".3f"),
    "nats_per_token_given_codes": ("nats/token given codes", ".3f"),
    "token_accuracy": ("accuracy", ".3f"),
    "usage": ("usage", ".3f"),
    "perplexity_of_codes": ("perplexity of codes", ".0f"),
    "bits_per_segment": ("bits/segment", ".1f"),
    "prior_bits_per_segment": ("under the prior", ".2f"),
    **_COST,
}
_TOLD = """Means over seeds, in brackets the smallest and largest, sorted by the first figure. KL and information are
nats per sentence. The bounds of the first two tables are negative log-probabilities of text per token and compare with
each other. Those of tokenizers count codes as a prior does that was trained on the codes of the training documents, or
all as equally probable; the texts that they write have codes drawn from that prior. Documents, and sentences, that are
longer than a model takes are cut into pieces, and figures are those of all pieces. Latents are drawn {num_samples}
times for each. The last table has {num} texts of each model, drawn with {settings} in all rows; "different" is the
share of texts that no other equals. Longer texts have a smaller Dist-n, whoever writes them: where it was measured,
{num} texts of one sentence each stand beside whole ones."""
PLAN = HERE / "text.yaml"
_MARK = re.compile(r"<!-- table text -->.*?<!-- end -->", re.DOTALL)
_ENTRY, _BEFORE = "  - Text samples: text-samples.md\n", "  - Text: text.md\n"


def with_text(page: str, folder: Path, docs: Path) -> str:
    """The page with the section between its marks made again."""
    return _MARK.sub(lambda _: f"<!-- table text -->\n\n{text_section(folder, docs)}\n\n<!-- end -->", page)


def with_navigation(text: str, docs: Path) -> str:
    """The navigation, with the page of texts if there is one."""
    text = text.replace(_ENTRY, "")
    return text.replace(_BEFORE, _BEFORE + _ENTRY) if (docs / "text-samples.md").is_file() else text


def text_section(folder: Path, docs: Path) -> str:
    """Models, tokenizers, and the recurrence, of all hardware and data with results."""
    parts, told = list[str](), False
    for path in sorted(folder.glob("text_*.csv")):
        runs, stamp = read_results(path, _IDENTITY), path.stem.removeprefix("text_")
        models = [run for run in runs if run["study"] != "recurrence"]
        for study, data in sorted({(run["study"], run["data"]) for run in models}):
            own = [run for run in models if (run["study"], run["data"]) == (study, data)]
            parts += [] if told else [_told()]
            parts += [f"### {study}, {data}, {stamp}", circumstances(own)]
            told = True
            for columns, first, sign in (
                (_LATENTS, "nats_per_token", 1),
                (_CODES, "nats_per_token_with_prior", 1),
                (_WRITTEN, "distinct_1", -1),
            ):
                if some := [run for run in own if first in run]:
                    parts.append(_table(some, columns, first, sign))
        if timed := [run for run in runs if run["study"] == "recurrence"]:
            parts += [f"### Recurrence, {stamp}", circumstances(timed), _speed(timed)]
    if told and (docs / "text-samples.md").is_file():
        parts.append("[Texts of the models](text-samples.md)")
    return "\n\n".join(parts) or "Not measured yet."


def _told() -> str:
    plan = yaml.safe_load(PLAN.read_text())
    num, settings = plan["writing"]["num"], {**plan["writing"], "temperature": 1, "seeds": "0, 1, ..."}
    words = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "num")
    return _TOLD.format(num_samples=plan["num_samples"], num=num, settings=words)


def _table(runs: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]], first: str, sign: int) -> str:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["settings"]), []).append(run)
    rows = []
    for (method, settings), own in sorted(groups.items(), key=lambda item: sign * _mean(item[1], first)):
        figures = [_figure(own, name, style) for name, (_, style) in columns.items()]
        rows.append([method, settings, *figures, str(len(own))])
    return markdown_table(("method", "settings", *(word for word, _ in columns.values()), "seeds"), rows)


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(run[name] for run in runs) / len(runs))


def _figure(runs: Sequence[Mapping[str, Any]], name: str, style: str) -> str:
    """Mean, smallest and largest of the runs that have the figure, and of how many if some have not."""
    own = [run for run in runs if name in run]
    if not own:
        return "-"
    least, largest = (f"{end(run[name] for run in own):{style}}" for end in (min, max))
    told = [f"{least}-{largest}"] if least != largest else []
    told += [f"{len(own)} of {len(runs)} seeds"] if len(own) < len(runs) else []
    return f"{_mean(own, name):{style}}" + (f" ({', '.join(told)})" if told else "")


def _speed(runs: Sequence[Mapping[str, Any]]) -> str:
    ways = {(run["settings"], run["method"]): run["seconds"] for run in runs}
    rows = []
    for settings in dict.fromkeys(run["settings"] for run in runs):
        scan, parallel = (1e3 * ways[settings, way] for way in ("scan", "parallel"))
        rows.append([settings, f"{scan:.3f}", f"{parallel:.3f}", f"{scan / parallel:.1f}"])
    columns = ("size", "one after the other (ms)", "all at once (ms)", "times faster")
    return markdown_table(columns, rows)
