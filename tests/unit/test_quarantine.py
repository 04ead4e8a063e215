"""Bad records: what is kept of them, what is shown, and what comes back out of the quarantine."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exoflow
from graph_stream import quarantine
from graph_stream.errors import ConfigError
from graph_stream.replay import Replayed, replay, replay_to_file
from ingest import BadRecord, open_source
from ingest.source import MAX_RAW_BYTES

BAD = [
    BadRecord("edges.txt", "edges.txt", 12, b"1 x", "dst is not an integer"),
    BadRecord("kafka://localhost:9/t", "t-0", 3, b"\xff\x00", "the line is not UTF-8"),
    BadRecord("edges.txt", "edges.txt", 40, b"7" * MAX_RAW_BYTES, "the line is too long", cut=True),
]


def bad_of(uri: str, columns: str = "src,dst") -> list[BadRecord]:
    """Return the bad records of a source, as a run finds them."""
    source = open_source(uri, columns)
    bad: list[BadRecord] = []
    for split in source.splits():
        reader = source.open(split, None)
        end = False
        while not end:
            block = reader.read(100)
            bad += block.bad
            end = block.end
        reader.close()
    return bad


def good_of(path: Path, columns: str = "src,dst") -> list[tuple[int, int]]:
    block = open_source(str(path), columns).open(path.name, None).read(1000)
    assert not block.bad
    assert block.end
    return list(zip(block.records.src.tolist(), block.records.dst.tolist(), strict=True))


def replayed(bad: list[BadRecord], form: str = ".txt", columns: str = "src,dst") -> tuple[bytes, Replayed]:
    out = io.BytesIO()
    done = replay(bad, form, columns, out)
    return out.getvalue(), done


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- what is kept -------------------------------------------------------------------------------------------


def kept(bad: list[BadRecord], epoch: int = 7) -> tuple[dict[str, object], bytes]:
    """Return the row of an epoch, as far as it matters here, and the object it names."""
    data = quarantine.encode(bad)
    return {"epoch": epoch, "rejected": len(bad), "quarantine": quarantine.name_of(epoch, data)}, data


def test_what_is_kept_comes_back_and_any_reader_of_parquet_can_read_it():
    row, data = kept(BAD)
    assert quarantine.decode(row, data) == BAD
    table = pq.read_table(io.BytesIO(data))
    assert table.column_names[:5] == ["source", "split", "offset", "raw", "reason"]
    assert table["raw"].to_pylist() == [record.raw for record in BAD]


def test_an_epoch_without_bad_records_has_no_object_whatever_lies_there():
    assert quarantine.name_in({"epoch": 7, "rejected": 0}) is None


def test_what_another_cut_of_the_epoch_left_has_another_name():
    assert quarantine.name_of(7, quarantine.encode(BAD)) != quarantine.name_of(7, quarantine.encode(BAD[:2]))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: None, "is missing from the store"),
        (lambda data: data[:-1], "is damaged"),
        (lambda data: quarantine.encode(BAD[::-1]), "is damaged"),
    ],
)
def test_what_is_not_what_was_written_is_refused(damage, says):
    row, data = kept(BAD)
    with pytest.raises(exoflow.CorruptRecord, match=says):
        quarantine.decode(row, damage(data))


def test_objects_of_the_first_release_have_a_name_by_epoch_alone_and_do_not_say_what_was_cut():
    rows = [
        {"source": "s", "split": "s", "offset": at, "raw": b"7" * size, "reason": "no"}
        for at, size in enumerate([1023, 1024])
    ]
    schema = pa.schema([field for field in quarantine.SCHEMA if field.name != "cut"])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), out)
    row = {"epoch": 7, "rejected": 2}
    assert quarantine.name_in(row) == "quarantine/epoch-000000000007.parquet"
    assert [record.cut for record in quarantine.decode(row, out.getvalue())] == [False, True]
    with pytest.raises(exoflow.CorruptRecord, match="holds 2 records, and its epoch refused 3"):
        quarantine.decode({**row, "rejected": 3}, out.getvalue())
    with pytest.raises(exoflow.CorruptRecord, match="is damaged"):
        quarantine.decode(row, out.getvalue()[:-9])


# --- what is shown ------------------------------------------------------------------------------------------


def test_json_has_the_exact_bytes_and_a_text_for_eyes():
    shown = json.loads(json.dumps(quarantine.as_json(7, BAD[1])))
    assert base64.b64decode(shown.pop("raw_base64")) == BAD[1].raw
    assert shown == {
        **{"epoch": 7, "source": "kafka://localhost:9/t", "split": "t-0", "offset": 3},
        **{"raw": "\ufffd\x00", "reason": "the line is not UTF-8", "cut": False},
    }


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"1 x", "1 x"),
        (b"\x1b[2J\r\n\x07", r"\x1b[2J\r\n\x07"),  # nothing that a terminal obeys
        ("é \u202e".encode() + b"\xff", r"é \u202e\xff"),
        (b"7" * 81, "7" * 80 + "..."),
    ],
)
def test_a_line_is_safe_to_print(raw, shown):
    record = BadRecord("edges.txt", "edges.txt", 12, raw, "no record")
    assert quarantine.as_line(7, record) == f"      7  edges.txt  edges.txt, 12: no record: {shown}"


def test_a_table_of_several_epochs():
    table = quarantine.table_of(7, BAD)
    assert table.schema == quarantine.TABLE_SCHEMA
    assert table["epoch"].to_pylist() == [7] * len(BAD)
    assert table["cut"].to_pylist() == [False, False, True]


# --- replay -------------------------------------------------------------------------------------------------


def test_records_come_back_byte_for_byte_and_read_well_once_the_columns_are_right(tmp_path):
    lines = [b"1 + 2", b"\xc3\xa9 3 4", b"5\t-\t6  ", b"9223372036854775808 - 1"]
    path = write(tmp_path / "edges.txt", b"7 8 +\n" + b"\r\n".join(lines) + b"\n")
    bad = bad_of(str(path), "src,dst,op")
    assert [record.raw for record in bad] == lines
    data, done = replayed(bad, columns="src,dst,op")
    assert data == b"".join(line + b"\n" for line in lines)
    assert (done.written, done.notes()) == (len(lines), [])
    mended = write(tmp_path / "mended.txt", data.replace(b"\xc3\xa9 3 4", b"3 + 4").replace(b"808", b"807"))
    assert good_of(mended, "src,op,dst") == [(1, 2), (3, 4), (5, 6), (9223372036854775807, 1)]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_long_record_is_read_again_from_its_file(tmp_path, mark, compress):
    """Also one that is the first of its file, and one that is longer than a line may be."""
    longs = [b"x" + b"1" * MAX_RAW_BYTES, b"y" * (3 * 1024 * 1024), b"1 2 \xff" + b"z" * MAX_RAW_BYTES]
    name = "edges.txt" + (".gz" if compress is gzip.compress else "")
    path = write(tmp_path / name, compress(mark + b"\n".join([longs[0], b"1 2", longs[1], b"3 x", longs[2]])))
    bad = bad_of(str(path))
    assert [record.cut for record in bad] == [True, True, False, True]
    data, done = replayed(bad)
    assert data == b"\n".join([longs[0], longs[1], b"3 x", longs[2], b""])
    assert (done.written, done.notes()) == (4, [])


def test_a_record_that_was_kept_whole_is_not_read_again(tmp_path):
    raw = b"7" * MAX_RAW_BYTES
    path = write(tmp_path / "edges.txt", raw + b"\n")
    bad = bad_of(str(path))
    path.unlink()
    assert [record.cut for record in bad] == [False]
    assert replayed(bad)[0] == raw + b"\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.unlink(), "there is no file"),
        (lambda path: path.write_bytes(b""), "it ends before byte 4"),
        (lambda path: path.write_bytes(b"10 x\n"), "no line begins at byte 4"),
        (lambda path: path.write_bytes(b"1 x\n" + b"2" * 100_000 + b"\n"), "has changed since"),
        (lambda path: path.write_bytes(b"1 x\n" + b"1" * MAX_RAW_BYTES + b"\n"), "has changed since"),
    ],
)
def test_half_a_record_is_never_written(tmp_path, change, says):
    path = write(tmp_path / "edges.txt", b"1 x\n" + b"1" * 100_000 + b"\nfour 4\n")
    bad = bad_of(str(path))
    change(path)
    data, done = replayed(bad)
    assert data == b"1 x\nfour 4\n"
    assert done.written == 2
    (note,) = done.notes()
    assert note.startswith("1 left out: only its beginning was kept, and it cannot be read again; the first is")
    assert says in note


def test_a_file_that_ends_in_the_middle_of_a_record_leaves_no_half_of_it(tmp_path):
    long = b"".join(b"%d," % (i * i * 7919) for i in range(400_000))
    whole = gzip.compress(long + b"\n1 x\n")
    path = write(tmp_path / "edges.txt.gz", whole)
    bad = bad_of(str(path))
    path.write_bytes(whole[: len(whole) * 2 // 3])
    data, done = replayed(bad)
    assert data == b"1 x\n"
    assert done.left_out == Counter(["only its beginning was kept, and it cannot be read again"])


def test_messages_are_lines_or_objects_and_what_is_none_is_said():
    text, objects = "kafka://localhost:9/t", "kafka://localhost:9/j?format=json"
    bad = [
        BadRecord(text, "t-0", 1, b"", "the message has no value"),
        BadRecord(text, "t-0", 2, b"", "lost: 5 offsets, up to 7"),
        BadRecord(text, "t-0", 7, b"1 2\n3 4", "the message has more than one line"),
        BadRecord(text, "t-0", 8, b"1", "the line has too few columns"),
        BadRecord(text, "t-0", 9, b"9" * MAX_RAW_BYTES, "the line has too few columns", cut=True),
        BadRecord(objects, "j-0", 0, b'{"src": 1}', "the object has no field dst"),
        BadRecord("rows", "rows.parquet.gz", 4, b'{"src": null, "dst": 2}', "src is null"),
    ]
    data, done = replayed(bad)
    assert (data, done.written, done.empty) == (b"1\n", 1, 2)
    assert done.notes() == [
        "1 left out: it has more than one line; the first is kafka://localhost:9/t, t-0, 7",
        "1 left out: only its beginning was kept, and it cannot be read again; the first is kafka://localhost:9/t, "
        "t-0, 9 (kafka://localhost:9/t: only lines of files can be read again)",
        "2 of another form: use a name that ends in .jsonl",
        "2 hold nothing: messages without a value, or offsets that were lost",
    ]
    assert replayed(bad, ".jsonl")[0] == b'{"src": 1}\n{"src": null, "dst": 2}\n'


# --- CSV: the header says what the columns are --------------------------------------------------------------


def test_lines_of_csv_keep_the_header_of_their_file(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.csv", "b.csv.gz"):
        data = b"# export\nid,dst,src\r\n1,2,3\n4,five,6\n"
        write(tmp_path / "in" / name, gzip.compress(data) if name.endswith(".gz") else data)
    data, done = replayed(bad_of(str(tmp_path / "in")), ".csv")
    assert data == b"id,dst,src\n4,five,6\n4,five,6\n"
    assert done.written == 2
    assert good_of(write(tmp_path / "mended.csv", data.replace(b"five", b"5"))) == [(6, 5), (6, 5)]


def test_a_first_line_that_is_still_bad_is_not_taken_for_a_header(tmp_path):
    path = write(tmp_path / "edges.csv", b"1,2\nthree,4\n5,6x\n")
    data, _ = replayed(bad_of(str(path)), ".csv")
    assert data == b"column1,column2\nthree,4\n5,6x\n"
    again = bad_of(str(write(tmp_path / "again.csv", data)))
    assert [record.raw for record in again] == [b"three,4", b"5,6x"]
    mended = write(tmp_path / "mended.csv", data.replace(b"three", b"3").replace(b"6x", b"6"))
    assert good_of(mended, "dst,src") == [(4, 3), (6, 5)]  # by position, whatever the columns are now


def test_lines_under_different_headers_do_not_go_into_one_file(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.csv", b"src,dst\n1,x\n")
    write(tmp_path / "in" / "b.csv", b"dst,src\n2,y\n")
    bad = bad_of(str(tmp_path / "in"))
    data, done = replayed(bad, ".csv")
    assert data == b"src,dst\n1,x\n"
    assert done.left_out == Counter(["its file has another header than that of the first record"])
    (tmp_path / "in" / "a.csv").unlink()
    data, done = replayed(bad, ".csv")
    assert data == b"dst,src\n2,y\n"
    assert done.left_out == Counter(["the header of its file cannot be read"])


# --- the file -----------------------------------------------------------------------------------------------


def test_the_file_is_a_new_one_of_the_right_form(tmp_path):
    bad = [(7, [BadRecord("edges.txt", "edges.txt", 12, b"1 x", "no")])]
    out = tmp_path / "new" / "bad.txt"
    assert replay_to_file(bad, "src,dst", out).written == 1
    assert out.read_bytes() == b"1 x\n"
    for name, says in [
        ("new/bad.txt", "may hold records that were mended: choose another name"),
        ("bad.log", r"use a name that ends in \.txt, \.tsv, \.csv, \.jsonl"),
        ("bad.csv", r"there are no \.csv records .* 1 of another form: use a name that ends in \.txt"),
    ]:
        with pytest.raises(ConfigError, match=says):
            replay_to_file(bad, "src,dst", tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["bad.txt"]


def test_nothing_to_replay_is_an_empty_file(tmp_path):
    assert replay_to_file([], "src,dst", tmp_path / "none.csv").written == 0
    assert (tmp_path / "none.csv").read_bytes() == b""
