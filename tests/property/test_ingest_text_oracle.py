"""Text files against a naive parser: every rule of a line, every chunk size, every resume point.

The parser here reads one line at a time in plain Python and knows nothing of blocks, chunks or positions. So
a rule read wrongly, a record lost at the edge of a chunk, and a block of plain numbers that means something
else than the same lines among others would each need two mistakes to hide.
"""

import gzip
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import reader
from ingest.files import FileSource
from ingest.parse import layout_of, parse_any, parse_plain
from ingest.source import MAX_RAW_BYTES, Block

COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
KINDS = (".txt", ".tsv", ".csv")
COLUMN_LISTS = ("src,dst", "dst,src", "src,dst,time", "time,src,dst", "op,src,dst", "src,op,time,dst")


class Refused(Exception):
    """A line is bad, and why."""


@dataclass(frozen=True)
class Good:
    start: int
    end: int
    values: tuple[int, int, int, float | None]


@dataclass(frozen=True)
class Bad:
    start: int
    end: int
    raw: bytes
    reason: str
    cut: bool


def refuse(reason: str) -> NoReturn:
    raise Refused(reason)


# --- the naive parser ---------------------------------------------------------------------------------------


def naive_records(data: bytes, kind: str, names: list[str], max_line_bytes: int) -> list[Good | Bad]:
    records = list(naive_lines(data, kind, names, max_line_bytes))
    if kind == ".csv" and records and isinstance(records[0], Bad):
        header = records[0]
        text = data[header.start : header.end].decode(errors="replace").rstrip("\r\n")
        found = [name.strip().removeprefix('"').removesuffix('"') for name in text.split(",")]
        by_name = found if set(names) <= set(found) else names
        after = naive_lines(data, kind, by_name, max_line_bytes, names)
        records = [record for record in after if record.start >= header.end]
    return records


def naive_lines(data: bytes, kind: str, header: list[str], max_line_bytes: int, names: list[str] | None = None):
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        line = data[start:end].removesuffix(b"\n")
        if line.startswith(b"#"):
            pass
        elif len(line) > max_line_bytes:
            yield Bad(start, end, line[: min(MAX_RAW_BYTES, max_line_bytes)], "the line is too long", cut=True)
        elif (line := line.removesuffix(b"\r")).strip(b" \t"):
            try:
                yield Good(start, end, naive_record(line, kind, header, names or header))
            except Refused as error:
                raw = line[: min(MAX_RAW_BYTES, max_line_bytes)]
                yield Bad(start, end, raw, str(error), cut=raw != line)
        start = end


def naive_record(line: bytes, kind: str, header: list[str], names: list[str]):
    try:
        text = line.decode()
    except UnicodeDecodeError:
        refuse("the line is not UTF-8")
    columns = naive_columns(text, kind)
    index = {name: header.index(name) for name in names}
    if len(columns) <= max(index.values()):
        refuse("the line has too few columns")
    src, dst = (naive_integer(name, columns[index[name]]) for name in ("src", "dst"))
    op = columns[index["op"]] if "op" in index else "+"
    if op not in ("+", "-"):
        refuse("op is neither + nor -")
    return src, dst, {"+": 1, "-": -1}[op], naive_time(columns[index["time"]]) if "time" in index else None


def naive_columns(text: str, kind: str) -> list[str]:
    if kind == ".txt":
        return re.split("[ \t]+", text.strip(" \t"))
    if kind == ".tsv":
        return [column.strip(" ") for column in text.split("\t")]
    columns = []
    rest: str | None = text
    while rest is not None:
        quoted = re.match(r'[ \t]*"((?:[^"]|"")*)"[ \t]*(,|$)', rest)
        if quoted:
            columns.append(quoted[1])
            rest = rest[quoted.end() :] if quoted[2] else None
        elif opened := re.match(r'[ \t]*"(?:[^"]|"")*("|$)', rest):  # something follows the quote, or it stays open
            junk, comma, tail = rest[opened.end() :].partition(",")
            columns.append((opened[0] + junk).strip(" \t"))
            rest = tail if comma else None
        else:
            column, comma, tail = rest.partition(",")
            columns.append(column.strip(" \t"))
            rest = tail if comma else None
    return columns


