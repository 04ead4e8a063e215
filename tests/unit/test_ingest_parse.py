"""Lines to records: one example of each rule, and that plain blocks do take the fast way."""

from fractions import Fraction

import numpy as np
import pytest

from ingest.parse import layout_of, parse_any, parse_lines, parse_plain

MIB = 1024 * 1024
TXT = layout_of(b"", ("src", "dst"))
TIMED = layout_of(b"", ("src", "dst", "time"))
SIGNED = layout_of(b"\t", ("op", "src", "dst"))
TSV = layout_of(b"\t", ("src", "dst"))
CSV = layout_of(b",", ("src", "dst"))


def edges(block, layout):
    records = parse_lines(block, layout, MIB).records
    return list(zip(records.src.tolist(), records.dst.tolist(), strict=True))


@pytest.mark.parametrize(
    ("layout", "block"),
    [
        (TXT, b"1\t2\n-3\t9223372036854775807\n"),
        (TXT, b"1 2\n-3 9223372036854775807\n"),
        (TXT, b"1\t2\t5\r\n-3\t9223372036854775807\t6\r\n"),
        (TSV, b"1\t2\n-3\t9223372036854775807\n"),
        (CSV, b"1,2,.5\n-3,9223372036854775807,0\n"),
    ],
)
def test_clean_lines_are_read_without_a_rewrite(layout, block):
    plain = parse_plain(block, layout, MIB)
    assert plain is not None
    assert plain.records.src.tolist() == [1, -3]
    assert plain.records.dst.tolist() == [2, 2**63 - 1]
    assert (plain.starts.tolist(), plain.ends.tolist()) == (
        [0, block.index(b"-")],
        [block.index(b"-"), len(block)],
    )


@pytest.mark.parametrize(
    "block",
    [
        b"# comment\n1 2\n-3 4\n",
        b"\n1 2\n \t\r\n-3 4\n",
        b"1 2\n\n\n-3 4\n",
        b"  1 \t 2  \n\t-3\t\t4\t\n",
        b"1\t2\n-3 4\n",
        b"1 2\n-3 4 extra columns, even \xc3\xa9\n",
        b"1 2\r\n-3 4\n",
        b"1 000000000000000000000000000002\n-0003 4\n",
    ],
)
def test_txt_lines_that_say_the_same(block):
    assert edges(block, TXT) == [(1, 2), (-3, 4)]
    assert not parse_lines(block, TXT, MIB).bad


@pytest.mark.parametrize(
    "block",
    [
        b"1,2\n-3,4\n",
        b'"1","2"\n"-3","4"\n',
        b" 1 ,\t2\n-3, 4 \n",
        b'1,2,"Smith, J"\n-3,4,"say ""hi"", then go"\n',
        b'1,"2" , x\n-3,4,"never closed\n',
    ],
)
def test_csv_lines_that_say_the_same(block):
    assert edges(block, CSV) == [(1, 2), (-3, 4)]


def test_columns_go_in_any_order():
    parsed = parse_lines(b"+\t1\t2\n-\t3\t4\n", SIGNED, MIB).records
    assert (parsed.src.tolist(), parsed.dst.tolist(), parsed.op.tolist()) == ([1, 3], [2, 4], [1, -1])
    assert parsed.op.dtype == np.int8
    assert parsed.time is None
    assert edges(b"1 2\n", layout_of(b"", ("dst", "src"))) == [(2, 1)]


