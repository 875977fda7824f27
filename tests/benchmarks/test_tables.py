"""Tables: known numbers in, the same numbers out, with intervals that mean what they say."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.cells import Cell
from benchmarks.experiment_file import Method, Task, strict
from benchmarks.pages import tables
from benchmarks.pages.tables import METRICS, front_table, paired_interval, pareto_front
from benchmarks.results import PICTURES, ROWS, Result
from flashray.metrics import mean_interval


def result(method: str, psnr: list[float], task: str = "blur", nfe: int = 10, **values: Any) -> Result:
    """A cell with these PSNR, and SSIM and LPIPS that go with them."""
    at = values.pop("at", {})
    entry = {
        "name": method,
        "base": values.pop("base", method),
        "at": at,
        "solver": {"name": "latent_dps", "steps": 100},
    }
    cell = Cell(Task(task, base=task), strict(Method, entry, "test"), len(psnr))
    n = len(psnr)
    columns: dict[str, list[Any]] = {
        "cell": [method] * n,
        "key": [f"{i}.png" for i in range(n)],
        "parameters": [json.dumps({"blur_std": float(i)}) for i in range(n)],
        "noise_std": [0.05] * n,
        "sigma_hat": [0.1 * (i + 1) for i in range(n)],
        "sigma_true": [0.1 * (i + 1) for i in range(n)],
        "start_step": [nfe] * n,
        "nfe": [nfe] * n,
        "fallback": [False] * n,
        "seconds": [0.5] * n,
        "psnr": psnr,
        "ssim": [value / 40 for value in psnr],
        "lpips": [1 - value / 40 for value in psnr],
        "error": [None] * n,
    }
    table = pa.table({name: (columns | values)[name] for name in ROWS.names}, schema=ROWS)
    return Result(cell, table, PICTURES.empty_table(), {"machine": "a machine"})


def test_severities_of_every_setting_and_of_all() -> None:
    """σ̂ in order within each setting, and out of order between them."""
    mild = result("flash", [20.0] * 4, task="mild", sigma_hat=[0.5, 0.6, 0.7, 0.8], sigma_true=[0.1, 0.2, 0.3, 0.4])
    hard = result("flash", [20.0] * 4, task="hard", sigma_hat=[0.1, 0.2, 0.3, 0.4], sigma_true=[0.5, 0.6, 0.7, 0.8])
    same = result("other flash", [20.0] * 4, task="hard", sigma_hat=[0.1, 0.2, 0.3, 0.4], sigma_true=[1.0] * 4)
    full = result("full", [20.0] * 4, task="hard", sigma_hat=[None] * 4)
    lines = tables.severity_table([mild, hard, same, full]).splitlines()[2:]
    assert lines == [
        "| flash | 4 | 0.650 | 0.250 | 1.000 |",
        "| flash | 4 | 0.250 | 0.650 | 1.000 |",
        "| flash, all of them | 8 | 0.450 | 0.450 | -0.524 |",
    ]
    assert tables.severity_table([full]) == ""


def test_means_and_intervals_are_those_of_the_rows() -> None:
    (row,) = tables.quality_rows([result("flash", [20.0, 22.0, 24.0, 26.0])])
    assert row["psnr"] == 23.0
    assert 20.0 <= row["psnr_low"] < 23.0 < row["psnr_high"] <= 26.0
    assert row["lpips"] == pytest.approx(1 - 23 / 40)
    assert (row["images"], row["nfe"], row["chain"], row["seconds"]) == (4, 10.0, 100, 0.5)
    (few,) = tables.quality_rows([result("flash", [20.0, 22.0, 24.0, 26.0])], keys=["0.png", "1.png"])
    assert (few["psnr"], few["images"]) == (21.0, 2)


def test_the_markdown_holds_the_numbers_and_no_empty_column() -> None:
    constant = result("flash", [25.0, 25.0], lpips=[None, None], at={"c": 0.5}, base="Flash")
    lines = tables.quality_table(tables.quality_rows([constant])).splitlines()
    assert lines[0] == "| method | c | images | PSNR (dB) ↑ | SSIM ↑ | mean NFE (chain) | s / image |"
    assert lines[2] == "| Flash | 0.5 | 2 | 25.00 | 0.625 | 10.0 (100) | 0.5 |"


@pytest.mark.parametrize(
    ("change", "psnr", "lpips"),
    [
        ([1.0, 1.1, 0.9, 1.0], "yes", "yes"),
        ([-1.0, -1.1, -0.9, -1.0], "no", "no"),
        ([1.0, -1.0, 1.0, -1.0], *["unclear"] * 2),
    ],
)
def test_better_is_said_only_where_the_interval_leaves_out_zero(change: list[float], psnr: str, lpips: str) -> None:
    spread, change = [15.0, 20.0, 30.0, 35.0] * 2, change * 2  # far wider than the change: only pairing can tell
    flash = result("Flash(X)", [a + b for a, b in zip(spread, change, strict=True)], nfe=10)
    found = tables.differences([flash, result("X", spread, nfe=100)], [["Flash(X)", "X"]])
    by_metric = {one.metric.name: one for one in found}
    assert by_metric["psnr"].interval[0] == pytest.approx(np.mean(change))
    assert (by_metric["psnr"].holds, by_metric["lpips"].holds) == (psnr, lpips)
    assert by_metric["psnr"].nfe == (10.0, 100.0)
    assert f"{psnr}: {np.mean(change):+.3f}" in tables.difference_table(tables.difference_rows(found))


def test_differences_are_over_the_images_that_both_have() -> None:
    one, other = result("a", [20.0, 30.0, 40.0]), result("b", [19.0])
    (found, *_) = tables.differences([one, other], [["a", "b"]])
    assert (found.images, found.interval) == (1, (1.0, 1.0, 1.0))
    assert found.holds == "unclear"  # one image decides nothing
    assert tables.shared_keys([one, other]) == ["0.png"]


def test_varied_methods_are_paired_where_they_stand_alike() -> None:
    flash = [result(f"flash {c}", [c, c], base="flash", at={"c": c}) for c in (1.0, 2.0)]
    fixed = [result(f"fixed {c}", [0.0, 0.0], base="fixed", at={"c": c}) for c in (1.0, 2.0)]
    alone = result("AE", [0.5, 0.5])
    found = tables.differences([*flash, *fixed, alone], [["flash", "fixed"], ["flash", "AE"]])
    psnr = [(one.better, one.worse, one.interval[0]) for one in found if one.metric.name == "psnr"]
    assert psnr == [
        *(("flash 1.0", "fixed 1.0", 1.0), ("flash 2.0", "fixed 2.0", 2.0)),
        *(("flash 1.0", "AE", 0.5), ("flash 2.0", "AE", 1.5)),
    ]
    other_task = tables.differences([flash[0], result("AE", [0.0], task="other")], [["flash", "AE"]])
    assert other_task == []


def test_csv_reads_back() -> None:
    text = tables.to_csv(tables.quality_rows([result("a, b", [20.0], lpips=[None])]))
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["method"], float(row["psnr"]), row["lpips"]) == ("a, b", 20.0, "")


def test_correlations_against_scipy() -> None:
    from scipy.stats import pearsonr, spearmanr

    generator = np.random.default_rng(0)
    level = generator.integers(4, size=50).astype(np.float64)  # with ties
    true = level + generator.normal(size=50)
    hat = true + generator.normal(size=50)
    found = tables.correlations(level, hat, true)
    assert list(found.values()) == pytest.approx(
        [spearmanr(hat, true)[0], pearsonr(hat, true)[0], spearmanr(hat, level)[0], spearmanr(true, level)[0]]
    )


def test_the_front_is_what_nothing_as_fast_beats() -> None:
    quick = result("quick", [20.0, 20.0], seconds=[1.0, 1.0])
    worse = result("slower and worse", [19.0, 20.0], seconds=[2.0, 2.0])
    tied = result("slower and as good", [20.0, 20.0], seconds=[2.5, 2.5])
    good = result("good", [25.0, 25.0], seconds=[3.0, 3.0])
    assert pareto_front([good, tied, worse, quick], METRICS[0]) == [quick, good]
    twin = result("as fast and better", [21.0, 21.0], seconds=[1.0, 1.0])
    assert pareto_front([quick, twin], METRICS[0]) == [twin]
    text = front_table([good, worse, quick])
    assert "| good | 3 |" in text
    assert "slower" not in text  # in any metric: they go together here


def test_the_front_in_lpips_is_of_small_values() -> None:
    quick = result("quick", [20.0], lpips=[0.5], seconds=[1.0])
    good = result("good", [19.0], lpips=[0.3], seconds=[2.0])
    assert pareto_front([quick, good], METRICS[2]) == [quick, good]
    assert pareto_front([quick, good], METRICS[0]) == [quick]


@pytest.fixture
def sample() -> list[float]:
    return np.random.default_rng(7).normal(27.0, 3.0, size=200).tolist()


def test_a_paired_difference_sees_what_the_means_hide(sample: list[float]) -> None:
    """A gain of 0.1 on every image, give or take 0.2, where images differ by 3: as sure as its own spread allows."""
    noise = np.random.default_rng(1).normal(0.1, 0.2, size=len(sample))
    better = [value + gain for value, gain in zip(sample, noise, strict=True)]
    mean, low, high = paired_interval(better, sample)
    assert mean == pytest.approx(np.mean(noise))
    assert 0 < low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(noise) / math.sqrt(len(sample)), rel=0.1)
    assert mean_interval(better)[1] < mean_interval(sample)[2]  # the means' own intervals overlap
    assert paired_interval(sample, better)[0] == pytest.approx(-mean)


def test_a_pair_counts_only_whole(sample: list[float]) -> None:
    shifted = [value - 1 for value in sample]
    gaps = paired_interval([*sample, None, 7.0, math.nan], [*shifted, 3.0, None, 4.0])
    assert gaps == pytest.approx((1.0, 1.0, 1.0))
    assert paired_interval([math.inf, 2.0], [math.inf, 2.0]) == (0.0, 0.0, 0.0)  # two perfect reconstructions
    with pytest.raises(ValueError, match="shorter"):
        paired_interval(sample, sample[:-1])
