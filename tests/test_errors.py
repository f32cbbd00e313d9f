"""What users read when something is wrong: one line, not too long, safe to print."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsas_lab.errors import LONGEST, InputError


@given(st.text(max_size=2000))
def test_a_message_is_one_printable_line_whatever_it_quotes(quoted: str):
    told = str(InputError(f"data.csv, line 7: the user {quoted!s} is missing: add it."))
    assert len(told) <= LONGEST and told.isprintable()
    assert told.startswith("data.csv, line 7:") and told.endswith("add it.")


@pytest.mark.parametrize("character, shown", [("\x1b", "\\x1b"), ("\0", "\\x00"), ("\n", " ")])
def test_control_characters_are_shown_not_obeyed(character: str, shown: str):
    assert str(InputError(f"a{character}b")) == f"a{shown}b"
