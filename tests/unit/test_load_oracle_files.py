"""Records survive the way to disk and back; figures, plots and pages are what they claim to be."""

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from loadtests.oracle.histogram import Histogram
from loadtests.oracle.proofs import gather
from loadtests.oracle.verdict import (
    Budget,
    CounterExample,
    DropRow,
    Finding,
    Promise,
    Proof,
    Series,
    Standing,
    Verdict,
)
from loadtests.records import (
    Answered,
    Clock,
    DropDefinition,
    DropSample,
    NotRecords,
    RecordWriter,
    RunFacts,
    SampleWriter,
    read_facts,
    read_records,
    read_samples,
    write_facts,
)
from loadtests.report import render, summary
from loadtests.report.chart import Layer, Mark, linear_axis, lines, logarithmic_axis, stacked

RECORD = Answered(1.5, 2.5, 1.0, "w-1", "grab", "wed-20", "p-secret", "n-1", 201, "", None, b'{"seq":1}')
FACTS = RunFacts(
    scenario="rush",
    host="https://example.test",
    started_ms=1_000.0,
    ended_ms=11_000.0,
    persons=3,
    drops=[DropDefinition(drop_id="wed-20", quantity=2, per_person_limit=1, opens_ms=3_000.0, closes_ms=9e9)],
    operations=[],
    clocks={"w-1": Clock(tolerance_ms=3.0)},
    options={"城市": "青岛 <script>"},
)


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    other = msgspec.structs.replace(RECORD, status=0, code="abandoned", voucher=b"")
    for name, record in (("a", RECORD), ("b", other)):
        with RecordWriter(tmp_path / f"records-{name}.bin") as writer:
            writer.write(record)
    assert list(read_records(sorted(tmp_path.glob("records-*.bin")))) == [RECORD, other]


def test_appending_continues_a_file(tmp_path: Path) -> None:
    for _ in range(2):
        with RecordWriter(tmp_path / "r") as writer:
            writer.write(RECORD)
    assert list(read_records([tmp_path / "r"])) == [RECORD, RECORD]


@pytest.mark.parametrize("lost_bytes", [1, 20, 10**6])
def test_a_file_cut_off_is_read_up_to_the_cut_and_reported(tmp_path: Path, lost_bytes: int) -> None:
    path = tmp_path / "r"
    with RecordWriter(path) as writer:
        writer.write(RECORD)
        writer.write(RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) // 2 + 2, len(whole) - lost_bytes)])
    torn: list[Path] = []
    assert list(read_records([path], torn.append)) == [RECORD]
    assert torn == [path]


