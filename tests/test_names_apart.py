"""Test files are imported by their last name alone."""

import collections
import pathlib


def test_no_two_test_files_share_a_name():
    names = [path.name for path in pathlib.Path(__file__).parent.rglob("test_*.py")]
    counted = collections.Counter(names)
    assert len(names) > 50
    assert [name for name, count in counted.items() if count > 1] == []
