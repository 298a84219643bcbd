"""Read the code fences of the README and of docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from tests.paths import ROOT

PAGES = sorted(
    str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.stat().st_size
)

#: A fence without a language is one of commands if its first line begins with one of these.
PROGRAMS = (
    "python",
    "fuxictr-mm",
    "torchrun",
    "make",
    "pip",
    "mv",
    "cp",
    "tensorboard",
    "eval",
    "export",
    "curl",
    "source",
)
SHELLS = ("bash", "sh", "console")

_FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", flags=re.M | re.S)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=")
_LOOP = re.compile(r"\bfor (\w+) in ([^;\n]+); do\b((?:(?!\bfor \w+ in\b).)*?)\bdone\b", flags=re.S)


@dataclass(frozen=True)
class Fence:
    """What stands between two lines of three backticks."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command of a fence.

    Parameters
    ----------
    where : str
        Page and line of the fence.
    text : str
        As it is run: variables put in, loops unrolled, lines joined.
    words : list of str
        Program and arguments, without redirections and what follows a pipe.
    environment : dict
        Variables that are set for it alone.
    """

    where: str
    text: str
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def fences(page: str) -> list[Fence]:
    """Return the fences of a page."""
    content = (ROOT / page).read_text(encoding="utf-8")
    return [
        Fence(
            page, content.count("\n", 0, found.start()) + 1, found[2], re.sub(rf"^{found[1]}", "", found[3], flags=re.M)
        )
        for found in _FENCE.finditer(content)
    ]


def is_shell(fence: Fence) -> bool:
    """Whether a fence is of commands."""
    if fence.language:
        return fence.language in SHELLS
    for line in fence.text.splitlines():
        if line.strip() and not line.startswith("#"):
            first = re.sub(r"^\$ ", "", line)
            return first.split()[0] in PROGRAMS or bool(_ASSIGNMENT.match(first)) or bool(_LOOP.match(fence.text))
    return False


def commands(fence: Fence, text: str | None = None) -> list[Command]:
    """Return the commands of a fence, or of another text in its place.

    Raises
    ------
    AssertionError
        A line begins with something that is no program known here.
    """
    where = f"{fence.page}:{fence.line}"
    lines = re.sub(r"\\\n\s*", " ", fence.text if text is None else text).splitlines()
    if any(line.startswith("$ ") for line in lines):  # the other lines are what it prints
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    text = "\n".join(lines)
    while loop := _LOOP.search(text):
        name, values, body = loop.groups()
        body = "\n".join(step.strip() for step in re.split(r"[;\n]", body) if step.strip())
        turns = [re.sub(rf"\$({name}\b|{{{name}}})", value, body) for value in values.split()]
        text = text[: loop.start()] + "\n".join(turns) + text[loop.end() :]
    variables: dict[str, str] = {}
    found = []
    for line in text.splitlines():
        for name, value in variables.items():
            line = re.sub(rf"\$({name}\b|{{{name}}})", lambda _, value=value: value, line)
        words = _words(line)
        environment = {}
        while words and (assignment := _ASSIGNMENT.match(words[0])):
            environment[assignment[1]] = words.pop(0)[assignment.end() :]
        if not words:
            variables |= environment
            continue
        assert words[0] in PROGRAMS, f"{where}: '{words[0]}' is no program that tests/docs/fences.py knows: {line}"
        found.append(Command(where, line.strip(), words, environment))
    return found


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="<>|&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words = []
    for word in lexer:
        if word[0] in "<>|&":
            break
        words.append(word)
    return words
