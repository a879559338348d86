"""The Triton kernels of fastvfx.mlp without a GPU: run by Triton's interpreter, and compiled ahead for GPUs.

Oracle: fastvfx.reference.mlp in float64; the same-dtype formula is the reference too. The interpreter has to be chosen
before Triton is imported, so one child process (this file as a script) runs all cases and hands its results back.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import NamedTuple

import interpreted
import pytest
import torch
from oracle import assert_as_good_as_torch
from torch import Tensor

from fastvfx._ops.mlp import ACTIVATION, why_no_gpu_kernel
from fastvfx.reference import mlp as reference

pytest.importorskip("triton")


class Case(NamedTuple):
    widths: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    activation: str = "relu"
    output_activation: str = "none"
    bias: bool = False
    n: int = 150
    x_dtype: torch.dtype | None = None


CASES = {
    "32-64-16": Case((32, 64, 16)),
    "float16": Case((32, 64, 64, 3), torch.float16, "relu", "sigmoid", True),
    "odd": Case((3, 27, 31, 5), torch.float32, "relu", "none", True, 129),
    "no-hidden": Case((31, 7), bias=True),
    "4-hidden": Case((16, 16, 16, 16, 16, 16)),
    "wide": Case((32, 128, 128, 16), torch.float16, n=70),
    "float16-points": Case((32, 64, 3), x_dtype=torch.float16),
    "one-point": Case((5, 16, 2), n=1),
    **{f"hidden-{kind}": Case((5, 20, 16), activation=kind, bias=True) for kind in ACTIVATION},
    **{f"output-{kind}": Case((5, 20, 16), output_activation=kind, bias=True) for kind in ACTIVATION},
}


def arguments(case: Case) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    weights = [draw(b, a, scale=a**-0.5).to(case.dtype) for a, b in pairwise(case.widths)]
    biases = [draw(b, scale=0.3).to(case.dtype) for b in case.widths[1:]] if case.bias else []
    x_dtype = case.x_dtype or case.dtype
    return draw(case.n, case.widths[0]).to(x_dtype), weights, biases, draw(case.n, case.widths[-1]).to(x_dtype)


def computed() -> dict[str, list[Tensor]]:
    """y, grad_x and the flat gradient of the parameters of every case, by the interpreter."""
    from fastvfx._triton import mlp as kernels

    results = {}
    for name, case in CASES.items():
        x, weights, biases, grad_y = arguments(case)
        codes = ACTIVATION[case.activation], ACTIVATION[case.output_activation]
        y, grad_x = torch.full_like(grad_y, torch.nan), torch.full_like(x, torch.nan)
        flat = torch.full((sum(p.numel() for p in (*weights, *biases)),), torch.nan, dtype=case.dtype)
        kernels.forward(x, y, weights, biases, *codes)
        kernels.backward(x, y, grad_y, weights, biases, *codes, grad_x, flat, 2)
        results[name] = [y, grad_x, flat]
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[Tensor]]:
    return interpreted.results_of(__file__, tmp_path_factory.mktemp("interpreted"))


def formula(case: Case, dtype: torch.dtype | None) -> list[Tensor]:
    """What the interpreter returns, by the reference in ``dtype`` (``None``: as the case says)."""
    x, weights, biases, grad_y = arguments(case)
    leaves = [(t if dtype is None else t.to(dtype)).requires_grad_() for t in (x, *weights, *biases)]
    n = len(weights)
    y = reference(leaves[0], leaves[1 : 1 + n], leaves[1 + n :], case.activation, case.output_activation)
    grad_x, *grads = torch.autograd.grad(y, leaves, grad_y.to(y.dtype))
    order = [g for layer in range(n) for g in (grads[layer], *grads[n + layer : n + layer + 1])]
    return [y, grad_x, torch.cat([g.flatten() for g in order])]


@pytest.mark.parametrize("name", list(CASES))
def test_interpreter_agrees_with_float64(name, results):
    same, exact = formula(CASES[name], None), formula(CASES[name], torch.float64)
    for what, g, s, e in zip(("y", "grad_x", "grad_params"), results[name], same, exact, strict=True):
        assert_as_good_as_torch(g, s, e, what, floor=2.0)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["fwd", "bwd"])
def test_compiles_without_a_gpu(kernel, capability):
    """A network of the usual size, in float16, with its sums in registers, on tensor cores."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastvfx._triton import mlp as kernels

    weights = [torch.zeros(b, a, dtype=torch.float16) for a, b in pairwise((32, 64, 64, 16))]
    net = kernels.Network(32, weights, ACTIVATION["relu"], ACTIVATION["none"], False)
    floats = {"grad_w", "grad_b", "b"}
    integers = {"n", "n_weights", "n_biases"}
    constants = dict(net.constants)
    if kernel == "fwd":
        function, constants["block"] = kernels.fwd_kernel, net.fwd_block
    else:
        function = kernels.bwd_kernel
        constants |= {"block": net.bwd_block, "in_registers": net.in_registers}
        constants |= {"x_gradient": True, "params_gradient": True}
        assert net.in_registers
    pointers = [n for n in function.arg_names if n not in constants and n not in integers]
    signature = {n: "*fp32" if n in floats else "*fp16" for n in pointers}
    signature |= dict.fromkeys(integers, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        function,
        {n: signature[n] for n in function.arg_names},
        constants,
        {(i,): [["tt.divisibility", 16]] for i, n in enumerate(function.arg_names) if n in pointers},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": net.warps, "num_stages": 1}
    )
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= 80 * 1024
    tensor_core = "wgmma" if capability == 90 else "mma.sync"
    assert tensor_core in compiled.asm["ptx"]


@pytest.mark.parametrize(
    "widths, dtype, reason",
    [
        ([32, 64, 16], torch.float64, "no float64"),
        ([32, 256, 16], torch.float16, "widths up to 128 in this dtype, not 256"),
        ([32, 128, 16], torch.float32, "widths up to 64 in this dtype, not 128"),
    ],
    ids=["float64", "wide", "wide-float32"],
)
def test_says_what_the_gpu_kernel_does_not_take(widths, dtype, reason):
    assert reason in str(why_no_gpu_kernel(widths, {dtype}))
    assert why_no_gpu_kernel([32, 64, 16], {torch.float32}) is None


if __name__ == "__main__":
    torch.save(computed(), sys.argv[1])
