"""Second and higher derivatives by differentiating the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def reference_double_backward(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    grad_grads: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Vector-Jacobian product of ``(inputs, grad_outputs) -> grad_inputs``, the backward of ``function``.

    Args:
        function: the differentiable PyTorch formula, ``function(*inputs) -> outputs``.
        inputs: what it was called with; ``None`` entries are passed on and get no gradient.
        grad_outputs: the first backward's incoming gradients, one per output, ``None`` where there was none.
        grad_grads: gradients of the loss with respect to each ``grad_input``, one per input.

    Returns:
        Gradients with respect to ``inputs`` and with respect to ``grad_outputs``. If gradients are enabled they are
        themselves differentiable, so that any order follows.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [_leaf(x, keep) for x in inputs]
        incoming = [_leaf(g, keep) for g in grad_outputs]
        outputs = function(*leaves)
        live = [(o, g) for o, g in zip(outputs, incoming, strict=True) if g is not None and o.requires_grad]
        wanted = [x for x, gg in zip(leaves, grad_grads, strict=True) if x is not None and gg is not None]
        nones: tuple[list[Tensor | None], list[Tensor | None]] = ([None] * len(inputs), [None] * len(grad_outputs))
        if not live or not wanted:
            return nones
        first = torch.autograd.grad(
            [o for o, _ in live], wanted, [g for _, g in live], create_graph=True, allow_unused=True
        )
        cotangents = [gg for x, gg in zip(leaves, grad_grads, strict=True) if x is not None and gg is not None]
        pairs = [(f, c) for f, c in zip(first, cotangents, strict=True) if f is not None and f.requires_grad]
        if not pairs:
            return nones
        targets = [t for t in (*leaves, *incoming) if t is not None]
        second = iter(
            torch.autograd.grad(
                [f for f, _ in pairs], targets, [c for _, c in pairs], create_graph=keep, allow_unused=True
            )
        )
        return (
            [None if x is None else next(second) for x in leaves],
            [None if g is None else next(second) for g in incoming],
        )


def reference_backward(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)``, themselves differentiable if gradients are enabled.

    For the derivative of a native backward that is written as a PyTorch formula of its own; ``None`` stands for what is
    not there, as in :func:`reference_double_backward`.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [_leaf(x, keep) for x in inputs]
        outputs = function(*leaves)
        live = [
            (o, g)
            for o, g in zip(outputs, grad_outputs, strict=True)
            if o is not None and g is not None and o.requires_grad
        ]
        if not live:
            return [None] * len(inputs)
        targets = [x for x in leaves if x is not None]
        gradients = iter(
            torch.autograd.grad(
                [o for o, _ in live], targets, [g for _, g in live], create_graph=keep, allow_unused=True
            )
        )
        return [None if x is None else next(gradients) for x in leaves]


def _leaf(x: Tensor | None, keep: bool) -> Tensor | None:
    """``x`` as an input to differentiate by.

    Without a higher order to come (``keep``), every tensor is a fresh leaf: a view made while gradients were off claims
    to require them, yet the graph does not lead through it. With one, it is an alias: an incoming gradient may itself
    depend on an input, and that path is not a part of the function's derivative.
    """
    return x if x is None else x.view_as(x) if keep and x.requires_grad else x.detach().requires_grad_()


def gradients_wanted(ctx: Any) -> list[bool]:
    """Which gradients the running backward pass uses, one for each argument of the forward.

    ``ctx.needs_input_grad`` says which inputs require one. ``torch.autograd.grad`` often asks for less: R1 wants the
    derivative by the image and none by the weights, which would double the cost of a convolution's backward.
    """
    needed = list(ctx.needs_input_grad)
    asks = getattr(torch._C, "_will_engine_execute_node", None)
    if torch.compiler.is_compiling() or asks is None:
        return needed
    nodes = iter([node for node, _ in ctx.next_functions if node is not None])  # of the inputs that require a gradient

    def wanted(node: Any) -> bool:
        try:
            return asks(node)
        except RuntimeError:  # a leaf that is asked for by name, or no pass of the engine's
            return True

    return [need and wanted(next(nodes)) for need in needed]
