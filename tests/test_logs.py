"""What is logged of a run reaches its files, in a program that has set up logging and in one that has not."""

import io
import logging

import pytest

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.logs import LogFiles, set_up_logging
from tests.errors import raises_naming

logger = logging.getLogger("fuxictr_mm.test")


@pytest.mark.parametrize("command", [False, True])
def test_lines_before_and_after_opening_are_written_and_handlers_are_removed(tmp_path, command):
    if command:
        set_up_logging()
        logger.warning("of the configuration")
    before = [type(handler) for handler in logging.getLogger().handlers if "Memory" not in type(handler).__name__]
    with LogFiles() as logs:
        logger.info("before")
        logs.open([tmp_path / "a" / "x.log", tmp_path / "y.log"], "w")
        logger.info("after")
    logger.info("not of the run")
    lines = (tmp_path / "y.log").read_text().splitlines()
    texts = [line.split(maxsplit=3)[3] for line in lines]
    assert texts == (["of the configuration"] if command else []) + ["before", "after"]
    assert (tmp_path / "a" / "x.log").read_text() == (tmp_path / "y.log").read_text()
    assert [type(handler) for handler in logging.getLogger().handlers] == before
    with LogFiles() as logs:
        logs.open([tmp_path / "y.log"], "a")
        logger.info("again")
    assert len((tmp_path / "y.log").read_text().splitlines()) == len(lines) + 1


def test_a_program_that_shows_warnings_only_goes_on_doing_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING)  # whatever level other tests have left
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    logging.getLogger().addHandler(handler)
    with LogFiles() as logs:
        logs.open([tmp_path / "x.log"], "w")
        logger.info("for the file")
        logger.warning("for both")
    logging.getLogger().removeHandler(handler)
    assert shown.getvalue() == "for both\n"
    assert len((tmp_path / "x.log").read_text().splitlines()) == 2
    assert not handler.filters


def test_without_a_file_nothing_is_left(tmp_path):
    (tmp_path / "file").touch()
    before = list(logging.getLogger().handlers)
    with LogFiles() as logs, raises_naming(ConfigError, tmp_path / "file" / "x.log"):
        logs.open([tmp_path / "file" / "x.log"], "w")
    assert logging.getLogger().handlers == before
    assert logging.getLogger("fuxictr_mm").level == logging.NOTSET
