"""The report as a user gets it: by the command, from a file of results."""

import re
from argparse import ArgumentParser
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from alignkit.evaluation.document import Bullets, Heading, Picture, Table, Text, to_markdown
from alignkit.evaluation.overfitting import Curve
from alignkit.evaluation.pareto import Point
from alignkit.evaluation.plots import Chart, curves, pareto
from alignkit.evaluation.report_command import add_report_arguments, run_report
from alignkit.evaluation.report_html import to_html
from alignkit.evaluation.results import Result, append_result, failed_result
from tests.evaluation.records import ORIGIN, answers, baseline, general_baseline, nll, result


def run(*arguments: str) -> None:
    parser = ArgumentParser()
    add_report_arguments(parser)
    run_report(parser.parse_args(["--resamples", "500", *arguments]))


def write(path: Path, *results: Result) -> str:
    for one in results:
        append_result(path, one)
    return str(path)


def experiment() -> list[Result]:
    """Betas 0.02 and 0.05 with two seeds each, a run that failed, baselines."""
    lines: list[Result] = [baseline(items=answers(100)), general_baseline()]
    for beta, right, shift in ((0.02, 130, 0.05), (0.05, 103, 0.0)):
        for seed in range(2):
            details: dict[str, Any] = {"seed": seed, "config": {"beta": beta, "lora_r": 16, "seed": seed}}
            history = [{"step": step, "loss": 0.7 - 0.01 * step, "eval_loss": 0.7 - 0.009 * step} for step in range(9)]
            name = f"beta{beta}-seed{seed}"
            lines.append(result(name, items=answers(right), history=history, **details))
            lines.append(nll(name, shift=shift, **details))
    dead = {"config": {"beta": 0.5, "lora_r": 16}, "seed": 0, "wall_time_s": 1.0, **ORIGIN}
    return [*lines, failed_result(run="dead", error="out of | <memory>", **dead)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    results = write(folder / "results.jsonl", *experiment())
    run(results, "-o", str(folder / "report.md"), "--html", str(folder / "report.html"), "--title", "Beta & <co>")
    return folder


def test_the_conclusion_comes_first(written: Path) -> None:
    text = (written / "report.md").read_text()
    conclusion = text.split("##")[0]
    assert "**tatqa_dev, exact_match: effect in 1, no evidence in 1 of 2 settings.**" in conclusion
    assert "#1 (beta 0.02) 50.0 % → 65.0 %, +15.0 pp [" in conclusion
    assert "**general_nll, nll: no evidence in 1, harm in 1 of 2 settings.**" in conclusion
    assert "evidence that beta (1 of 1 changes) matters" in conclusion
    assert "**1 run failed:** dead." in conclusion


def test_each_setting_has_a_line_with_before_after_interval_and_verdict(written: Path) -> None:
    text = (written / "report.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| 1 | beta 0.02 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:4] == ["2", "50.0 % → 65.0 %"]
    assert re.fullmatch(r"\+15\.0 pp \[\+\d+\.\d, \+\d+\.\d\]", cells[4])
    assert cells[5] == "+30.0 %"
    assert cells[-1] == "effect"
    assert "n = 200; noise band 0 (nothing is sampled)." in text


def test_the_report_holds_parameters_tables_failures_and_origin(written: Path) -> None:
    text = (written / "report.md").read_text()
    assert "### By beta" in text
    assert "| dead | beta 0.5 | 0 | out of \\| \\<memory\\> |" in text
    assert "| lora_r | 16 |" in text
    assert "commit c0ffee; device cpu, x86_64; torch 2.13.0" in text
    assert "beta0.02-seed0 beta0.02-seed1" in text
    assert text.count("\n# ") + text.startswith("# ") == 1


def test_every_table_row_has_as_many_cells_as_its_header(written: Path) -> None:
    text = (written / "report.md").read_text()
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_the_pictures_of_the_markdown_are_beside_it(written: Path) -> None:
    names = re.findall(r"!\[.*\]\((.*)\)", (written / "report.md").read_text())
    assert names == ["report_pareto_1.png", "report_curves.png"]
    for name in names:
        assert matplotlib.image.imread(written / name).shape[0] > 300


class Page(HTMLParser):
    """Counts tags, and keeps what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_is_one_file_that_needs_no_other(written: Path) -> None:
    page = Page()
    text = (written / "report.html").read_text()
    page.feed(text)
    assert page.open == []
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags
    assert page.tags.count("table") == (written / "report.md").read_text().count("\n| ---")


def test_text_of_the_user_is_escaped(written: Path) -> None:
    text = (written / "report.html").read_text()
    assert "<h1>Beta &amp; &lt;co&gt;</h1>" in text
    assert "out of | &lt;memory&gt;" in text


def test_the_command_prints_the_conclusion_and_where_the_report_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write(tmp_path / "results.jsonl", baseline(), result())
    run(results, "-o", str(tmp_path / "report.md"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("tatqa_dev, exact_match: no evidence.")
    assert printed[-1] == f"report: {tmp_path / 'report.md'}"


def test_one_run_without_baseline_or_history_is_said_to_tell_nothing(tmp_path: Path) -> None:
    results = write(tmp_path / "results.jsonl", result())
    run(results, "-o", str(tmp_path / "report.md"))
    text = (tmp_path / "report.md").read_text()
    assert "no baseline, so that no change can be told" in text.replace("**", "")
    assert "General capability was not measured" in text
    assert "not known" in text
    assert "![" not in text
    assert not re.search(r"\b(nan|inf)\b", text)


def test_a_summary_is_marked_and_its_missing_interval_explained(tmp_path: Path) -> None:
    decoding = {"do_sample": True}
    repeats = [1.76, 1.48, 1.63, 1.72, 1.40]
    results = write(
        tmp_path / "results.jsonl",
        *(baseline(seed, mean=mean, n=50, unit="points", decoding=decoding) for seed, mean in enumerate(repeats)),
        result(seed=1, mean=1.86, n=50, unit="points", decoding=decoding),
    )
    run(results, "-o", str(tmp_path / "report.md"))
    text = (tmp_path / "report.md").read_text()
    assert "noise band ±0.606 points; baselines 1.76 points, 1.48 points" in text
    assert "summary: unpaired intervals" in text
    assert "| 1.48 points → 1.86 points | +0.380 points | +25.7 % |" in text
    assert "no evidence: within the noise band" in text


def test_several_files_make_one_report(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", baseline(items=answers(100)), result("a", config={"beta": 1}))
    second = write(tmp_path / "b.jsonl", result("b", config={"beta": 2}, items=answers(130)))
    write(tmp_path / "a.jsonl", result("a", config={"beta": 1}, items=answers(100)))
    run(first, second, "-o", str(tmp_path / "report.md"))
    text = (tmp_path / "report.md").read_text()
    assert "of 2 settings" in text
    assert "Recorded more than once, the last counts:** tatqa_dev of a." in text


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    results = write(tmp_path / "results.jsonl", baseline(), result())
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        run(results, "-o", str(tmp_path / "report.md"), "--html", "/dev/full")


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    results = write(tmp_path / "results.jsonl", result())
    with open(results, "a") as file:
        file.write("nonsense\n")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2: it is damaged"):
        run(results, "-o", str(tmp_path / "report.md"))


BLOCKS = [
    Heading(2, "a_b *c*"),
    Text("1 < 2"),
    Bullets([("lead:", "rest"), ("", "alone")]),
    Table(["x", "y"], [["p|q", "1"]], fold="more"),
    Picture("chart", "a chart", b"png"),
]


def test_blocks_as_markdown() -> None:
    assert to_markdown(BLOCKS, "r_") == (
        "## a_b \\*c\\*\n\n1 \\< 2\n\n- **lead:** rest\n- alone\n\n<details><summary>more</summary>\n\n"
        "| x | y |\n| --- | ---: |\n| p\\|q | 1 |\n\n</details>\n\n![a chart](r_chart.png)\n\na chart\n"
    )


def test_blocks_as_html() -> None:
    text = to_html(BLOCKS)
    assert "<title>a_b *c*</title>" in text
    assert "<li><strong>lead:</strong> rest</li>\n<li>alone</li>" in text
    assert "<td class=words>p|q</td><td>1</td>" in text
    assert '<img src="data:image/png;base64,cG5n" alt="a chart">' in text


def dark_pixels(png: bytes, tmp_path: Path) -> int:
    (tmp_path / "chart.png").write_bytes(png)
    return int((matplotlib.image.imread(tmp_path / "chart.png")[:, :, :3].max(axis=2) < 0.9).sum())


def test_pictures_are_drawn_for_any_number_of_settings_and_names_with_dollars(tmp_path: Path) -> None:
    points = [Point(n, 0.01 * n, -1.0 * n, None, (-1.0 * n - 1, 1.0 - n), n % 2 == 0) for n in range(1, 31)]
    assert dark_pixels(pareto(points, "gain in $a$ $", "gain in b_c^2 $"), tmp_path) > 1000
    lines = [(n, Curve((1, 2, 3), (0.1 * n, 0.2, 0.3))) for n in range(1, 31)]
    assert dark_pixels(curves([Chart("loss of $x", lines)]), tmp_path) > 1000


def test_points_in_one_place_have_numbers_in_different_places(tmp_path: Path) -> None:
    together = [Point(n, 1.0, 1.0, None, None, True) for n in (1, 2)]
    one = dark_pixels(pareto(together[:1], "x", "y"), tmp_path)
    assert dark_pixels(pareto(together, "x", "y"), tmp_path) > one + 10
    assert np.isfinite(one)
