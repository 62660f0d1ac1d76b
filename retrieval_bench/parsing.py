"""Words of the command line to a dataclass of flags, by tyro; every complaint is one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from retrieval_bench.errors import UserError, unknown

PLAIN = {
    r"invalid literal for int\(\) with base 10: ('.*?')": r"\1 is not a whole number",
    r"could not convert string to float: ('.*?')": r"\1 is not a number",
    r"no type matching \{None\}\|(.*) could be instantiated from (\[.*?\])\. Got .*\]`": r"expected \1, found \2",
}
"""Messages of Python and tyro, and what users read in their place."""
ONE_COLUMN = 129
"""Widest terminal on which tyro puts no boxes of a long help side by side."""


def ask(kind: Any, words: Sequence[str], program: str, default: Any = None, hidden: Collection[str] = ()) -> Any:
    """The command `kind` with the flags that `words` give.

    Args:
        kind: a dataclass.
        words: flags and their values.
        program: what the user typed before them.
        default: values of flags that are not given, where they are not those of `kind`.
        hidden: flags that the help leaves out.

    Raises:
        UserError: one line in place of tyro's framed box.
    """
    parse = partial(tyro.cli, kind, args=split_commas(words, set(list_flags(kind))), prog=f"retrieval_bench {program}")
    if default is not None:
        parse = partial(parse, default=default)
    for width in (10_000, ONE_COLUMN):
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)) as stream:
            try:
                with contextlib.redirect_stderr(io.StringIO()), wide_terminal(width):
                    return parse()
            except SystemExit as stop:
                is_help = not stop.code
        page = stream.buffer.getvalue().decode()  # pyright: ignore[reportAttributeAccessIssue]
        if is_help and not re.search("╭.*╭", page):
            print(help_page(page, hidden))
            raise SystemExit(0)
    with contextlib.redirect_stderr(io.StringIO()) as box, contextlib.suppress(SystemExit), wide_terminal():
        parse()
    raise UserError(f"{one_line(box.getvalue())} (`retrieval_bench {program} --help` lists all flags)")


@contextlib.contextmanager
def wide_terminal(width: int = 10_000) -> Iterator[None]:
    """A block in which the terminal is said to be so wide that tyro breaks no line of what it prints."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def list_flags(kind: Any) -> Iterator[str]:
    """The flags of a command that take any number of values, without dashes."""
    extras = get_type_hints(kind, include_extras=True)
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from list_flags(hint)
        elif get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is not tuple and get_args(hint)[0] is not Path:
            yield name.replace("_", "-")
            for extra in getattr(extras[name], "__metadata__", ()):
                yield from (alias.lstrip("-") for alias in getattr(extra, "aliases", None) or ())


def split_commas(words: Sequence[str], flags: set[str]) -> list[str]:
    """The words, with the values of these flags separated at commas; not inside ``label(a=1,b=2)``. Raises
    :class:`UserError` where one is missing."""
    separated, given, inside = [], "", False
    for word in words:
        flag, values = "", word
        if word.startswith("--"):
            flag, _, values = word.partition("=")
            given, inside = flag, flag[2:].replace("_", "-") in flags
        if not inside or "," not in values or {"(", "="} & set(values):
            separated.append(word)
        else:
            separated += [*([flag] if flag else []), *split_values(given, values)]
    return separated


def split_values(flag: str, values: str) -> list[str]:
    """What stands between commas. Raises :class:`UserError` if that is nothing."""
    separated = values.split(",")
    if not all(map(str.strip, separated)):
        raise UserError(f"{flag} {values}: a value is missing beside a comma")
    return separated


def one_line(box: str) -> str:
    """What tyro prints in a framed box on a wide terminal, as one line: without frame, title, rules and help texts, but
    for those of arguments that are missing."""
    framed = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:-1]
    rows = [row.strip("│").rstrip() for row in framed]  # there is no sign at the sides where the terminal is not UTF-8
    rows = [row for row in rows if row.strip(" ─━-")]
    if any("Perhaps you meant:" in row or "Arguments similar to" in row for row in rows):
        rows = [row for row in rows if not row.startswith(" " * 8)]
    text = re.sub(r"\s+", " ", " ".join(rows)).strip()
    for theirs, ours in PLAIN.items():
        text = re.sub(theirs, ours, text)
    return re.split(r" ?(?:Argument|For full) helptext", text)[0] or "the arguments cannot be understood"


def help_page(box: str, hidden: Collection[str] = ()) -> str:
    """What tyro prints for ``--help`` in framed boxes on a wide terminal, wrapped between words to the width of this
    one, without the `hidden` flags."""
    entries: list[tuple[str, str]] = []  # what begins at the margin, and its help
    for row in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = row.strip("│╭╰╮╯─").rstrip()
        if row[:1] == "╭":
            entries.append(("", f"\n{text.strip()}:"))
        elif row[:1] != "│":
            entries.append(("", text))
        elif not text.strip(" ─"):
            continue
        elif text[1:2] != " ":
            name, _, about = text.strip().partition("  ")
            entries.append((name, about.strip()))
        else:
            entries[-1] = entries[-1][0], f"{entries[-1][1]} {text.strip()}"
    lines = []
    for name, about in entries:
        if not name:
            lines.append(wrapped(about))
        elif not set(re.findall(r"--?[\w.-]+", name)) & set(hidden):
            about = re.sub(r" ?\(default: (None)?\)$", "", about.strip())
            name = re.sub(r"\{([A-Z]+( [A-Z]+)*)\}", r"\1", name.replace("{None}|", ""))
            name = re.sub(r",(?=[^{}]*\})", ", ", name) if len(name) > 72 else name  # choices that no line of 80 holds
            lines += [wrapped("  " + name, 6), *([wrapped(" " * 6 + about, 6)] if about else [])]
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip()


def wrapped(text: str, indent: int = 0) -> str:
    """The text in lines of at most the terminal's width (40 to 120 signs), broken between words; lines behind the first
    are indented."""
    width = min(max(shutil.get_terminal_size().columns, 40), 120)
    lines = [
        textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    ]
    return "\n".join(lines)


def listing(usage: str, title: str, entries: Mapping[str, str]) -> str:
    """The text of ``--help`` for a word that a name must follow."""
    width = max(13, *(len(name) + 2 for name in entries))
    lines = [wrapped(f"  {name:{width}}{about.splitlines()[0]}", width + 2) for name, about in entries.items()]
    return "\n".join([wrapped(f"usage: python -m retrieval_bench {usage}", 4), "", f"{title}:", *lines])


def choose(words: Sequence[str], kind: str, names: Mapping[str, str], usage: str, title: str) -> str:
    """The name that must follow a word such as ``bench``; without one, or with ``--help``, all names are printed and
    the program ends.

    Raises:
        UserError: a name that there is not.
    """
    if not words or words[0] in ("-h", "--help"):
        print(listing(usage, title, names))
        raise SystemExit(0 if words else 2)
    if words[0] not in names:
        raise unknown(kind, words[0], names)
    return words[0]
