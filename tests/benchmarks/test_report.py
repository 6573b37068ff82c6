"""Made-up records become a report that says no more than they hold."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'embedserve[mteb]'")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from api.cli.main import main
from benchmarks.harness.costs import DENSE, HYBRID, TOKENS, WORDS, costs_of
from benchmarks.harness.labels import Style, place_labels
from benchmarks.harness.plots import plots_of
from benchmarks.harness.report import write_report
from benchmarks.harness.score_records import ScoreRecord, record_path
from benchmarks.harness.statistics import compare, interval_of, sample
from benchmarks.harness.table import names_of, tables
from embedserve import InputError
from embedserve.errors import CorruptFileError
from tests.benchmarks.made_up import record, some_records, words

NASTY = '<script>alert("1")</script> | a & b'


class Page(HTMLParser):
    """Reads a page: what is opened and not closed, what it refers to, its texts and scripts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.texts, self.scripts = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "source", "wbr"):
            self.open.append(tag)
        self.scripts += tag == "script"
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def results(tmp_path):
    for made in some_records():
        made.write(tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report that the command wrote, on some systems and one with a name that breaks things."""
    folder = tmp_path_factory.mktemp("report")
    spec = {"strategy": NASTY, "options": {"x": NASTY}}
    for made in (*some_records(), record(NASTY, model="x/y", prompts={"query": NASTY}, spec=spec)):
        made.write(folder / "results")
    arguments = ["--results", str(folder / "results"), "--output", str(folder / "out"), "--baseline", "mean"]
    with pytest.raises(SystemExit) as end:
        main(["bench", "report", *arguments])
    assert end.value.code == 0
    return folder / "out"


@pytest.fixture
def markdown(written):
    return (written / "report.md").read_text(encoding="utf-8")


def test_a_report_has_scores_intervals_comparisons_and_what_was_run(written, markdown):
    page = (written / "report.html").read_text(encoding="utf-8")
    found, gap = sample(record()), compare(sample(words("SciFact")), sample(record()))
    range_of = interval_of(found.drawn)
    assert f"{found.score:.1f} ({range_of.low:.1f}–{range_of.high:.1f})" in markdown
    assert f"+{gap.value:.1f}" in markdown.split("### By task")[1].split("## Figures")[0]
    for text in (markdown, page):
        assert "Against mean" in text
        assert "embedserve bench mteb -e mean --data EVAL_DIR" in text
        assert "mteb 2.26.24" in text
        assert "glot: SciFact" in text  # what is missing
        assert "bm25: STSBenchmark, LocalMSRPPairClassification, Banking77Classification" in text
    assert "| Banking77 † |" in markdown
    assert "Load 0.5; where" in markdown
    images = {path.name for path in written.glob("*.png")}
    names = {"quality-dimension", "quality-speed", "quality-index", "kinds"}
    assert images == {f"{name}{end}.png" for name in names for end in ("", "-dark")}
    assert all(f"]({name}.png)" in markdown for name in names)


def test_means_are_only_of_what_is_whole(markdown):
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in markdown.split("## Scores")[0].splitlines()}
    assert "" not in rows["mean"]
    assert rows["glot"][2:5] == ["", "", ""]  # mean of tasks, of kinds, and the rank
    assert rows["glot"][-1] != ""


def test_the_page_needs_nothing_beside_itself(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.scripts == 1
    assert "http" not in text.replace("http-equiv", "")


def test_names_break_neither_page_nor_table(written, markdown):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    assert NASTY in "".join(page.texts)
    assert "<script>" not in markdown
    tables_of = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(tables_of) > 6
    for table in tables_of:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "| a\\|b | 8 |" in tables([record("a|b")])


def test_one_record_is_enough(tmp_path):
    words("SciFact").write(tmp_path)
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "1 system on 1 task" in text
    assert "Against" not in text


def test_a_baseline_that_shares_no_task_is_no_error(tmp_path):
    for made in (words("SciFact"), record(task="STSBenchmark")):
        made.write(tmp_path)
    write_report(tmp_path, tmp_path / "out", "bm25")
    assert "Against bm25" in (tmp_path / "out" / "report.md").read_text()


def test_mistakes_are_named(results, tmp_path):
    with pytest.raises(InputError, match="did you mean 'mean'"):
        write_report(results, tmp_path / "out", "maen")
    with pytest.raises(InputError, match="has no evaluation records"):
        write_report(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path = record_path(results, "embedserve/mean", "a" * 32, "SciFact")
    whole = json.loads(path.read_text())
    broken = ({**whole, "score": "0.5"}, {**whole, "items": {"groups": [{}]}}, {**whole, "format": 9}, [])
    for text in (json.dumps(whole)[:100], *map(json.dumps, broken)):
        path.write_text(text)
        with pytest.raises(CorruptFileError, match=r"SciFact\.json is not an evaluation record"):
            write_report(results, tmp_path / "out")


def test_prompts_that_differ_by_task_make_no_new_system():
    spec = {"strategy": "mean", "backbone": "nano"}
    made = [record(task=task, revision=task, variant="v", spec=spec) for task in ("SciFact", "STSBenchmark")]
    assert names_of(made) == ["mean", "mean"]
    assert names_of([*made, replace(made[0], variant="w")]) == ["mean (v)", "mean (v)", "mean (w)"]
    alike = [record(revision="a" * 32), record(revision="a" * 32 + "-flat")]
    assert len(set(names_of(alike))) == 2


def test_costs_are_what_is_kept_for_a_document():
    one = record()
    many = record("colbert", dim=4, spec={"strategy": "as_saved"}, token_vectors=3000)
    unknown = record("old", spec={"strategy": "colbert"})
    hybrid = record("hybrid", engine={"name": "hybrid-bm25"}, index_bytes=900)
    found = costs_of([one, many, unknown, hybrid, words("SciFact")])
    assert {name: (cost.kind, cost.bytes_per_document) for name, cost in found.items()} == {
        "mean": (DENSE, 32), "colbert": (TOKENS, 2 * 4 * 30), "old": (TOKENS, None), "hybrid": (HYBRID, 9),
        "bm25": (WORDS, 50),
    }  # fmt: skip
    assert (found["mean"].tokens_per_s, found["bm25"].tokens_per_s) == (1000, None)


def test_a_figure_says_whom_it_leaves_out():
    tasks = ("SciFact", "LocalTrecQAReranking")
    made = [record("glot"), *(one for task in tasks for one in (record(task=task), words(task)))]
    plots = {plot.name: plot for plot in plots_of(made)}
    assert "Drawn as a line, without a value on this axis: bm25." in plots["quality-speed"].caption
    assert "Omitted, with missing tasks: glot." in plots["quality-speed"].caption
    assert "kinds" not in plots  # two kinds are no radar
    assert all(image.startswith(b"\x89PNG") for plot in plots.values() for image in plot.images.values())


def test_no_name_covers_another():
    figure = Figure(figsize=(5, 4))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = np.column_stack([np.repeat([1.0, 2.0], 9), np.tile(np.linspace(0.0, 0.4, 9), 2)])
    axes.set_xlim(0, 3)
    axes.set_ylim(-1, 2)
    boxes = place_labels(axes, points, [f"system {n}" for n in range(18)], [1.0], Style(7, "k", "k", "w"))
    assert (boxes[:, 2] > boxes[:, 0]).all()
    for place, (left, bottom, right, top) in enumerate(boxes):
        others = np.delete(boxes, place, axis=0)
        apart = (others[:, 0] >= right) | (others[:, 2] <= left) | (others[:, 1] >= top) | (others[:, 3] <= bottom)
        assert apart.all()
        level = axes.transData.transform((0, 1.0))[1]
        assert not bottom < level < top


def test_records_from_before_a_field_was_there_are_read(tmp_path):
    made = record()
    made.write(tmp_path)
    path = record_path(tmp_path, made.model, made.revision, made.task)
    path.write_text(path.read_text().replace(', "variant": ""', "").replace('"token_vectors": 0, ', ""))
    assert ScoreRecord.read(path) == made
