"""Writes the tables of all pages, or tells which differ."""

import argparse
import pathlib
import sys

from benchmarks import tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    differ = []
    for page in sorted((pathlib.Path(__file__).parents[2] / "docs").glob("*.md")):
        text = page.read_text()
        filled = tables.fill(text, tables.TABLES)
        if filled != text:
            differ.append(page.name)
            if not check:
                page.write_text(filled)
    verb = "differ from" if check else "were written from"
    print(f"{', '.join(differ) or 'none'} {verb} the stored files")
    return int(check and bool(differ))


if __name__ == "__main__":
    sys.exit(main())
