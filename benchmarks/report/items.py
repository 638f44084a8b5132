"""Tables of ``docs/semantic-ids.md``: recommenders, item tokenizers, baselines, masking by the trie."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.tables import circumstances, markdown_table

from gritvq.plotting import new_figure, save_figure
from gritvq.results import IDENTITY, read_results

RUN = ("method", "settings", "codebook_size", "seed")
HEADLINED = ("method", "settings", "seed")
NEXT = ("method", "level", "split", "users", "beam", "step", "seed")
RECOMMENDER = ("method", "steps", "beam", "seed")
ADDED = ("method", "ranked", "steps", "seed")
TRIE = ("method", "users", "beams", "items", "token")
CODES = ("parallel", "sequential")  # how names of recommenders begin that are trained to predict the codes of an id
RANKING = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
ABOUT = ("hardware", "versions", "commit")

TOKENIZERS = """    python -m benchmarks.quality.items --data PATH-TO-AMAZON-BEAUTY

MiniLM embeddings of titles (384 components; 12,101 items of Amazon Beauty), three levels of 256 codes, before any
collision policy. "Unique" is the share of distinct ids, "in collision" the share of items that share their id,
"error" the squared error of decoding over the variance, "neighbors" the share of an item's ten nearest embeddings
among the ten items with the longest common prefix. Means over seeds, smallest and largest in brackets. Every RQ-VAE
has the same networks, steps and rates. They were chosen with `grit_vq` units on seed 0 alone, by uniqueness and
perplexity on the same items; tokenizers see no interactions. Minutes are processor time. For the other units only the
variances of the two stochastic ones (`gm_vq`, `rsq_vae`) were tuned, on seed 0; without that they collapse. So a row
shows a unit under these settings, not which unit is best."""

ROBUSTNESS = """The same runs. "Effective codes" of a level are the number of equally used codes without overlap that
would be confused as little when embeddings get noise of a tenth of their spread. "Kept" is the share of ids that this
noise does not change, "cohesion" the mean cosine of two items that share one, two or three codes.
`gritvq.items.ids.metrics` has the formulas."""

HEADLINE = """    python -m benchmarks.quality.recommenders --data PATH-TO-AMAZON-BEAUTY
    python -m benchmarks.quality.recommend --data PATH-TO-RECSYS

`--recommenders NAME` after the first command, with a name of `benchmarks/quality/recommenders.yaml`, makes one row
alone, as `--methods NAME` does after the second; `--seeds` says with which seeds.

The last event of each user is for test, ranked in the whole catalogue (Amazon Beauty has 22,363 users and 12,101
items); means over seeds, smallest and largest in brackets. Nobody has an item twice in these data, so lists may exclude
the items that a user has seen; published tables differ in whether they do, and each row says what it does. Recommenders
on semantic ids are what `gritvq fit items` makes of a configuration in `configs/items`, the checkpoint chosen by
NDCG@10 of as many validation users as it says; their settings were chosen on validation users of Amazon Beauty, too.
"Titles and buyers" are ids of title embeddings and of vectors of who had which items in the training part. Minutes are
processor time of the whole command on one thread, ids, validation and test included."""

UNITS = """    python -m benchmarks.quality.recommenders --study units --data PATH-TO-AMAZON-BEAUTY

One recommender, that of `beauty-catalogue.yaml` with a quarter of its steps, on ids of eight codes of 256 (64 bits) of
titles and buyers, by what made the ids: chance, k-means (residual, and of a product with and without a rotation), or an
RQ-VAE of linear networks with the same steps and rate for each kind of unit: residual levels, but a product of grids
for `fsq`, whose networks map to as few components as its grids have. Means over seeds of ids and model, smallest and
largest in brackets."""

BASELINES = """    python -m benchmarks.quality.recommend --data PATH-TO-RECSYS

Popularity counts training events. Co-occurrence is the row of the user's last item in a matrix of training pairs at
most three apart. Text cosine ranks items by their similarity to the last item, which is excluded. SASRec is trained
with cross-entropy over the whole catalogue; its settings and the end of training were chosen on validation data. Ties
get the mean rank; "half ranks rounded down" is popularity as in the published reference, and "seen excluded" ranks
without the items that the user has, which SASRec is then trained without, too."""

SCORING = """    python -m benchmarks.speed.parallel

