"""The rules of a line, compiled: which lines are records, which are bad and why, in one pass over bytes.

`normalise` rewrites a block of lines into the plainest text that says the same: one record a line, the
wanted columns only, in the order src, dst, op, time, separated by tabs, times in Unix seconds. It decides
what is well formed; the values are read from its text by the same reader that reads plain blocks directly
(`ingest.parse`), so a number cannot mean one thing on one way and another on the other.

- A line that begins with ``#``, or holds nothing but spaces and tabs, is no record. A carriage return before
  the line feed belongs to the line end.
- Columns beyond the wanted ones are ignored, and the number of columns may differ from line to line.
- Spaces around a column are ignored; in CSV tabs too, and a column may stand in double quotes.
- An id is an optional minus and digits, within int64; or a name, whose bytes are kept as they are, but for the quotes
  around it in CSV. An op is ``+`` or ``-``. A time is a decimal number of
  Unix seconds, or RFC 3339 with up to nine digits of a second; more are dropped.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ingest.jit import compiled
from ingest.names import MAX_NAME_BYTES
from ingest.source import Int64s

REASONS: Final = (
    "the line is too long",
    "the line is not UTF-8",
    "the line has too few columns",
    "src is not an integer",
    "src is out of the int64 range",
    "dst is not an integer",
    "dst is out of the int64 range",
    "op is neither + nor -",
    "time is neither Unix seconds nor RFC 3339",
    "src is empty",
    f"src is longer than {MAX_NAME_BYTES} bytes",
    "src begins with a quote that does not end it",
    "dst is empty",
    f"dst is longer than {MAX_NAME_BYTES} bytes",
    "dst begins with a quote that does not end it",
)
(
    TOO_LONG,
    NOT_UTF8,
    TOO_FEW_COLUMNS,
    SRC_NOT_INTEGER,
    SRC_RANGE,
    DST_NOT_INTEGER,
    DST_RANGE,
    BAD_OP,
    BAD_TIME,
    SRC_EMPTY,
    SRC_TOO_LONG,
    SRC_QUOTES,
    DST_EMPTY,
    DST_TOO_LONG,
    DST_QUOTES,
) = range(len(REASONS))
_FINE: Final = -1

MAX_SECONDS_DIGITS: Final = 18
"""Digits a Unix time may have before its point: more is no time, and float64 is far from overflowing."""

_TAB, _NEWLINE, _RETURN, _SPACE, _QUOTE, _HASH = 9, 10, 13, 32, 34, 35
_PLUS, _COMMA, _MINUS, _POINT, _COLON, _ZERO = 43, 44, 45, 46, 58, 48
_UPPER_T, _UPPER_Z, _LOWER_CASE = 84, 90, 32  # a letter | _LOWER_CASE is the lower-case letter
_NANO_DIGITS = 9

_Bytes = npt.NDArray[np.uint8]


@compiled
def normalise(
    block: _Bytes,
    bounds: Int64s,
    delimiter: int,
    index: Int64s,
    invalid: Int64s,
    max_line_bytes: int,
    text: _Bytes,
    names: _Bytes,
    name_bounds: Int64s,
    good: Int64s,
    bad: Int64s,
) -> tuple[int, int, int]:
    """Rewrite whole lines as plain text and tell the bad ones apart.

    Parameters
    ----------
    block
        uint8[b], lines, each with its line feed.
    bounds
        int64[lines + 1], where each line starts, and b.
    delimiter
        The byte between columns, or 0 for runs of spaces and tabs.
    index
        int64[4], the column of src, dst, op and time in the line, counted from 0; -1 for none.
    invalid
        int64, sorted: for each line that is not UTF-8 a byte of `block` in it.
    max_line_bytes
        A longer line (without its line feed) is bad.
    text
        uint8[b], out: the plain text; without src and dst where these are names.
    names
        uint8[2, b], out: the names of the good records one behind the other, first those in src; uint8[2, 0] where
        ids are numbers.
    name_bounds
        int64[2, lines + 1], of which the first are 0, out: where each of them ends; int64[2, 0] where ids are numbers.
    good
        int64[lines], out: the numbers of the lines that are good records.
    bad
        int64[lines, 2], out: the numbers of those that are bad and their indices in `REASONS`.

    Returns
    -------
    tuple of int
        The number of good records, of bad records, and of bytes in `text`.
    """
    span = np.empty((4, 2), np.int64)
    width = index.max() + 1
    n_good = n_bad = size = n_invalid = 0
    for line in range(bounds.size - 1):
        start, stop = bounds[line], bounds[line + 1] - 1
        if block[start] == _HASH:
            continue
        too_long = stop - start > max_line_bytes
        if stop > start and block[stop - 1] == _RETURN:
            stop -= 1
        if not too_long and _skip_blanks(block, start, stop) == stop:
            continue
        while n_invalid < invalid.size and invalid[n_invalid] < start:
            n_invalid += 1
        if too_long:
            fault = TOO_LONG
        elif n_invalid < invalid.size and invalid[n_invalid] < bounds[line + 1]:
            fault = NOT_UTF8
        elif not _find_columns(block, start, stop, delimiter, index, width, span):
            fault = TOO_FEW_COLUMNS
        else:
            fault, size = _write_record(block, delimiter, index, span, text, size, names, name_bounds, n_good)
        if fault == _FINE:
            good[n_good] = line
            n_good += 1
        else:
            bad[n_bad, 0], bad[n_bad, 1] = line, fault
            n_bad += 1
    return n_good, n_bad, size


@compiled
def _is_blank(byte: int) -> bool:
    return byte in (_SPACE, _TAB)


@compiled
def _skip_blanks(block: _Bytes, at: int, stop: int) -> int:
    while at < stop and _is_blank(block[at]):
        at += 1
    return at


@compiled
def _find_columns(
    block: _Bytes, at: int, stop: int, delimiter: int, index: Int64s, width: int, span: npt.NDArray[np.int64]
) -> bool:
    """Set the spans of the wanted columns of a line; False where it has fewer than `width` columns."""
    for found in range(width):
        if delimiter == 0:
            at = _skip_blanks(block, at, stop)
        if at > stop or (at == stop and delimiter == 0):
            return False
        first, last, at = _find_column(block, at, stop, delimiter)
        for column in range(4):
            if index[column] == found:
                span[column, 0], span[column, 1] = first, last
    return True


@compiled
def _find_column(block: _Bytes, at: int, stop: int, delimiter: int) -> tuple[int, int, int]:
    """Return the span of the column that begins at `at`, and where the next begins: > stop for none."""
    if delimiter == 0:
        first = at
        while at < stop and not _is_blank(block[at]):
            at += 1
        return first, at, at
    first = at
    while first < stop and block[first] != delimiter and _is_blank(block[first]):
        first += 1
    at = first
    if delimiter == _COMMA and at < stop and block[at] == _QUOTE:
        at += 1
        while at < stop and (block[at] != _QUOTE or (at + 1 < stop and block[at + 1] == _QUOTE)):
            at += 1 if block[at] != _QUOTE else 2  # a doubled quote stands for itself
        last = at
        at = _skip_blanks(block, min(at + 1, stop), stop)
        if last < stop and (at == stop or block[at] == delimiter):
            return first + 1, last, at + 1
    while at < stop and block[at] != delimiter:
        at += 1
    last = at
    while last > first and _is_blank(block[last - 1]):
        last -= 1
    return first, last, at + 1


@compiled
def _write_record(
    block: _Bytes,
    delimiter: int,
    index: Int64s,
    span: npt.NDArray[np.int64],
    text: _Bytes,
    size: int,
    names: _Bytes,
    name_bounds: Int64s,
    record: int,
) -> tuple[int, int]:
    """Append one record to the text and to the names; return its fault, if any, and the new size of the text.

    What a record with a fault leaves among the names is overwritten by the next one.
    """
    at = size
    for column in range(2):
        if name_bounds.size:
            begin = name_bounds[column, record]
            fault, end = _write_name(block, span[column, 0], span[column, 1], delimiter, names[column], begin)
            if fault != _FINE:
                return fault + 3 * column, size
            name_bounds[column, record + 1] = end
            continue
        fault, at = _write_integer(block, span[column, 0], span[column, 1], text, at)
        if fault != _FINE:
            return fault + 2 * column, size
        text[at] = _TAB
        at += 1
    if index[2] >= 0:
        first, last = span[2, 0], span[2, 1]
        if last - first != 1 or block[first] not in (_PLUS, _MINUS):
            return BAD_OP, size
        text[at], text[at + 1] = block[first], _TAB
        at += 2
    if index[3] >= 0:
        first, last = span[3, 0], span[3, 1]
        if _is_decimal(block, first, last):
            at = _copy(block, first, last, text, at)
        else:
            at = _write_unix_seconds(block, first, last, text, at)
            if at < 0:
                return BAD_TIME, size
        at += 1
    if at > size:
        text[at - 1] = _NEWLINE
    return _FINE, at


@compiled
def _write_name(block: _Bytes, first: int, last: int, delimiter: int, names: _Bytes, at: int) -> tuple[int, int]:
    """Append a name; return its fault, if any, named as if it were src's, and the new end of the names."""
    begin = at
    quoted = delimiter == _COMMA and first > 0 and block[first - 1] == _QUOTE
    if delimiter == _COMMA and not quoted and first < last and block[first] == _QUOTE:
        return SRC_QUOTES, at
    position = first
    while position < last:
        names[at] = block[position]
        at += 1
        position += 2 if quoted and block[position] == _QUOTE else 1  # a doubled quote stands for itself
    if at == begin:
        return SRC_EMPTY, at
    return SRC_TOO_LONG if at - begin > MAX_NAME_BYTES else _FINE, at


