"""The Triton kernels of modulated convolutions without a GPU: run by Triton's interpreter, and compiled ahead for GPUs.

Oracle: torch's convolutions in float64, with the scales around them; the same dtype's error is theirs in that dtype.
The interpreter has to be chosen before Triton is imported, so one child process (this file as a script) runs all cases.
It multiplies the bits of bfloat16 operands as integers, so they are only compiled.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import interpreted
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_as_good_as_torch
from torch import Tensor

from fastvfx._ops._torch_conv2d import Geometry
from fastvfx._ops.bias_act import ACTIVATION
from fastvfx._ops.conv2d import why_no_gpu_kernel
from fastvfx.reference.bias_act import scaled_bias_act

pytest.importorskip("triton")


class Case(NamedTuple):
    k: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    transposed: bool = False
    dtype: torch.dtype = torch.float32
    scaled: bool = True
    act: str = "linear"
    clamp: float | None = None
    channels: tuple[int, int] = (19, 21)
    size: tuple[int, int] = (7, 6)
    n: int = 2
    one_noise: bool = False


CASES = {
    "plain": Case(padding=(1, 1)),
    "to-rgb": Case((1, 1), channels=(33, 3)),
    "5x3": Case((5, 3), padding=(2, 1), size=(9, 8)),
    "stride": Case(stride=2, padding=(1, 0), size=(9, 8)),
    "stride-3": Case((2, 5), 3, (0, 2), size=(8, 9)),
    "up": Case(stride=2, transposed=True),
    "up-3": Case((2, 4), 3, transposed=True, size=(4, 5)),
    "up-1x1": Case((1, 1), 2, transposed=True, size=(4, 5)),
    "up-by-1": Case(transposed=True),
    "float16": Case(padding=(1, 1), dtype=torch.float16),
    "float16-up": Case(stride=2, transposed=True, dtype=torch.float16),
    "no-factors": Case(padding=(1, 1), scaled=False),
    "one-pixel": Case(padding=(1, 1), size=(1, 1), n=1),
    "many-tiles": Case(padding=(1, 1), size=(13, 12), channels=(70, 150), n=1),
    "one-noise": Case(padding=(1, 1), one_noise=True),
    **{f"{act}": Case((1, 1), act=act, clamp=0.7, size=(5, 3)) for act in ACTIVATION},
}


class Arguments(NamedTuple):
    x: Tensor
    w: Tensor  #: as torch's convolutions take it
    g: Tensor
    s: Tensor
    scale: Tensor
    noise: Tensor
    bias: Tensor


def arguments(case: Case) -> Arguments:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    channels, out = case.channels
    x = draw(case.n, channels, *case.size).to(case.dtype).contiguous(memory_format=torch.channels_last)
    shape = (channels, out) if case.transposed else (out, channels)
    w = (draw(*shape, *case.k) / (channels * case.k[0] * case.k[1]) ** 0.5).to(case.dtype)
    y = convolved(x.float(), w.float(), case)
    g = draw(*y.shape).to(case.dtype).contiguous(memory_format=torch.channels_last)
    noise = draw(1 if case.one_noise else case.n, 1, *y.shape[2:])
    return Arguments(x, w, g, draw(case.n, channels), draw(case.n, out), noise, draw(out))


def convolved(x: Tensor, w: Tensor, case: Case) -> Tensor:
    if case.transposed:
        return F.conv_transpose2d(x, w, stride=case.stride)
    return F.conv2d(x, w, stride=case.stride, padding=case.padding)


def computed() -> dict[str, list[Tensor]]:
    """y, the finished y, grad_x and grad_w of every case, by the interpreter."""
    from fastvfx._triton import conv2d as kernels

    results = {}
    for name, case in CASES.items():
        x, w, g, s, scale, noise, bias = arguments(case)
        factor = s if case.scaled else None
        geometry = case.stride, case.padding
        ours = w.permute((2, 3, 0, 1) if case.transposed else (2, 3, 1, 0)).contiguous()
        plain, finished = torch.full_like(g, torch.nan), torch.full_like(g, torch.nan)
        kernels.conv(x, factor, ours, plain, *geometry, case.transposed, kernels.Epilogue())
        epilogue = kernels.Epilogue(scale, noise, bias, ACTIVATION[case.act], 0.2, 1.5, case.clamp)
        kernels.conv(x, factor, ours, finished, *geometry, case.transposed, epilogue)
        grad_x = torch.full_like(x, torch.nan)
        kernels.conv(
            g, None, ours.transpose(2, 3).contiguous(), grad_x, *geometry, not case.transposed, kernels.Epilogue()
        )
        small, large, scales = (x, g, (factor, None)) if case.transposed else (g, x, (None, factor))
        grad_w = kernels.wgrad(small, large, *scales, case.k, *geometry, 20)
        results[name] = [plain, finished, grad_x, grad_w.permute(3, 2, 0, 1)]
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[Tensor]]:
    return interpreted.results_of(__file__, tmp_path_factory.mktemp("interpreted"))


def formula(case: Case, dtype: torch.dtype) -> list[Tensor]:
    x, w, g, s, scale, noise, bias = (t.to(dtype) for t in arguments(case))
    leaves = x.requires_grad_(), w.requires_grad_()
    y = convolved(x * s[:, :, None, None] if case.scaled else x, w, case)
    finished = scaled_bias_act(y, scale, noise, bias, case.act, 0.2, 1.5, case.clamp)
    grad_w = torch.autograd.grad(y, leaves[1], g)[0]
    (grad_x,) = torch.autograd.grad(convolved(x, w, case), x, g)
    return [y, finished, grad_x, grad_w]


@pytest.mark.parametrize("name", list(CASES))
def test_interpreter_agrees_with_float64(name, results):
    case = CASES[name]
    same, exact = formula(case, case.dtype), formula(case, torch.float64)
    for what, g, s, e in zip(("y", "finished", "grad_x", "grad_w"), results[name], same, exact, strict=True):
        if what == "grad_w":
            g = g.to(case.dtype)  # sums of products in 16 bits are kept in float32
        assert_as_good_as_torch(g, s, e, what, floor=3.0)


TILES = [("conv", 512, 512), ("conv", 64, 3), ("wgrad", 512, 512)]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize(("kernel", "channels", "out"), TILES, ids=lambda v: str(v))
def test_compiles_without_a_gpu(kernel, channels, out, capability, dtype, tmp_path):
    """A layer of the usual size on tensor cores, its sums in registers and its tiles within shared memory."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastvfx._triton import conv2d as kernels

    n_bytes = 4 if dtype == "fp32" else 2
    constants = {"kw": 3, "stride": 2, "pad_y": 1, "pad_x": 1, "precision": "tf32"}
    constants["dtype"] = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}[dtype]
    if kernel == "conv":
        function = kernels.conv_kernel
        tile = kernels.blocks_of(64 * 64, channels, out, n_bytes)
        constants |= {"kh": 3, "transposed": True, "act": ACTIVATION["lrelu"], "clamped": True}
        floats, singles = {"s", "scale", "noise", "bias"}, {"alpha", "gain", "clamp"}
    else:
        function, tile = kernels.wgrad_kernel, kernels.wgrad_blocks_of(channels, out, n_bytes)
        constants |= {"taps": 9, "small_scale": None}
        floats, singles = {"out", "large_scale"}, set()
    launch = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    constants |= tile
    images = {"x", "w", "y", "small", "large"}
    kinds = dict.fromkeys(images, f"*{dtype}") | dict.fromkeys(floats, "*fp32") | dict.fromkeys(singles, "fp32")
    names = function.arg_names
    signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if signature[n].startswith("*") or (signature[n] == "i32" and "channels" in n and min(channels, out) >= 16)
    }
    source = ASTSource(function, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    assert compiled.metadata.shared <= 99 * 1024  # the smallest of the three
    tensor_core = "wgmma" if capability == 90 else "mma.sync"
    assert tensor_core in compiled.asm["ptx"]
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = cuobjdump(path)
    assert int(re.search(r"REG:(\d+)", usage)[1]) <= 255
    assert int(re.search(r"STACK:(\d+)", usage)[1]) <= 64, f"spills: {usage}"


def cuobjdump(path: Path) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout


def test_says_what_the_gpu_kernel_does_not_take():
    x = torch.empty(1, 4, 8, 8)
    assert why_no_gpu_kernel(x, Geometry()) is None
    assert "no float64" in str(why_no_gpu_kernel(x.double(), Geometry()))
    assert "no groups" in str(why_no_gpu_kernel(x, Geometry(groups=2)))
    large = torch.empty(1, 1 << 11, 1 << 10, 1 << 10, device="meta")
    assert "2^31" in str(why_no_gpu_kernel(large, Geometry()))


if __name__ == "__main__":
    torch.save(computed(), sys.argv[1])