Random ids and log-probabilities, the model left out: the ten best of a million items for each of 256 users. The dense
way gathers the log-probability of every item for every user and channel, in blocks. Median of rounds that take turns,
and their 20th to 80th percentile."""

NEW_ITEMS = """    python -m benchmarks.quality.new_items --data PATH-TO-AMAZON-BEAUTY

A random tenth of the items is taken out of all training histories and gets ids afterwards, from titles alone. Ranked
are the test items of users whose test item is new, seen items excluded. The recommender has the settings of
`beauty-catalogue.yaml` and a quarter of its steps; with content, its scores have that part added, whose size and weight
were chosen on validation items of Amazon Beauty, seed 0. A seed is that of the new items, ids and model; means,
smallest and largest in brackets. The time for a thousand ids includes encoding."""

NEXT_ITEM = """    python -m benchmarks.quality.next_item train --data PATH-TO-AMAZON-BEAUTY --run RUN
    python -m benchmarks.quality.next_item measure --data PATH-TO-AMAZON-BEAUTY --run RUN

`configs/items/beauty-small.yaml`: less than two million parameters, ids of residual k-means with an appended token;
means over the seeds of the model, smallest and largest in brackets. Test numbers during training are of a fixed sample
of users; the last table is of all users, for each seed with the copy of the best validation NDCG@10. "id" counts any
item with the target's id. Minutes are processor time."""

RECOMMENDERS = """    python -m benchmarks.quality.item_recommenders --data PATH-TO-AMAZON-BEAUTY

The model of the table above on ids of different tokenizers (settings in `benchmarks/quality/items.yaml`), each with an
appended token for equal ids, and on random ids, which are distinct but independent of the items. Everything else is
equal, and runs are short: nothing is tuned, no copy is selected, all test users are ranked once. Means over seeds (of
tokenizer and recommender), smallest and largest in brackets. "Unique" is the share of distinct ids without the appended
token."""

ENCODING = """    python -m benchmarks.speed.encode --data PATH-TO-AMAZON-BEAUTY

A million embeddings of 384 float16 components from a memory-mapped file. The RQ-VAE here trained for 200 steps only."""

MASKING = """    python -m benchmarks.speed.trie

Time to mask the codes of all beams of all users, the model left out: the trie of this library against
`prefix_allowed_tokens_fn` of transformers, masks compared for equality; medians, by token and for a whole id."""


def _spread(values: Sequence[float], form: str) -> str:
    """Mean, and smallest and largest where they differ."""
    texts = [format(value, form) for value in values]
    mean = format(sum(values) / len(values), form)
    return mean if len(set(texts)) == 1 else f"{mean} ({format(min(values), form)}-{format(max(values), form)})"


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(run[name]) for run in runs) / len(runs)


