"""The page of `make race-demo`: from the checker's findings, readable by itself."""

import re

import race_demo
from corpus import PATTERNS


def test_the_page_shows_the_race_and_needs_no_other_file():
    text = race_demo.page()
    assert "copy out reads in copy_out (x1 out)" in text
    assert "compute writes in layer 2" in text
    assert text.count("both at the same bytes") == 1  # on one side only
    assert not re.search(r"(src|href)=|@import|url\((?!#)", text)
    for pattern in PATTERNS:
        assert pattern.report in text
    assert text.count("4 of 4") == 2 * len(PATTERNS)
    assert text.count("<svg") == text.count("</svg>") == 2
