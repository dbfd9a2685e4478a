"""Damage that disks, editors and people do to files, drawn from a seeded generator."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCALARS = ("null", "true", '"x"', "-1", "1e999", "NaN", "1" + "0" * 30, "[]", "{}", "0", "[" * 5000, "1" * 5000)
NASTY = (None, True, "x", -1, 10**30, float("nan"), float("inf"), [], {}, 0, [[]], {"": 1}, (1, 2), b"x")


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.randrange(1, 200))


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut_out(content: bytes, draw: random.Random) -> bytes:
    start, end = _span(content, draw)
    return content[:start] + content[end:]


def repeat(content: bytes, draw: random.Random) -> bytes:
    start, end = _span(content, draw)
    return content[:end] + content[start:]


def insert(content: bytes, draw: random.Random) -> bytes:
    start, _ = _span(content, draw)
    dirt = draw.choice(
        [b"\xff\xfe", b"\x00" * 20, b"\n", b"\r\n", b"{", b"[" * 100_000, b"x" * 1_000_000, "\u2028".encode()]
    )
    return content[:start] + dirt + content[start:]


def drop_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def retype(content: bytes, draw: random.Random) -> bytes:
    """Another value for a number, a text or a word of a text format."""
    tokens = list(re.finditer(rb'"[^"\n]*"|-?[\d.]+(?:e-?\d+)?|true|false|null', content))
    if not tokens:
        return b""
    token = draw.choice(tokens)
    return content[: token.start()] + draw.choice(SCALARS).encode() + content[token.end() :]


def empty(content: bytes, draw: random.Random) -> bytes:
    return b""


CONTENT: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncate, flip, cut_out, repeat, insert, drop_line, retype, retype, retype, empty,
)  # fmt: skip


def replace_by_other(file: Path, kind: str) -> None:
    """Put something else in place of a file."""
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "device":
        file.symlink_to("/dev/zero")


OTHERS = ("folder", "fifo", "loop", "device", "missing")


def damage(file: Path, draw: random.Random) -> str:
    """Damage ``file``; returns what was done."""
    if draw.random() < 0.1:
        kind = draw.choice(OTHERS)
        replace_by_other(file, kind)
        return kind
    how = draw.choice(CONTENT)
    file.write_bytes(how(file.read_bytes(), draw))
    return how.__name__


def change_leaf(tree: Any, draw: random.Random) -> str:
    """Put a wrong value or nothing in a random place of nested dicts and lists; returns the place."""
    place = ""
    while True:
        key = draw.choice(list(tree) if isinstance(tree, dict) else list(range(len(tree))))
        place += f"[{key!r}]"
        child = tree[key]
        if isinstance(child, (dict, list)) and len(child) and draw.random() < 0.85:
            tree = child
            continue
        if isinstance(tree, dict) and draw.random() < 0.2:
            del tree[key]
            return f"del {place}"
        tree[key] = draw.choice(NASTY)
        return f"{place} = {tree[key]!r}"