@pytest.mark.parametrize(
    ("layout", "line", "reason"),
    [
        (TXT, b"1", "the line has too few columns"),
        (TSV, b"1 2", "the line has too few columns"),
        (TXT, b" # not at the start of the line", "src is not an integer"),
        (TXT, b"1.0 2", "src is not an integer"),
        (TXT, b"+1 2", "src is not an integer"),
        (TXT, b"0x1 2", "src is not an integer"),
        (TSV, b"\t2", "src is not an integer"),
        (CSV, b'"1"1,2', "src is not an integer"),
        (CSV, b'1,"2', "dst is not an integer"),
        (TXT, b"1 -", "dst is not an integer"),
        (TXT, b"9223372036854775808 2", "src is out of the int64 range"),
        (TXT, b"1 -9223372036854775809", "dst is out of the int64 range"),
        (TXT, b"1 99999999999999999999999", "dst is out of the int64 range"),
        (SIGNED, b"*\t1\t2", "op is neither + nor -"),
        (SIGNED, b"\t1\t2", "op is neither + nor -"),
        (SIGNED, b"++\t1\t2", "op is neither + nor -"),
        (TIMED, b"1 2 1e9", "time is neither Unix seconds nor RFC 3339"),
        (TIMED, b"1 2 nan", "time is neither Unix seconds nor RFC 3339"),
        (TIMED, b"1 2 1000000000000000000", "time is neither Unix seconds nor RFC 3339"),
        (TIMED, b"1 2 2026-02-29T00:00:00Z", "time is neither Unix seconds nor RFC 3339"),
        (TIMED, b"1 2 1900-02-29T00:00:00Z", "time is neither Unix seconds nor RFC 3339"),
        (TIMED, b"1 2 2026-11-22T24:00:00Z", "time is neither Unix seconds nor RFC 3339"),
        (TIMED, b"1 2 2026-11-22T15:30:00", "time is neither Unix seconds nor RFC 3339"),
        (TIMED, b"1 2 2026-11-22T15:30:00.Z", "time is neither Unix seconds nor RFC 3339"),
        (TXT, b"1 2 \xff", "the line is not UTF-8"),
        (TXT, b"1 2 \xc3", "the line is not UTF-8"),
    ],
)
def test_a_bad_line_is_told_apart_from_its_neighbours(layout, line, reason):
    good = {SIGNED: b"+\t1\t2\n", TIMED: b"1 2 3\n", CSV: b"1,2\n", TSV: b"1\t2\n", TXT: b"1 2\n"}[layout]
    parsed = parse_lines(good + line + b"\n" + good, layout, MIB)
    end = len(good) + len(line) + 1
    assert parsed.bad == [(len(good), end, reason)]
    assert parsed.starts.tolist() == [0, end]
    assert parsed.records.src.tolist() == [1, 1]
    assert parsed.records.dst.tolist() == [2, 2]


def test_a_line_is_too_long_by_its_bytes():
    limit = 11
    for line, fine in [
        (b"1 2        ", True),
        (b"1 2         ", False),
        (b"00000000001 2", False),
        (b"#" * 40, None),
    ]:
        parsed = parse_lines(line + b"\n", TXT, limit)
        assert len(parsed.records) == (fine is True)
        assert [reason for _, _, reason in parsed.bad] == ["the line is too long"] * (fine is False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", Fraction(0)),
        ("-.5", Fraction(-1, 2)),
        ("1082040961.123456", Fraction(1082040961123456, 10**6)),
        ("1970-01-01T00:00:00Z", Fraction(0)),
        ("1970-01-01t00:00:00.123456789z", Fraction(123456789, 10**9)),
        ("1969-12-31T23:59:59.75Z", Fraction(-1, 4)),
        ("1969-12-31T23:59:58.999999999Z", Fraction(-1000000001, 10**9)),
        ("2000-02-29T12:00:00+01:30", Fraction(951820200)),
        ("1900-03-01T00:00:00Z", Fraction(-2203891200)),
        ("2016-12-31T23:59:60Z", Fraction(1483228800)),
        ("0000-01-01T00:00:00Z", Fraction(-62167219200)),
        ("9999-12-31T23:59:59.5-00:01", Fraction(253402300859) + Fraction(1, 2)),
    ],
)
def test_times(text, seconds):
    time = parse_lines(f"1 2 {text}\n".encode(), TIMED, MIB).records.time
    assert time is not None
    assert time.dtype == np.float64
    assert time.tolist() == [float(seconds)]


def test_a_block_of_nothing_but_comments_holds_no_records():
    parsed = parse_lines(b"# a\n\n", TIMED, MIB)
    assert len(parsed.records) == 0
    assert parsed.records.time is not None
    assert parsed.bad == []


def test_a_wrong_verdict_is_not_passed_over(monkeypatch):
    """Were the rules and the reader of values to disagree, records would be put down to other lines."""
    monkeypatch.setattr("ingest.parse.normalise", lambda *args: (2, 0, 0))
    with pytest.raises(AssertionError, match="2 lines"):
        parse_any(b"1 2\n3 4\n", TXT, MIB)
