"""The section about tokens of several quantizers, and priors on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import priors

from gritvq.results import write_results

ABOUT = {"comparison": "c", "data": "cifar10", "hardware": "cpu2", "commit": "abc", "versions": "v"}
IDENTITY = ("study", "method", "settings", "codebook_size", "seed")


def rows(method: str, settings: str, speeds: tuple[float, ...]) -> list[dict[str, Any]]:
    """Runs with equal figures but for their speed."""
    figures = dict.fromkeys((*priors._COLUMNS, "fd_floor", "accuracy_real"), 0.5)
    about = {"study": "orders", "method": method, "settings": settings, "codebook_size": 8}
    return [{**about, "seed": n, **figures, "encoded_per_second": speed} for n, speed in enumerate(speeds)]


def test_speed_bounds_and_plots_are_on_the_page(tmp_path: Path) -> None:
    runs = rows("raster", "-", (1500.0, 2500.0)) + rows("masked", "kind=MaskedPrior num_steps=12", (2000.0,))
    write_results(tmp_path / "generation_cpu2_202611.csv", runs, ABOUT, IDENTITY)
    (tmp_path / "generation_orders_cifar10_decoded_cpu2.png").touch()
    text = priors.generation_section(tmp_path, tmp_path)
    header, raster, masked = (
        [cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith(("| m", "| r"))
    )
    if "raster" not in raster:
        raster, masked = masked, raster
    assert raster[header.index("encoded per second")] == "2,000 (1,500-2,500)"
    assert raster[header.index("nats per token")] == "0.500"
    assert masked[header.index("nats per token")] == "at most 0.500"
    assert masked[header.index("bits per pixel")] == "at most 0.5000"
    assert masked[header.index("PSNR (dB)")] == "0.50"
    assert "(images/generation_orders_cifar10_decoded_cpu2.png)" in text and "cifar10_cpu2.png" not in text
    assert "--study heads|orders|losses|levels" in text


def test_rates_at_equal_psnr_are_named_and_drawn(tmp_path: Path) -> None:
    figures = {"grit_vq": (24.0, 0.3), "near": (24.04, 0.25), "nearest": (23.99, 0.2), "far": (24.2, 0.1)}
    runs = [
        {**row, "psnr": psnr, "bits_per_pixel": bits}
        for name, (psnr, bits) in figures.items()
        for row in rows(name, "-", (1.0,))
    ]
    write_results(tmp_path / "generation_cpu2_202611.csv", runs, ABOUT, IDENTITY)
    text = priors.generation_section(tmp_path, tmp_path)
    assert "Within 0.05 dB of `grit_vq` (0.3000 bits per pixel): `nearest` 0.2000, `near` 0.2500.\n" in text
    assert "(images/generation_orders_cifar10_rates_cpu2.png)" in text
    assert (tmp_path / "generation_orders_cifar10_rates_cpu2.png").stat().st_size > 5000
    write_results(
        tmp_path / "generation_cpu2_202611.csv", [row for row in runs if row["method"][0] != "n"], ABOUT, IDENTITY
    )
    assert "Within" not in priors.generation_section(tmp_path, tmp_path)  # two contenders are no comparison


def test_figures_of_some_seeds_say_so_and_those_of_none_have_no_column(tmp_path: Path) -> None:
    first, second = rows("raster", "-", (1500.0, 2500.0))
    for row in (first, second):
        del row["gfd_guided_4"]
    del second["accuracy_guided_4"]
    write_results(tmp_path / "generation_cpu2_202611.csv", [first, second], ABOUT, IDENTITY)
    text = priors.generation_section(tmp_path, tmp_path)
    header, line = (
        [cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith(("| m", "| r"))
    )
    assert line[header.index("guidance 4 recognized")] == "0.500 (1 of 2 seeds)"
    assert line[header.index("guidance 2 recognized")] == "0.500" and "gFD, guidance 4" not in header


def test_a_tokenizer_without_a_prior_stands_last(tmp_path: Path) -> None:
    runs = [rows(name, "-", (1.0,))[0] for name in ("alone", "first", "second", "third")]
    for name in ("nats_per_token", "bits_per_pixel", "gfd", "accuracy"):
        del runs[0][name]
    write_results(tmp_path / "generation_cpu2_202611.csv", runs, ABOUT, IDENTITY)
    text = priors.generation_section(tmp_path, tmp_path)
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")]
    header, last = lines[0], lines[-1]
    assert last[1] == "alone" and last[header.index("bits per pixel")] == last[header.index("gFD")] == "-"
    assert last[header.index("rFD")] == "0.50"
    assert (tmp_path / "generation_orders_cifar10_rates_cpu2.png").exists()  # of the three others