def _grouped(results: Sequence[Mapping[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[name] for name in by), []).append(result)
    return groups


def _data_sets(
    folder: Path, theme: str, identity: Sequence[str] = IDENTITY
) -> list[tuple[Path, str, list[Mapping[str, Any]]]]:
    """Each file of a theme and each data set in it, with its rows: no table has numbers of two data sets."""
    return [
        (path, data, rows)
        for path in sorted(folder.glob(f"{theme}_*.csv"))
        for (data,), rows in sorted(_grouped(read_results(path, identity), ("data",)).items())
    ]


def tokenizers(folder: Path) -> str:
    """All tokenizers, the most unique ids first: quality of the ids, then their robustness and cohesion."""
    parts = []
    columns = ("tokenizer", "settings", "unique", "in collision", "largest", "perplexity 1", "2", "3")
    columns += ("error", "neighbors", "minutes", "seeds")
    firm_columns = ("tokenizer", "effective codes 1", "2", "3", "kept", "cohesion 1", "2", "3")
    for _, _, results in _data_sets(folder, "items_tokenizers"):
        groups = _grouped(results, ("method", "settings"))
        ranked = sorted(groups, key=lambda key: -_mean(groups[key], "uniqueness"))
        lines, firm_lines = [], []
        for key in ranked:
            runs = groups[key]

            def told(name: str, form: str, runs: Sequence[Mapping[str, Any]] = runs) -> str:
                return _spread([float(run[name]) for run in runs], form)

            row = [*key, told("uniqueness", ".4f"), told("items_in_collision", ".3f"), told("largest_group", ".0f")]
            row += [told(f"level{level}/perplexity", ".0f") for level in (1, 2, 3)]
            row += [told("reconstruction/relative_error", ".3f"), told("neighbours/prefix_recall@10", ".3f")]
            row += [_spread([float(run["fit_cpu_seconds"]) / 60 for run in runs], ".1f"), str(len(runs))]
            lines.append(row)
            firm_row = [key[0], *(told(f"level{level}/effective_codes", ".0f") for level in (1, 2, 3))]
            firm_row += [told("perturbed/kept_ids", ".3f"), *(told(f"depth{d}/cohesion", ".2f") for d in (1, 2, 3))]
            firm_lines.append(firm_row)
        parts += [circumstances(results, ("data", *ABOUT, "comparison")), markdown_table(columns, lines)]
        parts += [ROBUSTNESS, markdown_table(firm_columns, firm_lines)]
    return "\n\n".join([TOKENIZERS, *parts])


def baselines(folder: Path) -> str:
    """The baselines, best first within a data set."""
    parts = []
    columns = ("data", "method", "R@5", "N@5", "R@10", "N@10", "users", "seeds")
    for path in sorted(folder.glob("items_baselines_*.csv")):
        results = read_results(path, RUN)
        rows = []
        for (data, method), runs in _grouped(results, ("data", "method")).items():
            numbers = [_spread([float(run[name]) for run in runs], ".4f") for name in RANKING]
            rows.append(
                (
                    data,
                    -_mean(runs, "recall@10"),
                    [data, method, *numbers, f"{float(runs[0]['users']):,.0f}", str(len(runs))],
                )
            )
        lines = [row for *_, row in sorted(rows, key=lambda each: each[:2])]
        parts += [circumstances(results, ABOUT), markdown_table(columns, lines)]
    return "\n\n".join([BASELINES, *parts])


def headline(folder: Path) -> str:
    """Recommenders as users train them among the baselines, best first."""
    parts = []
    for path, data, own in _data_sets(folder, "items_headline", HEADLINED):
        machine = path.stem.removeprefix("items_headline_").rpartition("_")[0]  # either table can have begun earlier
        others = sorted(folder.glob(f"items_baselines_{machine}_*.csv"))
        known = [row for each in others for row in read_results(each, RUN) if row["data"] == data]
        known = [row for row in known if _lists_of(row["method"])[0] in _FLOORS.values()]
        lines = []
        for ids, results in (("semantic ids", own), ("-", known)):
            for (method,), runs in _grouped(results, ("method",)).items():
                numbers = [_spread([float(run[name]) for run in runs], ".4f") for name in RANKING]
                minutes = f"{_mean(runs, 'minutes'):.0f}" if "minutes" in runs[0] else "-"
                name, lists = _lists_of(method)
                lines.append((_mean(runs, "recall@10"), [name, ids, lists, *numbers, minutes, str(len(runs))]))
        columns = ("recommender", "works on", "seen items", *_SHORT, "minutes", "seeds")
        ranked = [line for _, line in sorted(lines, key=lambda each: -each[0])]
        parts += [circumstances(own, ("data", *ABOUT)), markdown_table(columns, ranked), *verdict(own, known)]
    return "\n\n".join([HEADLINE, *parts])


def verdict(own: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where semantic ids win and where they lose, as the rows have it; nothing without rows of both kinds."""
    ids, others = ([runs for _, runs in _grouped(rows, ("method",)).items()] for rows in (own, known))
    if not ids or not others:
        return []
    first, second = (max(each, key=_recall) for each in (ids, others))
    lead = _recall(first) - _recall(second)
    more, less = (first, second) if lead > 0 else (second, first)
    fate = "win" if lead > 0 else "lose" if lead < 0 else "draw"
    told = f"At their best, semantic ids {fate} by R@10: best with semantic ids is {_told(first)}; "
    told += f"best without, {_told(second)}"
    if min(len(more), len(less)) > 1:
        apart = min(float(run["recall@10"]) for run in more) > max(float(run["recall@10"]) for run in less)
        told += f"; their seeds {'do not overlap' if apart else 'overlap'}"
    clauses, verbs = [], set()
    for way in CODES:
        if of_way := [runs for runs in ids if str(runs[0]["method"]).startswith(way)]:
            best = max(of_way, key=_recall)
            rules = [runs for runs in others if _untrained(runs) and _listed(runs) == _listed(best)]
            rules.sort(key=_recall, reverse=True)
            sides = {
                "loses to": [_named(runs) for runs in rules if _recall(runs) > _recall(best)],
                "equals": [_named(runs) for runs in rules if _recall(runs) == _recall(best)],
                "beats": [_named(runs) for runs in rules if _recall(runs) < _recall(best)],
            }
            faced = {verb: " and ".join(names) for verb, names in sides.items() if names}
            verbs |= {*faced}
            if faced:
                clauses.append(f"{_told(best)}, " + " and ".join(f"{verb} {names}" for verb, names in faced.items()))
    if clauses:
        fates = {"beats": "win", "loses to": "lose"}
        fate = " and ".join(word for verb, word in fates.items() if verb in verbs) or "draw"
        told += f". Where a model learns the codes of an id, they {fate} against rules without training: "
        told += "; ".join(clauses)
    return [textwrap.fill(f"{told}.", 120, break_on_hyphens=False)]


def _recall(runs: Sequence[Mapping[str, Any]]) -> float:
    return _mean(runs, "recall@10")


def _named(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row's name without its lists, and its recall."""
    return f"{_lists_of(runs[0]['method'])[0].removesuffix(_RULE)} ({_recall(runs):.4f})"


def _told(runs: Sequence[Mapping[str, Any]]) -> str:
    name, lists = _lists_of(runs[0]["method"])
    return f'"{name}", seen items {lists}, {_recall(runs):.4f}'


def _listed(runs: Sequence[Mapping[str, Any]]) -> str:
    return _lists_of(runs[0]["method"])[1]


def _untrained(runs: Sequence[Mapping[str, Any]]) -> bool:
    return _lists_of(runs[0]["method"])[0].endswith(_RULE)


def units(folder: Path) -> str:
    """One recommender on ids of one length, by what made them, best first."""
    parts = []
    columns = ("ids by", *_SHORT, "minutes", "seeds")
    for _, _, results in _data_sets(folder, "items_units", HEADLINED):
        groups = [runs for _, runs in _grouped(results, ("method",)).items()]
        lines = []
        for runs in sorted(groups, key=_recall, reverse=True):
            numbers = [_spread([float(run[name]) for run in runs], ".4f") for name in RANKING]
            lines.append([runs[0]["method"], *numbers, f"{_mean(runs, 'minutes'):.0f}", str(len(runs))])
        parts += [circumstances(results, ("data", *ABOUT)), markdown_table(columns, lines, texts=1)]
    return "\n\n".join([UNITS, *(parts or ["Not measured yet."])])


def _lists_of(method: str) -> tuple[str, str]:
    """A row's name, and what becomes of seen items."""
    own = method in _FLOORS or method.endswith(", seen kept")
    name = method.removesuffix(", seen kept").removesuffix(", seen excluded")
    return _FLOORS.get(name, name), "kept" if own else "excluded"


_SHORT = ("R@5", "N@5", "R@10", "N@10")
_RULE = ", no training"
_FLOORS = {
    "popularity": f"popularity{_RULE}",
    "text cosine": f"cosine of titles{_RULE}",
    "co-occurrence": f"co-occurrence{_RULE}",
    "sasrec": "SASRec, ours",
    "cornac sasrec": "SASRec of cornac",
}


def next_item(folder: Path, images: Path) -> str:
    """Metrics against training time, then the selected copy on all users."""
    parts = []
    for path, data, found in _data_sets(folder, "items_next", NEXT):
        results = sorted(found, key=lambda row: int(row["step"]))
        most = max(int(row["users"]) for row in results)
        curve = [row for row in results if int(row["users"]) < most and row["level"] == "item"]
        lines = []
        for (step,), runs in _grouped(curve, ("step",)).items():
            row = [step, f"{_mean(runs, 'minutes'):.1f}"]
            seeds = len({run["seed"] for run in runs})
            for split, name in _SHOWN:
                values = [float(run[name]) for run in runs if run["split"] == split]
                row.append(_spread(values, ".4f") if len(values) == seeds else "-")  # else measured for some seeds only
            lines.append([*row, str(seeds)])
        whole = []
        for (method, level, beam), runs in _grouped(
            [row for row in results if int(row["users"]) == most], ("method", "level", "beam")
        ).items():
            for run in sorted(runs, key=lambda run: int(run["seed"])):
                numbers = [f"{float(run[name]):.4f}" for name in RANKING]
                whole.append(
                    [method, level, str(run["seed"]), str(run["step"]), f"{float(run['minutes']):.1f}", beam, *numbers]
                )
            if len(runs) > 1:
                means = [f"{_mean(runs, name):.4f}" for name in RANKING]
                whole.append([method, level, "mean", "-", f"{_mean(runs, 'minutes'):.1f}", beam, *means])
        parts += [circumstances(results, ("data", *ABOUT))]
        columns = ("step", "minutes", "validation R@10", "validation N@10", "test R@10", "seeds")
        parts += [markdown_table(columns, lines), f"All {most:,} users:"]
        columns = ("method", "counted", "seed", "step", "minutes", "beam", "R@5", "N@5", "R@10", "N@10")
        parts += [markdown_table(columns, whole)]
        plot = images / f"{path.stem}_{data}.png"
        curve_plot(curve, _baselines_of(folder, data), plot)
        parts.append(f"![Recall against training time](images/{plot.name})")
    return "\n\n".join([NEXT_ITEM, *parts])


def _baselines_of(folder: Path, data: str) -> dict[str, float]:
    """Test R@10 of the baselines on a data set."""
    rows = [row for path in sorted(folder.glob("items_baselines_*.csv")) for row in read_results(path, RUN)]
    wanted = ("popularity", "text cosine", "co-occurrence")
    return {row["method"]: float(row["recall@10"]) for row in rows if row["data"] == data and row["method"] in wanted}


def curve_plot(curve: Sequence[Mapping[str, Any]], baselines: Mapping[str, float], path: Path) -> None:
    """Recall@10 against minutes of training, with the baselines as lines."""
    figure, axis = new_figure(7.2, 4.0)
    for split, color in (("validation", "#9ab8cc"), ("test", "#20638a")):
        chosen = [run for run in curve if run["split"] == split]
        label = f"{split}, {int(chosen[0]['users']):,} users" if chosen else split
        for number, runs in enumerate(_grouped(chosen, ("seed",)).values()):
            minutes, recall = ([float(run[name]) for run in runs] for name in ("minutes", "recall@10"))
            axis.plot(minutes, recall, "o-", color=color, label=None if number else label, markersize=4, linewidth=1)
    for name, value in baselines.items():
        axis.axhline(value, color="#b03a2e", linewidth=1, linestyle="--")
        axis.annotate(f"{name}, test", (0.01, value), xycoords=("axes fraction", "data"), ha="left", va="bottom")
    axis.set(xlabel="processor minutes of training", ylabel="Recall@10, items", xlim=(0, None), ylim=(0, None))
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.2))
    save_figure(figure, path)