@pytest.mark.parametrize("content", [b"not a record file at all", b"\x00\x00\x00\x02\xc0\xc0"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(NotRecords, match="not a record file"):
        list(read_records([tmp_path / "r"]))


def test_samples_and_facts_come_back(tmp_path: Path) -> None:
    sample = DropSample("wed-20", 5.0, "open", 1, 0, 1, 2)
    with SampleWriter(tmp_path / "samples.bin") as writer:
        writer.write(sample)
    assert list(read_samples(tmp_path / "samples.bin")) == [sample]
    assert list(read_samples(tmp_path / "none.bin")) == []
    write_facts(tmp_path, FACTS)
    assert read_facts(tmp_path) == FACTS
    with pytest.raises(NotRecords, match="run directory"):
        read_facts(tmp_path / "elsewhere")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_a_percentile_is_at_most_one_per_cent_too_high(share: float) -> None:
    histogram = Histogram()
    for value in range(1, 10_001):
        histogram.add(value / 10)
    exact = 1_000 * share
    assert exact <= histogram.quantile_ms(share) <= exact * 1.011
    assert Histogram().quantile_ms(share) == 0


def test_merged_histograms_count_together() -> None:
    first, second = Histogram(), Histogram()
    first.add(1.0)
    second.add(100.0)
    first.merge(second)
    assert (first.count, first.highest_ms, first.quantile_ms(1.0)) == (2, 100.0, 100.0)


def test_proofs_show_neither_person_nor_code() -> None:
    voucher = (
        b'{"voucher_id":"vch_1_1","drop_id":"wed-20","seq":1,"code":"TILLCODE",'
        b'"person_token":"p-secret","out_request_no":"n-1"}'
    )
    records = [msgspec.structs.replace(RECORD, voucher=voucher)] * 20
    proofs = gather(records, {"n-1"}, 0.0)["n-1"]
    assert len(proofs) == 12
    shown = msgspec.json.encode(proofs)
    assert b"p-secret" not in shown
    assert b"TILLCODE" not in shown
    assert b"vch_1_1" in shown
    assert gather(records, {"n-1"}, 0.0)["n-1"][0].person != proofs[0].person


@pytest.mark.parametrize(("highest", "top"), [(0, 1), (1, 1), (7, 8), (999, 1_000), (2_600, 3_000)])
def test_a_linear_axis_ends_at_a_round_number_above_its_values(highest: float, top: float) -> None:
    axis = linear_axis(highest)
    assert axis.high == top
    assert len(axis.ticks) <= 6


def test_a_logarithmic_axis_spans_decades() -> None:
    assert list(logarithmic_axis(3.0, 250.0).ticks) == [1, 10, 100, 1000]


def test_plots_are_well_formed_and_survive_gaps() -> None:
    layers = [Layer("p50 <a>", "p50", [None, 1.0, None, 2.0, 4.0]), Layer("p99", "p99", [None] * 5)]
    for plot in (
        lines("latency", layers, 0.5, [Mark(1.0, "开始 & <b>")]),
        stacked("stock", [Layer("a", "issued", [0, 1, 2, 3, 4])], 0.5, [Mark(99.0, "late")]),
    ):
        assert Tags(plot).open_tags == []
        assert "<b>" not in plot


class Tags(HTMLParser):
    """Which tags are left open, and what a page would load."""

    VOID = frozenset({"meta", "line", "circle"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "srcset"}]
        if tag in {"script", "link", "iframe", "img"}:
            self.loads.append(tag)
        if tag not in self.VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open_tags.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Self-closed, as in SVG."""


def verdict(*, broken: bool) -> Verdict:
    proof = Proof("a1b2", "n-<1>", "wed-20", "w-1", "grab", 1.0, 2.0, 409, "sold_out", "")
    example = CounterExample(says="a <b>case</b>", drop_id="wed-20", numbers=["n-<1>"], proofs=[proof])
    finding = Finding(
        rule="Something & nothing",
        promise=Promise.TOO_MANY,
        checked_count=3,
        broken_count=int(broken),
        examples=[example] if broken else [],
    )
    row = DropRow(
        drop_id="wed-20",
        state="sold_out",
        quantity=2,
        available=0,
        pending=0,
        issued=2,
        ledger_count=2,
        persons_refused=1,
        first_grant_ms=2_100.0,
        sold_out_ms=2_500.0,
    )
    return Verdict(
        scenario="rush",
        host="https://example.test",
        started_ms=1_000.0,
        ended_ms=11_000.0,
        judged_ms=12_000.0,
        took_s=0.5,
        peak_memory_bytes=50_000_000,
        requests_count=3,
        numbers_count=3,
        persons_count=3,
        asked_again_count=2,
        findings=[finding],
        budgets=[
            Budget(name="p99", measured=12.0, limit=10.0 if broken else 20.0, unit="ms", over="x", count=9)
        ],
        drops=[row],
        outcomes={"issued": 2, "sold_out": 1},
        series=Series(
            bucket_ms=5_000.0,
            outcomes={"issued": [2, 0, 0], "sold_out": [0, 1, 0]},
            latencies_ms={"p50": [1.0, 2.0, None], "p90": [1.0, 2.0, None], "p99": [1.0, 3.0, None]},
            stock={"available": [2, 0, 0], "pending": [0, 1, 0], "issued": [0, 1, 2]},
        ),
    )


@pytest.mark.parametrize("broken", [False, True])
def test_a_page_is_well_formed_loads_nothing_and_says_the_verdict_first(*, broken: bool) -> None:
    page = render(verdict(broken=broken), FACTS)
    tags = Tags(page)
    assert (tags.open_tags, tags.loads) == ([], [])
    assert not re.search(r"url\(|@import", page)
    assert page.count("<svg") == 3
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading is not None
    assert heading[1] == ("Broken: none too many, within the budgets" if broken else "Every promise was kept")
    assert "青岛 &lt;script&gt;" in page
    assert ("n-&lt;1&gt;" in page) is broken
    assert "<script" not in page


def test_the_summary_names_every_promise_and_the_first_counter_example() -> None:
    text = summary(verdict(broken=True))
    assert text.startswith("rush on https://example.test: BROKEN")
    assert all(str(promise) in text for promise in Promise)
    assert "1 of 3: NOT Something & nothing" in text
    assert "p99 12.0 ms of 10 OVER" in text


def test_one_broken_rule_decides_and_nothing_judged_is_not_kept() -> None:
    good, bad = verdict(broken=False), verdict(broken=True)
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert good.standing(Promise.TOO_MANY) is Standing.KEPT
    assert bad.standing(Promise.BUDGETS) is Standing.BROKEN
    assert good.standing(Promise.STANDS) is Standing.NOT_JUDGED
