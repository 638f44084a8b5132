"""The table of sampling in the page about generation, and the section about tokens of several quantizers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.tables import circumstances, markdown_table

from gritvq.plotting import new_figure, save_figure
from gritvq.results import read_results

GENERATION = """
## Image generation

    python -m benchmarks.quality.generation --data PATH-TO-CIFAR10 --network PATH-TO-CIFAR10-RESNET56
    python -m benchmarks.quality.generation --data PATH-TO-FASHION-MNIST
    python -m benchmarks.quality.generation ... --study heads|orders|losses|levels
    python -m benchmarks.quality.generation ... --study large --device cuda

The same class-conditional autoregressive prior on the tokens of several quantizers;
`benchmarks/quality/generation.yaml` has the settings. rFD compares decoded test pictures with the test pictures, gFD as
many samples with training pictures, 10,000 on each side, or as many as stand above a table: distances of other numbers
are no comparison. The features are a classifier's, so none of them is an FID. The floor is the distance of test
pictures from training pictures. A row without figures of a prior has none, its tokenizer was measured alone.
"Recognized" is the share of pictures in which the classifier sees the class they are of: decoded test pictures, then
samples. Guidance is `u + s (c - u)`; pictures of samples are drawn with s = 2, and 4 was chosen by training pictures,
for CIFAR-10 only and after the first rows. Nats and bits under the prior are those of test pictures; bits are per
position, all color channels together; of a masked prior both are an estimated bound, "at most", since the probability
of its samples cannot be computed. "Encoded per second" are training pictures, by one thread of a CPU while other runs
share the machine, or by a GPU. Means over seeds, in brackets the smallest and largest.
"""
STUDIES = {
    "tokenizers": "Tokens of 1,024 codes by several quantizers, trained with squared error.",
    "heads": "Tokens of other kinds, and the heads that can predict them.",
    "orders": "The same multi-scale tokens, predicted in raster order, masked, and scale by scale.",
    "losses": "Tokenizers trained with squared error alone, and with perceptual and adversarial losses.",
    "levels": "Two levels against one at equal bits.",
    "large": "On a GPU: 4,096 and 16,384 codes, wider tokenizers, and a prior of 38 million parameters.",
}
PLOTS = {
    "": "Samples with guidance, one of every class",
    "_decoded": "Test pictures as the tokenizers decode them, one of every class",
}
_COLUMNS = {
    "psnr": ("PSNR (dB)", ".2f"),
    "usage": ("usage", ".3f"),
    "rfd": ("rFD", ".2f"),
    "accuracy_decoded": ("decoded recognized", ".3f"),
    "nats_per_token": ("nats per token", ".3f"),
    "bits_per_pixel": ("bits per pixel", ".4f"),
    "gfd": ("gFD", ".2f"),
    "accuracy": ("samples recognized", ".3f"),
    "gfd_guided": ("gFD, guidance 2", ".2f"),
    "accuracy_guided": ("guidance 2 recognized", ".3f"),
    "gfd_guided_4": ("gFD, guidance 4", ".2f"),
    "accuracy_guided_4": ("guidance 4 recognized", ".3f"),
    "encoded_per_second": ("encoded per second", ",.0f"),
}
_EQUAL = 0.05  # dB within which distortions count as equal
_BOUNDED = ("nats_per_token", "bits_per_pixel")  # of a masked prior
_IDENTITY = ("study", "method", "settings", "codebook_size", "seed")


def sampling(folder: Path) -> str:
    """Seconds of every way to sample, and memory of every head, each beside its baseline."""
    parts = []
    for path in sorted(folder.glob("sampling_*.csv")):
        results = read_results(path)
        timed = [row for row in results if "seconds" in row]
        heads = [row for row in results if "peak_bytes" in row]
        parts.append(circumstances(results, ("hardware", "versions", "commit", "comparison")))
        rows = [[r["method"], r["settings"], f"{r['seconds']:.2f}", _times(timed, r, "seconds")] for r in timed]
        parts.append(markdown_table(("sampling", "settings", "seconds", "times faster than no cache"), rows))
        rows = [
            [r["method"], r["settings"], f"{r['peak_bytes'] / 1e6:,.0f}", _times(heads, r, "peak_bytes")] for r in heads
        ]
        if heads:
            parts.append(markdown_table(("head for 2^18 codes", "settings", "MB", "times less than softmax"), rows))
    return "\n\n".join(parts)


def _times(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], metric: str) -> str:
    baseline = next(r for r in rows if r["method"] in ("autoregressive, no cache", "softmax head"))
    return f"{baseline[metric] / row[metric]:.1f}"


def large(folder: Path) -> str:
    """Time and memory of the shipped configurations for 256 pixels on one device of each kind."""
    parts = []
    for path in sorted(folder.glob("large_*.csv")):
        results = read_results(path, ("method", "settings"))
        rows = [
            [
                f"`{r['method']}`",
                r["settings"],
                f"{r['seconds_per_step']:.3f}",
                f"{r['samples_per_second']:,.0f}",
                f"{r['peak_bytes'] / 1e9:,.1f}",
                f"{r['hours']:,.0f} on {r['devices']:.0f}",
            ]
            for r in results
        ]
        header = ("configuration", "settings", "seconds per step", "samples per second", "GB", "hours on devices")
        parts += [
            circumstances(results, ("hardware", "versions", "commit", "comparison")),
            markdown_table(header, rows),
        ]
    return "\n\n".join(parts) or "Not measured yet."


def with_priors(text: str, folder: Path) -> str:
    """The page with the tables between its marks made again."""
    for name, table in (("sampling", sampling), ("large", large)):
        mark = re.compile(rf"<!-- table {name} -->.*?<!-- end -->", re.DOTALL)
        text = mark.sub(lambda _, n=name, t=table: f"<!-- table {n} -->\n\n{t(folder)}\n\n<!-- end -->", text)
    return text


def generation_section(folder: Path, images: Path) -> str:
    """Tokenizers and priors of every data set, best bits per pixel first."""
    parts = [GENERATION]
    for path in sorted(folder.glob("generation_*.csv")):
        runs = read_results(path, _IDENTITY)
        for study, data in sorted({(run["study"], run["data"]) for run in runs}, key=_place):
            own = [run for run in runs if (run["study"], run["data"]) == (study, data)]
            floor, real = (sum(run[name] for run in own) / len(own) for name in ("fd_floor", "accuracy_real"))
            said = f"Floor {floor:.2f}; of the test pictures themselves {100 * real:.1f} % are recognized."
            parts += [f"### {study}, {data}, {path.stem.removeprefix('generation_')}", STUDIES[study]]
            parts += [circumstances(own), said, _table(own)]
            parts += _rates(own, images / f"generation_{study}_{data}_rates_{own[0]['hardware']}.png")
            for kind, text in PLOTS.items():
                plot = images / f"generation_{study}_{data}{kind}_{own[0]['hardware']}.png"
                if plot.exists():
                    parts.append(f"![{text}](images/{plot.name})")
    return "\n\n".join(parts) + "\n"


def _rates(runs: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """A plot of distortion against rate, and the rates of contenders whose PSNR is that of ``grit_vq``."""
    found = {name: [run for run in runs if run["method"] == name] for name in dict.fromkeys(r["method"] for r in runs)}
    points = {
        name: (_mean(own, "bits_per_pixel"), _mean(own, "psnr"))
        for name, own in found.items()
        if all("bits_per_pixel" in run for run in own)
    }
    if len(points) < 3:
        return []
    rates_plot(points, path)
    parts = [f"![PSNR against bits per pixel under the prior](images/{path.name})"]
    if (mine := points.get("grit_vq")) is not None:
        alike = {n: bits for n, (bits, psnr) in points.items() if abs(psnr - mine[1]) <= _EQUAL and n != "grit_vq"}
        told = [f"`{name}` {bits:.4f}" for name, bits in sorted(alike.items(), key=lambda item: item[1])]
        others = ", ".join(told) or "no other"
        parts.append(f"Within {_EQUAL:g} dB of `grit_vq` ({mine[0]:.4f} bits per pixel): {others}.")
    return parts


def rates_plot(points: Mapping[str, tuple[float, float]], path: Path) -> Path:
    """PSNR against bits per pixel, with a line through the contenders that no other one beats in both."""
    figure, axis = new_figure(7.5, 4.0)
    best = [
        (bits, psnr)
        for bits, psnr in sorted(points.values())
        if not any(b <= bits and p >= psnr and (b, p) != (bits, psnr) for b, p in points.values())
    ]
    axis.plot(*zip(*best, strict=True), color="#bbbbbb", linewidth=1.2, zorder=1)
    for name, (bits, psnr) in sorted(points.items(), key=lambda point: -point[1][1]):
        axis.scatter(bits, psnr, s=60, zorder=2, marker="*" if name.startswith("grit_vq") else "o", label=name)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    axis.margins(0.12)
    axis.set_xlabel("bits per pixel under the prior (fewer are easier to predict)")
    axis.set_ylabel("PSNR (dB)")
    axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _place(key: tuple[str, str]) -> tuple[int, str]:
    return list(STUDIES).index(key[0]), key[1]


def _table(runs: Sequence[Mapping[str, Any]]) -> str:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["settings"]), []).append(run)
    columns = {name: each for name, each in _COLUMNS.items() if any(name in run for run in runs)}
    rows = []
    for (method, settings), own in sorted(groups.items(), key=lambda item: _mean(item[1], "bits_per_pixel")):
        bounded = _BOUNDED if "kind=MaskedPrior" in settings.split() else ()
        figures = [
            ("at most " if name in bounded else "") + _figure(own, name, style) for name, (_, style) in columns.items()
        ]
        rows.append([method, settings, str(own[0]["codebook_size"]), *figures, str(len(own))])
    return markdown_table(("method", "settings", "K", *(word for word, _ in columns.values()), "seeds"), rows)


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    """Over the runs that have it; infinite where none has, so that these come last."""
    found = [run[name] for run in runs if name in run]
    return float(sum(found) / len(found)) if found else math.inf


def _figure(runs: Sequence[Mapping[str, Any]], name: str, style: str) -> str:
    every, runs = len(runs), [run for run in runs if name in run]
    if not runs:
        return "-"
    if len(runs) < every:
        return f"{_mean(runs, name):{style}} ({len(runs)} of {every} seeds)"
    least, largest = (f"{end(run[name] for run in runs):{style}}" for end in (min, max))
    return f"{_mean(runs, name):{style}}" + (f" ({least}-{largest})" if least != largest else "")
