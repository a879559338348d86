"""Rewrites the two things in a .cu file that no header can stand in for, launches and shared memory, as plain C++.

Usage: to_cpp.py kernel.cu kernel.cpp
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def declared_names(declaration: str) -> list[str]:
    """``int64_t a, b[n<4>]`` declares a and b."""
    bare, before = declaration, ""
    while bare != before:
        before, bare = bare, re.sub(r"<[^<>]*>|\[[^\[\]]*\]|\([^()]*\)", "", bare)
    return re.findall(r"(\w+)\s*(?:,|$)", bare)


def shared_variables(match: re.Match[str]) -> str:
    """A reference to each variable's place in the running block's memory; its type is that of a struct's member."""
    declaration = match[1]
    tag = f"Shared{match.start()}"
    references = "".join(
        f" auto& {name} = ::cuda_emulator::shared_variable<{tag}, decltype({tag}::{name}), {i}>();"
        for i, name in enumerate(declared_names(declaration))
    )
    return f"struct {tag} {{ {declaration}; }};{references}"


def to_cpp(text: str) -> str:
    """Keeps every line on its line, so that errors name the places of the .cu file."""
    text = re.sub(r"<<<([^;]*?)>>>", r" % ::cuda_emulator::Launch(\1)", text)
    text = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\w+\)\s+)?([^;]*?)\s*(\w+)\[\];",
        r"\1* \2 = static_cast<\1*>(::cuda_emulator::dynamic_shared());",
        text,
    )
    return re.sub(r"__shared__\s+([^;]*);", shared_variables, text)


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.write_text(f'#line 1 "{source.as_posix()}"\n{to_cpp(source.read_text())}')