def recommenders(folder: Path, images: Path) -> str:
    """The same recommender on different ids, best first."""
    parts = []
    columns = ("ids", "steps", "beam", "unique", "R@5", "N@5", "R@10", "N@10", "minutes", "seeds")
    for path, data, results in _data_sets(folder, "items_recommenders", RECOMMENDER):
        groups = _grouped(results, ("method", "steps", "beam"))
        ranked = sorted(groups, key=lambda key: -_mean(groups[key], "recall@10"))
        lines = []
        for key in ranked:
            runs = groups[key]
            told = {name: [float(run[name]) for run in runs] for name in ("uniqueness", *RANKING)}
            numbers = [_spread(values, ".4f") for values in told.values()]
            lines.append([*key, *numbers, f"{_mean(runs, 'minutes'):.1f}", str(len(runs))])
        parts += [circumstances(results, ("data", *ABOUT)), markdown_table(columns, lines)]
        plot = images / f"{path.stem}_{data}.png"
        recommender_plot([groups[key] for key in ranked], plot)
        parts.append(f"![Recall of each tokenizer, a dot per seed](images/{plot.name})")
    return "\n\n".join([RECOMMENDERS, *parts])


def recommender_plot(groups: Sequence[Sequence[Mapping[str, Any]]], path: Path) -> None:
    """A line per tokenizer, a dot per seed."""
    figure, axis = new_figure(7.2, 0.6 + 0.4 * len(groups))
    for place, runs in enumerate(groups):
        recall = [float(run["recall@10"]) for run in runs]
        axis.plot(recall, [place] * len(runs), "o", color="#20638a", markersize=6, alpha=0.6)
        axis.plot([sum(recall) / len(recall)], [place], "|", color="#b03a2e", markersize=18, markeredgewidth=2)
    axis.set_yticks(range(len(groups)), [str(runs[0]["method"]) for runs in groups])
    axis.set(xlabel="test Recall@10, items; dots are seeds, bars their mean")
    axis.set(xlim=(0, None), ylim=(len(groups) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.25)
    save_figure(figure, path)


_SHOWN = (("validation", "recall@10"), ("validation", "ndcg@10"), ("test", "recall@10"))


def masking(folder: Path) -> str:
    """Seconds per token and in total."""
    parts = []
    for path in sorted(folder.glob("items_trie_*.csv")):
        results = read_results(path, TRIE)
        rows = [
            [row["token"], row["method"], row["users"], row["beams"], f"{row['seconds']:.4f}", _ratio(row)]
            for row in sorted(results, key=lambda row: (row["token"], row["method"]))
        ]
        parts += [circumstances(results, ("data", *ABOUT))]
        parts += [markdown_table(("token", "method", "users", "beams", "seconds", "times the trie"), rows)]
    return "\n\n".join([MASKING, *parts])


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.1f}" if "ratio" in row else "1"


