"""Tables for documents, made from records: of a record's fields by its docstring, or of several records' values.

A document holds a table between two marks; this module writes what stands there, and a test compares:

    <!-- fields of densepath.records.choice.Findings -->
    <!-- end of fields -->
    <!-- rows of densepath.report.glossary.GLOSSARY -->
    <!-- end of rows -->

`python -m densepath.records.tables docs/metrics.md` writes the tables of a document anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densepath.errors import DataError
from densepath.io import write_text_atomic

_MARKED = re.compile(r"(<!-- (fields|rows) of ([\w.]+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def field_table(cls: type) -> str:
    """A Markdown table with a line for each field, its meaning as the `Attributes` of the docstring say.

    Args:
        cls: a dataclass.

    Raises:
        DataError: a field that the docstring does not explain.
    """
    _, _, text = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    said = {m[1]: " ".join(m[2].split()) for m in re.finditer(r"^    (\w+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE)}
    lines = ["| name | meaning |", "|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name not in said:
            raise DataError(f"{cls.__name__}.{field.name} is not explained; add it to the Attributes of its docstring")
        lines.append(f"| `{field.name}` | {said[field.name].rstrip('.').replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def row_table(records: Sequence[Any]) -> str:
    """A Markdown table with a line for each record, and a column for each field.

    Args:
        records: instances of one dataclass whose fields are text, one at least.
    """
    names = [field.name for field in dataclasses.fields(records[0])]
    rows = [names, ["---"] * len(names), *([getattr(record, name) for name in names] for record in records)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def with_tables(document: str) -> str:
    """The document with every marked table as its record says now."""

    def table(match: re.Match[str]) -> str:
        module, _, name = match[3].rpartition(".")
        make = field_table if match[2] == "fields" else row_table
        return f"{match[1]}{make(getattr(importlib.import_module(module), name))}{match[4]}"

    return _MARKED.sub(table, document)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        write_text_atomic(path, with_tables(path.read_text(encoding="utf-8")))
