"""Triton kernels compiled for GPUs that are not here: what a launch would compile, and what became of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor


class Compiled(NamedTuple):
    registers: int
    stack: int  #: bytes of local memory of a thread: what registers did not hold
    shared: int
    ptx: str
    spilled: int  #: instructions that reach for this memory in loops around tensor cores


class Recorder:
    """Stands in for a kernel: keeps the arguments of its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **constants: Any) -> None:
            self.launches.append((args, constants))

        return launch

    def compiled(self, capability: int, launch: int = 0) -> Compiled:
        return _compiled(self.kernel, *self.launches[launch], capability)


def _compiled(kernel: Any, args: tuple[Any, ...], given: dict[str, Any], capability: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants: dict[Any, Any] = {n: x for n, x in given.items() if n in kernel.arg_names}
    options = {n: x for n, x in given.items() if n not in kernel.arg_names}
    aligned: dict[tuple[int, ...], Any] = {}

    def kind(x: Any, path: tuple[int, ...], specialized: bool) -> Any:
        """Type of an argument as a launch would find it; notes what is compiled in, and what 16 divides."""
        if x is None or (isinstance(x, int) and x == 1 and specialized):
            constants[path] = x
            return "constexpr"
        if isinstance(x, tuple):  # numbers in it are looked at, whatever the kernel says of the tuple
            parts = [kind(y, (*path, i), True) for i, y in enumerate(x)]
            return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
        if isinstance(x, Tensor) or (isinstance(x, int) and specialized and x % 16 == 0):
            aligned[path] = [["tt.divisibility", 16]]
        if isinstance(x, Tensor):
            name = str(x.dtype).removeprefix("torch.")
            short = re.sub("^(b?)float", r"\1fp", name).replace("bfp", "bf")
            return "*" + short.replace("uint", "u").replace("int", "i")
        return "fp32" if isinstance(x, float) else "i32" if abs(x) < 2**31 else "i64"

    plain = set(kernel.do_not_specialize or ())
    signature = {n: kind(x, (i,), n not in plain) for i, (n, x) in enumerate(zip(kernel.arg_names, args, strict=False))}
    signature |= {n: "constexpr" for n in kernel.arg_names if n not in signature}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )
    cubin = compiled.asm["cubin"]
    usage = _tool(cubin, "cuobjdump", "-res-usage")
    found = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK")}  # type: ignore[index]
    return Compiled(found["REG"], found["STACK"], compiled.metadata.shared, compiled.asm["ptx"], _spilled(cubin))


def _spilled(cubin: bytes) -> int:
    """In the innermost loops: from a label to the branch back to it, with no other such branch between."""
    lines = _tool(cubin, "nvdisasm", "-c").splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*(\.L_x_\d+):", line))}
    spilled, last = 0, 0
    for i, line in enumerate(lines):
        branch = re.search(r"\bBRA\b.*?(\.L_x_\d+)", line)
        start = labels.get(branch[1], i) if branch else i
        if start < i:
            loop = "\n".join(lines[start:i])
            if start >= last and re.search(r"\bH(G?)MMA\b", loop):
                spilled += len(re.findall(r"\b(?:LDL|STL)\b", loop))
            last = i
    return spilled


def _tool(cubin: bytes, name: str, option: str) -> str:
    """What one of the tools that Triton brings says."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