def encoding(folder: Path) -> str:
    """Items per second and memory."""
    parts = []
    for path in sorted(folder.glob("items_encode_*.csv")):
        results = read_results(path)
        rows = [
            [
                row["method"],
                row["settings"],
                f"{float(row['items_per_second']):,.0f}",
                f"{float(row['peak_bytes']) / 1e6:.0f}",
                f"{float(row['fit_and_encode_seconds']):.1f}",
            ]
            for row in results
        ]
        columns = ("tokenizer", "settings", "items/s", "MB beyond the map", "seconds to fit and encode the catalogue")
        parts += [circumstances(results, ABOUT), markdown_table(columns, rows)]
    return "\n\n".join([ENCODING, *parts])


def added(folder: Path) -> str:
    """Items that were held out of training, ranked among all and among themselves."""
    parts = []
    columns = ("recommender", "ranked in", *_SHORT, "users", "seconds for 1,000 ids", "seeds")
    for _, _, results in _data_sets(folder, "items_new", ADDED):
        rows = []
        for (ranked, method), runs in _grouped(results, ("ranked", "method")).items():
            numbers = [_spread([float(run[name]) for run in runs], ".4f") for name in RANKING]
            timed = [float(run["seconds_per_1000_items"]) for run in runs if "seconds_per_1000_items" in run]
            users = _spread([float(run["users"]) for run in runs], ",.0f")
            rows.append([method, ranked, *numbers, users, _spread(timed, ".2f") if timed else "-", str(len(runs))])
        parts += [circumstances(results, ("data", *ABOUT)), markdown_table(columns, rows)]
    return "\n\n".join([NEW_ITEMS, *parts])