def naive_integer(name: str, text: str) -> int:
    if not re.fullmatch("-?[0-9]+", text):
        refuse(f"{name} is not an integer")
    if not -(2**63) <= int(text) < 2**63:
        refuse(f"{name} is out of the int64 range")
    return int(text)


def naive_time(text: str) -> float:
    wrong = "time is neither Unix seconds nor RFC 3339"
    if re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", text):
        if len(text.lstrip("-").lstrip("0").partition(".")[0]) > 18:
            refuse(wrong)
        return float(text)
    if not re.fullmatch(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})",
        text,
    ):
        refuse(wrong)
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        refuse(wrong)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


# --- files that are mostly records --------------------------------------------------------------------------


def integers() -> st.SearchStrategy[str]:
    return st.one_of(
        st.integers(0, 99).map(str),
        st.integers(-(2**63), 2**63 - 1).map(str),
        st.integers(-(2**65), 2**65).map(str),
        st.integers(0, 9).map("{:025}".format),
        st.sampled_from(["-0", "+5", "0x10", "1e3", "1.0", "nan", "-", ""]),
    )


def times() -> st.SearchStrategy[str]:
    moments = st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29))
    zones = st.sampled_from(["Z", "z", "+01:00", "-23:59", "+00:00", "+24:00", ""])
    return st.one_of(
        st.decimals(-(10**12), 10**12, places=3).map(str),
        st.sampled_from(["0", "-.5", "5.", ".", "1e9", "inf", "1" * 18, "1" * 19, "0" * 30 + "7", "1082040961"]),
        st.builds(lambda moment, zone: moment.isoformat() + zone, moments, zones),
        st.builds("{:04}-{:02}-{:02}t{:02}:{:02}:{:02}Z".format, *[st.integers(1, 62)] * 6),
    )


def records(kind: str, names: list[str]) -> st.SearchStrategy[str]:
    values = {"src": integers(), "dst": integers(), "op": st.sampled_from("+-+-+-x"), "time": times()}
    columns = st.tuples(*(values[name] for name in names))
    extra = st.sampled_from([[], [], ["7"], ["Smith"], ["é"]])
    blanks = st.text(" \t", min_size=1, max_size=3)
    separator = {".txt": st.one_of(st.just("\t"), st.just(" "), blanks), ".tsv": st.just("\t")}.get(
        kind, st.sampled_from([",", ",", ", ", " ,"])
    )
    quote = st.sampled_from(["", "", '"'] if kind == ".csv" else [""])
    return st.builds(
        lambda row, more, between, mark: between.join(f"{mark}{column}{mark}" for column in [*row, *more]),
        columns,
        extra,
        separator,
        quote,
    )


def files(kind: str, names: list[str]) -> st.SearchStrategy[bytes]:
    other = st.one_of(
        st.sampled_from(
            ["", "  ", "\t", "# a comment", "#", " # no comment", ",".join(names), f"id,{','.join(names)}"]
        ),
        st.text('0123456789-+., \t"#xe:TZ\ré', max_size=12),
    ).map(str.encode)
    plain = st.builds(
        lambda row: {".csv": ",", ".tsv": "\t", ".txt": " "}[kind].join(row).encode(),
        st.tuples(*(st.sampled_from("+-") if name == "op" else st.integers(-9, 99).map(str) for name in names)),
    )
    wild = st.one_of(plain, plain, records(kind, names).map(str.encode), other, st.binary(max_size=4))
    tame = st.one_of(plain, plain, plain, st.just(b""))
    return st.one_of(
        lines_of(tame, st.just(b"\n"), st.just(b"")),
        lines_of(tame, st.sampled_from([b"\n", b"\r\n"]), st.just(b"")),
        lines_of(wild, st.sampled_from([b"\n", b"\n", b"\r\n"]), st.sampled_from([b"", b"\xef\xbb\xbf"])),
    )


