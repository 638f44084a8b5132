"""A benchmark that is continued in another month goes on with its table."""

from datetime import date
from pathlib import Path

from benchmarks.quality.common import results_file


def test_the_newest_table_of_the_machine_is_continued(tmp_path: Path) -> None:
    for name in ("image_cpu2_202511", "image_cpu2_202609", "image_gpu_202610", "image_tuning_cpu2_202610"):
        (tmp_path / f"{name}.csv").touch()
    assert results_file(tmp_path, "image", "cpu2").name == "image_cpu2_202609.csv"
    assert results_file(tmp_path, "image_tuning", "cpu2").name == "image_tuning_cpu2_202610.csv"


def test_a_new_table_is_of_this_month(tmp_path: Path) -> None:
    (tmp_path / "image_gpu_202610.csv").touch()
    assert results_file(tmp_path, "image", "cpu2") == tmp_path / f"image_cpu2_{date.today():%Y%m}.csv"
