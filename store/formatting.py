"""Numbers, shares, spans of time and text from outside as people read them, alike on every page and in every sentence."""

from __future__ import annotations

import math
import re
import unicodedata

DASH = "–"
"""Stands for a number that is not known."""

_JOINERS = "\u200c\u200d"
"""Invisible, and part of how Persian, Hindi and emoji are written."""
_NOT_SHOWN = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that spreadsheets take for a formula."""


def printable(text: str, keep: str = "") -> str:
    r"""Text from outside for a terminal, a log or a file that people read: what is not shown is written as its escape.

    Control characters could drive the terminal or forge lines, and directional marks could reorder what is read.

    Args:
        text: from anywhere.
        keep: control characters that stay, such as the line feed where lines are meant.

    >>> printable("a\x1b]0;b\x07\n"), printable("a\n", keep="\n"), printable("\u202egpj.exe"), printable("naïve 名")
    ('a\\x1b]0;b\\x07\\n', 'a\n', '\\u202egpj.exe', 'naïve 名')
    """
    if text.isprintable():
        return text
    return "".join(each if _is_shown(each) or each in keep else _escape(each) for each in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable_json(text: str) -> str:
    r"""JSON with the control characters that JSON itself allows in strings written as escapes; it decodes to the same.

    >>> printable_json('"\x9b2J\u202e"')
    '"\\u009b2J\\u202e"'
    """
    return _NOT_SHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def spreadsheet_text(text: str) -> str:
    r"""A text cell that no spreadsheet takes for a formula: one that begins like a formula gets an apostrophe in front.

    >>> spreadsheet_text('=HYPERLINK("http://evil.example")'), spreadsheet_text("-5"), spreadsheet_text("a=b")
    ('\'=HYPERLINK("http://evil.example")', "'-5", 'a=b')
    """
    return printable(f"'{text}" if text.startswith(FORMULA_STARTS) else text, keep="\n\t")


def known(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)


def count(value: float | None, unknown: str = DASH) -> str:
    """A whole number with its thousands apart.

    >>> count(12345.6), count(None), count(None, "some")
    ('12,346', '–', 'some')
    """
    return unknown if value is None or not math.isfinite(value) else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share as a whole percentage, with as many decimals as distinguish it from 0 and from 100%.

    >>> percent(0.414), percent(0.9999), percent(0.001), percent(0.0), percent(float("nan"))
    ('41%', '99.99%', '0.1%', '0%', '–')
    """
    if share is None or not math.isfinite(share):
        return DASH
    edge = min(share, 1.0 - share)
    digits = 0 if edge >= 0.0095 or edge <= 0.0 else 1 if edge >= 0.00095 else 2
    return f"{100.0 * share:.{digits}f}%"


def span(seconds: float | None) -> str:
    """A span of time with two or three digits that matter.

    >>> span(0.0), span(0.00002), span(0.0021), span(0.0421), span(2.345)
    ('0 ms', '<1 ms', '2.1 ms', '42 ms', '2.35 s')
    >>> span(59.96), span(75), span(900), span(7300), span(None)
    ('1 min', '1 min 15 s', '15 min', '2 h 1 min', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return DASH
    size_s = abs(seconds)
    if size_s < 0.001:
        return "<1 ms" if size_s else "0 ms"
    if size_s < 0.9995:
        return f"{1000.0 * seconds:.2g} ms" if size_s < 0.01 else f"{1000.0 * seconds:.0f} ms"
    if size_s < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return _two(minutes, "min", rest_s, "s")
    return _two(minutes // 60, "h", minutes % 60, "min")


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large} {unit} {small} {small_unit}" if small else f"{large} {unit}"