@compiled
def _copy(block: _Bytes, first: int, last: int, text: _Bytes, at: int) -> int:
    for position in range(first, last):
        text[at] = block[position]
        at += 1
    return at


@compiled
def _write_integer(block: _Bytes, first: int, last: int, text: _Bytes, at: int) -> tuple[int, int]:
    """Append an id; return its fault, if any, named as if it were src's, and the new end of the text."""
    negative = first < last and block[first] == _MINUS
    if negative:
        text[at] = _MINUS
        at += 1
        first += 1
    if first == last:
        return SRC_NOT_INTEGER, at
    value = np.uint64(0)
    digits = 0
    for position in range(first, last):
        digit = block[position] - _ZERO
        if digit < 0 or digit > 9:
            return SRC_NOT_INTEGER, at
        text[at] = block[position]
        at += 1
        digits += 1 if digits or digit else 0
        value = value * np.uint64(10) + np.uint64(digit)
    limit = np.uint64(2**63) if negative else np.uint64(2**63 - 1)
    return SRC_RANGE if digits > 19 or value > limit else _FINE, at  # 19 digits fit a uint64


@compiled
def _is_decimal(block: _Bytes, first: int, last: int) -> bool:
    if first < last and block[first] == _MINUS:
        first += 1
    digits = seconds_digits = 0
    point = False
    for position in range(first, last):
        if block[position] == _POINT and not point:
            point = True
            continue
        digit = block[position] - _ZERO
        if digit < 0 or digit > 9:
            return False
        digits += 1
        if not point and (seconds_digits or digit):
            seconds_digits += 1
    return digits > 0 and seconds_digits <= MAX_SECONDS_DIGITS


