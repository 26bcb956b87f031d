"""`analyze` on recordings of real programs: what it says of leaks, of their mended twins, and of the healthy."""

from __future__ import annotations

import gzip
import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from memwarden.cli import analyze

TRACES = Path(__file__).parents[2] / "benchmarks" / "leaks" / "traces"
GRADES = {"suspected": bool, "confirmed": bool, "confidence": int, "evidence": list, "parts": dict, "told": list}
CAUSES = {None, "python", "native", "fragmentation", "cache", "traffic", "step", "unknown"}


def analysed(capsys: pytest.CaptureFixture[str], path: Path, *more: str) -> Any:
    parser = ArgumentParser()
    analyze.add_arguments(parser)
    analyze.run(parser.parse_args([str(path), "--format", "json", *more]))
    return json.loads(capsys.readouterr().out)


def rss_only(path: Path, to: Path) -> Path:
    with gzip.open(path, "rt") as file:
        to.write_text("\n".join(",".join(line.rstrip().split(",")[:2]) for line in file))
    return to


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("leaking.dict_cache__leaky_strong_s2", "python"),
        ("leaking.cycles_without_collector__leaky_strong_s3", "python"),
        ("lost.lost_exception__leaky_medium_s2", "python"),
        ("lost.malloc_pages__leaky_strong_s2", "native"),
        ("packages.jinja_from_string__leaky_strong_s4", "python"),
    ],
)
def test_a_leak_is_suspected_with_its_cause_and_from_rss_alone_without(
    name: str, cause: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = TRACES / f"{name}.csv.gz"
    found = analysed(capsys, path)
    assert (found["leak"]["suspected"], found["leak"]["cause"]) == (True, cause)
    assert found["leak"]["confidence"] >= 60
    assert found["leak"]["growth_bytes_per_minute"] > 1 << 20
    assert 0 < found["leak"]["detected_at_s"] <= found["duration_s"]
    assert "seems to leak" in found["recommendations"][0] or "leaks" in found["recommendations"][0]
    alone = analysed(capsys, rss_only(path, tmp_path / "rss.csv"))["leak"]
    assert (alone["suspected"], alone["cause"]) == (True, "unknown")


@pytest.mark.parametrize(
    "name",
    [
        "healthy.steady_requests__healthy_none_s1",
        "healthy.sawtooth_batches__healthy_none_s1",
        "healthy.one_huge_request__healthy_none_s2",
        "leaking.dict_cache__fixed_strong_s2",
        "lost.malloc_pages__fixed_strong_s2",
    ],
)
def test_the_healthy_and_the_mended_are_not_accused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    leak = analysed(capsys, TRACES / f"{name}.csv.gz")["leak"]
    assert (leak["suspected"], leak["confirmed"], leak["detected_at_s"]) == (False, False, None)
    assert leak["confidence"] <= 40


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.csv.gz"))[::30], ids=lambda path: path.name.split(".csv")[0])
def test_every_recording_is_answered_by_the_contract(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leak = analysed(capsys, path, "--limit", "256M")["leak"]
    assert {name: type(leak[name]) for name in GRADES} == GRADES
    assert leak["cause"] in CAUSES
    assert leak["suspected"] or not leak["confirmed"]
    assert (leak["detected_at_s"] is None) == (not leak["suspected"])
    assert (leak["confidence"] >= 60) == leak["suspected"]
    assert all(isinstance(sentence, str) and sentence for sentence in leak["evidence"])


def test_failing_on_a_leak_and_the_plain_rule(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    analyze.add_arguments(parser)
    leaky, mended = (str(TRACES / f"leaking.dict_cache__{kind}_strong_s2.csv.gz") for kind in ("leaky", "fixed"))
    assert analyze.run(parser.parse_args([leaky, "--fail-on", "leak"])) == 1
    assert "why a leak:" in capsys.readouterr().out
    assert analyze.run(parser.parse_args([mended, "--fail-on", "leak"])) == 0
    capsys.readouterr()
    plain = analysed(capsys, Path(mended), "--leak-rule", "plain")["leak"]
    assert plain["suspected"] is False
    assert plain["evidence"][0].startswith("the plain rule: not half as much again")


def test_the_page_shows_the_verdict_and_its_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    analyze.add_arguments(parser)
    path = TRACES / "leaking.dict_cache__leaky_strong_s2.csv.gz"
    analyze.run(parser.parse_args([str(path), "--format", "html"]))
    page = capsys.readouterr().out
    assert "<h2>Leak</h2>" in page
    assert "Python objects pile up" in page
    assert "consistent growth" in page