def scoring(folder: Path) -> str:
    """Time and memory of scoring a whole catalogue by parallel ids."""
    parts = []
    columns = ("lists by", "items", "users", "codes", "seconds", "times ours", "MB beyond ids and model")
    for path in sorted(folder.glob("items_parallel_*.csv")):
        results = read_results(path, ("method", "items", "users", "channels", "codebook_size"))
        rows = [
            [
                row["method"],
                f"{int(row['items']):,}",
                row["users"],
                f"{row['channels']} x {row['codebook_size']}",
                f"{row['seconds']:.2f} ({row['seconds_p20']:.2f}-{row['seconds_p80']:.2f})",
                f"{row['ratio']:.1f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
            ]
            for row in results
        ]
        parts += [circumstances(results, (*ABOUT, "threads", "cpu")), markdown_table(columns, rows)]
    return "\n\n".join([SCORING, *parts])


def with_tables(text: str, folder: Path, images: Path) -> str:
    """The page with the content between its marks regenerated, and its plots."""
    tables = {
        "headline": headline,
        "tokenizers": tokenizers,
        "encoding": encoding,
        "baselines": baselines,
        "trie": masking,
        "added": added,
        "units": units,
        "scoring": scoring,
    }
    plotted = {"next": next_item, "recommenders": recommenders}

    def table(mark: re.Match[str]) -> str:
        name = mark["name"]
        made = plotted[name](folder, images) if name in plotted else tables[name](folder)
        return f"<!-- table {name} -->\n\n{made}\n\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)