@compiled
def _number(block: _Bytes, first: int, digits: int) -> int:
    """Return a number of exactly so many digits, or -1."""
    value = 0
    for position in range(first, first + digits):
        digit = block[position] - _ZERO
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    return value


@compiled
def _days_in_month(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


@compiled
def _days_from_epoch(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 in the Gregorian calendar.

    A year is taken to begin in March, so that the leap day is its last and the months before it have a
    regular length: 153 days in every five.
    """
    if month < 3:
        year -= 1
    march_month = (month + 9) % 12
    day_of_year = (153 * march_month + 2) // 5 + day - 1
    return 365 * year + year // 4 - year // 100 + year // 400 + day_of_year - 719_468


@compiled
def _write_unix_seconds(block: _Bytes, first: int, last: int, text: _Bytes, at: int) -> int:
    """Append an RFC 3339 time (``2026-11-22T15:30:00.25+01:00``) as Unix seconds; -1 where it is none.

    A time is at least 20 bytes long and never shorter than what is written for it: no more than nine digits
    of a fraction are kept.
    """
    if last - first < 20:
        return -1
    separators = (
        block[first + 4] == _MINUS
        and block[first + 7] == _MINUS
        and (block[first + 10] | _LOWER_CASE == _UPPER_T | _LOWER_CASE or block[first + 10] == _SPACE)
        and block[first + 13] == _COLON
        and block[first + 16] == _COLON
    )
    year, month, day = _number(block, first, 4), _number(block, first + 5, 2), _number(block, first + 8, 2)
    hour, minute = _number(block, first + 11, 2), _number(block, first + 14, 2)
    second = _number(block, first + 17, 2)
    if not separators or year < 0 or not 1 <= month <= 12 or not 1 <= day <= _days_in_month(year, month):
        return -1
    if not 0 <= hour <= 23 or not 0 <= minute <= 59 or not 0 <= second <= 60:  # 60: a leap second
        return -1
    first += 19
    nanoseconds = 0
    if block[first] == _POINT:
        first += 1
        digits = 0
        while first < last and 0 <= block[first] - _ZERO <= 9:
            if digits < _NANO_DIGITS:
                nanoseconds = nanoseconds * 10 + block[first] - _ZERO
            digits += 1
            first += 1
        if digits == 0:
            return -1
        for _ in range(digits, _NANO_DIGITS):
            nanoseconds *= 10
    shift = 0
    if last - first == 6 and block[first] in (_PLUS, _MINUS) and block[first + 3] == _COLON:
        shift_hour, shift_minute = _number(block, first + 1, 2), _number(block, first + 4, 2)
        if not 0 <= shift_hour <= 23 or not 0 <= shift_minute <= 59:
            return -1
        shift = (shift_hour * 60 + shift_minute) * (60 if block[first] == _PLUS else -60)
    elif last - first != 1 or block[first] | _LOWER_CASE != _UPPER_Z | _LOWER_CASE:
        return -1
    seconds = _days_from_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - shift
    return _write_decimal(seconds, nanoseconds, text, at)


@compiled
def _write_decimal(seconds: int, nanoseconds: int, text: _Bytes, at: int) -> int:
    """Append ``seconds + nanoseconds / 1e9``; the sign of the seconds is the sign of the sum's floor."""
    if seconds < 0:
        text[at] = _MINUS
        at += 1
        seconds = -seconds
        if nanoseconds:
            seconds -= 1
            nanoseconds = 1_000_000_000 - nanoseconds
    at = _write_digits(seconds, 1, text, at)
    if nanoseconds:
        text[at] = _POINT
        at = _write_digits(nanoseconds, _NANO_DIGITS, text, at + 1)
    return at


@compiled
def _write_digits(value: int, min_digits: int, text: _Bytes, at: int) -> int:
    digits = 1
    rest = value // 10
    while rest or digits < min_digits:
        digits += 1
        rest //= 10
    for position in range(at + digits - 1, at - 1, -1):
        text[position] = _ZERO + value % 10
        value //= 10
    return at + digits
