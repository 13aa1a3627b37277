import json
import sys
import unicodedata

import pytest

from koala.printable import json_line, printable

EVERYTHING = [chr(code) for code in range(sys.maxunicode + 1)]


def test_no_character_that_a_terminal_acts_upon_gets_through() -> None:
    for character in EVERYTHING:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            escape = printable(f"a{character}b")
            assert escape.isascii(), escape
            assert escape.isprintable(), escape
            assert escape[1] == "\\", escape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("one\r\ntwo", r"one\r\ntwo"),
        ("\u202etxt.gpj", r"\u202etxt.gpj"),
        ("\u2066a\u2069\u200e\u200f", r"\u2066a\u2069\u200e\u200f"),
        ("a\u2028b\u2029c\u200bd\ufeff", r"a\u2028b\u2029c\u200bd\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        ("\udc9b", r"\udc9b"),
    ],
)
def test_what_is_hidden_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["", "a koala", "ein Bär", "コアラ　青い", "🐨❤️", "[red]\\ :smile:"]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_json_for_a_terminal_is_printable_ascii_and_means_the_same() -> None:
    text = "".join(EVERYTHING[:0x3000])
    line = json_line({"text": text})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {"text": text}
