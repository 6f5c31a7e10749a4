"""What is told on standard error, and what never is."""

import io
import json
import logging
import re

import pytest

from plugin.log import AGAIN_SECONDS, OneOfAKind, logging_to


def logged(form: str = "text", level: str = "info", say=None) -> list[str]:
    out = io.StringIO()
    with logging_to(out, level, form):
        (say or speak)()
    return out.getvalue().splitlines()


def speak():
    ours, theirs = logging.getLogger("plugin.something"), logging.getLogger("somebody")
    ours.debug("too small to tell")
    ours.info("viewers came", extra={"viewers": 2})
    theirs.info("of no interest")
    theirs.warning("a library is worried")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        ours.exception("it broke")


def test_lines_for_a_person():
    assert logged() == [
        "ifmdm: viewers came (viewers 2)",
        "ifmdm: a library is worried",
        "ifmdm: error: it broke ValueError: two lines",
    ]
    assert logged(level="error") == ["ifmdm: a library is worried", "ifmdm: error: it broke ValueError: two lines"]


def test_objects_for_a_program():
    told = [json.loads(line) for line in logged("json")]
    assert [(each["level"], each["logger"], each["message"]) for each in told] == [
        ("info", "plugin.something", "viewers came"),
        ("warning", "somebody", "a library is worried"),
        ("error", "plugin.something", "it broke"),
    ]
    assert told[0]["viewers"] == 2
    assert told[2]["error"] == "ValueError: two lines"
    assert "trace" not in told[2]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["time"]) for each in told)


@pytest.mark.parametrize("form", ["text", "json"])
def test_where_an_error_comes_from_is_told_to_who_asks(form):
    text = "\n".join(logged(form, "debug"))
    assert "too small to tell" in text
    assert "raise ValueError" in text


def test_a_library_that_says_the_same_of_every_packet_does_not_fill_the_log():
    def say():
        for _ in range(1000):
            logging.getLogger("aiortc.rtcrtpreceiver").warning("failed to decode %s frame", "opus")
        logging.getLogger("aiortc.rtcrtpreceiver").warning("something else")
        for _ in range(3):
            logging.getLogger("plugin").info("ours")

    assert logged(say=say) == ["ifmdm: failed to decode opus frame", "ifmdm: something else", *["ifmdm: ours"] * 3]


@pytest.mark.parametrize("after, told", [(0.0, False), (AGAIN_SECONDS - 1, False), (AGAIN_SECONDS, True)])
def test_what_a_library_says_is_told_again_after_a_while(after, told):
    now = [100.0]
    sparing = OneOfAKind(lambda: now[0])
    record = logging.LogRecord("aiortc", logging.WARNING, "", 0, "%d failed", (1,), None)
    assert sparing.filter(record)
    now[0] += after
    record.args = (2,)
    assert sparing.filter(record) is told


def test_the_status_line_makes_way_for_what_is_told():
    class Screen(io.StringIO):
        def isatty(self):
            return True

    for form, shown in (("text", True), ("json", False)):
        screen = Screen()
        with logging_to(screen, form=form) as terminal:
            terminal.status("45 frames")
            terminal.status("live")
            logging.getLogger("plugin").info("hello")
            terminal.status("gone")
        text = screen.getvalue()
        assert ("live" in text) is shown
        if shown:
            assert text == "45 frames\r         \rlive\r    \rifmdm: hello\ngone\r    \r"


def test_nothing_is_left_of_it():
    before = list(logging.getLogger().handlers), logging.getLogger("plugin").level
    logged("json", "debug")
    assert (list(logging.getLogger().handlers), logging.getLogger("plugin").level) == before


def test_who_does_not_read_stops_nothing():
    out = io.StringIO()
    with logging_to(out):
        out.close()
        logging.getLogger("plugin").info("into the void")