def lines_of(line, end, mark) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda start, rows, whole: start + b"".join(text + end for text, end in rows)[: None if whole else -1],
        mark,
        st.lists(st.tuples(line, end), max_size=25),
        st.booleans(),
    )


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(KINDS))
    names = draw(st.sampled_from(COLUMN_LISTS)).split(",")
    return kind, names, draw(files(kind, names))


# --- the properties -----------------------------------------------------------------------------------------


def in_order(block: Block) -> list[tuple]:
    """Return what a block holds without the offsets of its good records, which it does not tell."""
    times_of = [None] * len(block.records) if block.records.time is None else block.records.time.tolist()
    columns = (block.records.src.tolist(), block.records.dst.tolist(), block.records.op.tolist(), times_of)
    return list(zip(*columns, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@settings(max_examples=400, deadline=None)
@given(
    case=cases(),
    compression=st.sampled_from(["", "", ".gz", ".zst"]),
    chunk_bytes=st.one_of(st.integers(1, 40), st.just(256 * 1024)),
    max_line_bytes=st.sampled_from([9, 30, 1024 * 1024]),
    max_bad=st.sampled_from([1, 2, 1000]),
    reads=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1),
)
def test_every_read_is_the_next_run_of_what_the_naive_parser_finds(
    folder: Path, case, compression, chunk_bytes, max_line_bytes, max_bad, reads
):
    kind, names, data = case
    expected = naive_records(data, kind, names, max_line_bytes)
    path = folder / f"edges{kind}{compression}"
    path.write_bytes(COMPRESS[compression](data))
    source = FileSource("the source", str(path), tuple(names), chunk_bytes, max_line_bytes)
    position, at, step = 0, 0, 0
    split_reader = source.open(path.name, None)
    with mock.patch.object(reader, "MAX_BAD_PER_BLOCK", max_bad):
        while True:
            max_records, reopen = reads[step % len(reads)]
            step += 1
            block = split_reader.read(max_records)

            stop, good, bad = at, [], []
            while stop < len(expected):
                record = expected[stop]
                if len(good) + isinstance(record, Good) > max_records or len(bad) + isinstance(record, Bad) > max_bad:
                    break
                (good if isinstance(record, Good) else bad).append(record)
                stop += 1
            assert in_order(block) == [record.values for record in good]
            assert [(b.source, b.split, b.offset, b.raw, b.reason, b.cut) for b in block.bad] == [
                ("the source", path.name, record.start, record.raw, record.reason, record.cut) for record in bad
            ]
            position = expected[stop - 1].end if stop > at else position
            assert split_reader.position == position
            assert block.end == (stop == len(expected))
            at = stop
            if block.end:
                break
            if reopen:
                split_reader.close()
                split_reader = source.open(path.name, split_reader.position)
    assert not in_order(split_reader.read(1))
    split_reader.close()


@settings(max_examples=250, deadline=None)
@given(case=cases())
def test_plain_lines_mean_the_same_on_both_ways(case):
    """Line by line, so that no line is kept off the plain way by its neighbours."""
    kind, names, data = case
    layout = layout_of({".txt": b"", ".tsv": b"\t", ".csv": b","}[kind], tuple(names))
    for line in data.splitlines(keepends=True):
        block = line.removesuffix(b"\n") + b"\n"
        plain = parse_plain(block, layout, 30)
        if plain is not None:
            careful = parse_any(block, layout, 30)
            assert not careful.bad
            assert in_order(Block(plain.records, (), True)) == in_order(Block(careful.records, (), True))
            assert plain.starts.tolist() == careful.starts.tolist()
            assert plain.ends.tolist() == careful.ends.tolist()
