"""The steps of a Llama-like layer with LoRA maps and their derivatives, by hand.

`lora`, `norm`, `gate`, `attention` and `loss` are used like functions of tensors. Attention is three plain
products, quicker on a CPU than the fused kernel for short documents.

Guarantees: gradients equal plain autograd's up to rounding (tested through `lean`); frozen weights get
none.

Shapes: N rows, B documents, T the longest, H heads in KV groups of G, D numbers a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_HEAD_ROWS = 256  # rows of the vocabulary at a time: bounds memory, fixed for the bits


@dataclass(frozen=True)
class Packed:
    """A batch: its rows, where each stands in a padded (B, T) grid, and what is predicted from which.

    `grid` (B, T) names the row at each place (row 0 in the padding, which nothing attends to),
    `place` (N,) the first place of each row in the flattened grid; the first `shared` rows stand in
    every document. `hidden` (N, width) enters the first layer that trains. `sources` (n,) are the rows that
    predict `targets` (n,); `parents` counts them from 0 among `kept` (m,), the rows that predict at all.
    """

    grid: Tensor
    place: Tensor
    shared: int
    hidden: Tensor
    cosine: Tensor
    sine: Tensor
    kept: Tensor
    parents: Tensor
    targets: Tensor
    tokens: int


class _Lora(torch.autograd.Function):
    """y_i = x W_i' + b_i + s (x A_i') B_i' for maps that share their input x (N, in).

    With g_i the gradient of y_i: h_i = s g_i B_i; dB_i = s g_i' (x A_i'); dA_i = h_i' x;
    dx = sum of g_i W_i + h_i A_i. W and b are frozen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, *given: Any) -> tuple[Tensor, ...]:
        weights, biases = given[0::4], given[1::4]
        down = torch.cat(given[2::4]).to(x.dtype)  # (sum of ranks, in)
        ups = [b.to(x.dtype) for b in given[3::4]]  # (out, rank)
        inner = x @ down.T  # (N, sum of ranks)
        rank = ups[0].shape[1]
        out = []
        for i, (weight, bias, up) in enumerate(zip(weights, biases, ups, strict=True)):
            y = nn.functional.linear(x, weight, bias)
            out.append(y.addmm_(inner[:, i * rank : (i + 1) * rank], up.T, alpha=scale))
        ctx.scale = scale
        ctx.trains = ctx.needs_input_grad[4]  # of a layer's A all or none
        ctx.save_for_backward(x, inner, down, *weights, *ups)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, inner, down, *rest = ctx.saved_tensors
        count = len(gradients)
        weights, ups = rest[:count], rest[count:]
        rank = ups[0].shape[1]
        passed = torch.cat([g @ up for g, up in zip(gradients, ups, strict=True)], 1)
        passed.mul_(ctx.scale)  # (N, sum of ranks)
        d_down = (passed.T @ x).float() if ctx.trains else None
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = gradients[0] @ weights[0]
            for g, weight in zip(gradients[1:], weights[1:], strict=True):
                d_x.addmm_(g, weight)
            d_x.addmm_(passed, down)
        out: list[Tensor | None] = []
        for i, g in enumerate(gradients):
            part = slice(i * rank, (i + 1) * rank)
            if d_down is None:
                out += [None] * 4
                continue
            d_up = (g.T @ inner[:, part]).float().mul_(ctx.scale)
            out += [None, None, d_down[part], d_up]
        return d_x, None, *out


class _Norm(torch.autograd.Function):
    """RMS norm, y = w x r with r = 1 / sqrt(mean x^2 + e), in float32; w is frozen.

    dx = r (g w - n mean(g w n)) with n = x r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        r = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (wide * r).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, r = ctx.saved_tensors
        n = x.float() * r
        g = (gradient * weight).float()
        inner = (g * n).mean(-1, keepdim=True)
        return g.sub_(n.mul_(inner)).mul_(r).to(x.dtype), None, None


class _Gate(torch.autograd.Function):
    """y = silu(a) u with silu(a) = a s(a), s the logistic function.

    du = g silu(a); da = g u s(a) (1 + a (1 - s(a))).
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        d_up = nn.functional.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), d_up


class _Attention(torch.autograd.Function):
    """Rotary positions and causal attention of each document on itself; rows in, rows out.

    With P = softmax(c q k'), o = P v and g the gradient of o: dv = P' g;
    ds = P (g v' - sum(g o)); dq = c ds k; dk = c ds' q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Packed,
        key_heads: int,
        groups: int,
        scale: float,
    ) -> Tensor:
        count, width = batch.grid.shape
        size = k.shape[1] // key_heads

        def spread(rows: Tensor, inner: int) -> Tensor:
            """Rows (N, KV G D) to (B KV, G T, D)."""
            grid = rows.reshape(len(rows), -1).index_select(0, batch.grid.flatten())
            grid = grid.view(count, width, key_heads, inner, size).permute(0, 2, 3, 1, 4)
            return grid.reshape(count * key_heads, inner * width, size)

        q_grid = spread(_turn(q.view(len(q), -1, size), batch.cosine, batch.sine), groups)
        k_grid = spread(_turn(k.view(len(k), -1, size), batch.cosine, batch.sine), 1)
        v_grid = spread(v, 1)
        scores = torch.bmm(q_grid, k_grid.transpose(1, 2)).float().mul_(scale)
        later = torch.ones((width, width), dtype=torch.bool, device=q.device).triu_(1)
        scores.view(-1, groups, width, width).masked_fill_(later, float("-inf"))
        weights = torch.softmax(scores, -1).to(q.dtype)  # (B KV, G T, T)
        out = torch.bmm(weights, v_grid)  # (B KV, G T, D)
        ctx.batch, ctx.sizes, ctx.scale = batch, (key_heads, groups, size), scale
        ctx.save_for_backward(q_grid, k_grid, v_grid, weights, out)
        grid = out.view(count, key_heads, groups, width, size).permute(0, 3, 1, 2, 4)
        return grid.reshape(count * width, -1).index_select(0, batch.place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        q, k, v, weights, out = ctx.saved_tensors
        batch: Packed = ctx.batch
        key_heads, groups, size = ctx.sizes
        count, width = batch.grid.shape
        grid = gradient.new_zeros((count * width, gradient.shape[1]))
        grid.index_copy_(0, batch.place, gradient)
        g = grid.view(count, width, key_heads, groups, size).permute(0, 2, 3, 1, 4)
        g = g.reshape(count * key_heads, groups * width, size)

        def gather(grid: Tensor, inner: int) -> Tensor:
            """(B KV, G T, D) to rows (N, KV G, D); shared rows sum over the documents."""
            places = grid.view(count, key_heads, inner, width, size).permute(0, 3, 1, 2, 4)
            places = places.reshape(count * width, key_heads * inner, size)
            rows = places.index_select(0, batch.place)
            if batch.shared:
                every = places.view(count, width, key_heads * inner, size)[:, : batch.shared]
                rows[: batch.shared] = every.sum(0)
            return rows

        d_v = gather(torch.bmm(weights.transpose(1, 2), g), 1)
        d_scores = torch.bmm(g, v.transpose(1, 2)).sub_((g * out).sum(-1, keepdim=True))
        d_scores.mul_(weights).mul_(ctx.scale)
        d_q = gather(torch.bmm(d_scores, k), groups)
        d_k = gather(torch.bmm(d_scores.transpose(1, 2), q), 1)
        d_q = _turn_back(d_q, batch.cosine, batch.sine)
        d_k = _turn_back(d_k, batch.cosine, batch.sine)
        return d_q.flatten(1), d_k.flatten(1), d_v.flatten(1), None, None, None, None


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions on (N, heads, D): the halves (a, b) become (a c - b s, b c + a s)."""
    a, b = x.chunk(2, -1)
    return (x * cosine).addcmul_(torch.cat((-b, a), -1), sine)


def _turn_back(g: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The transpose of `_turn`."""
    a, b = (g * sine).chunk(2, -1)
    return (g * cosine).add_(torch.cat((b, -a), -1))


class _Loss(torch.autograd.Function):
    """Mean cross-entropy of rows (n, width) against a vocabulary, its gradient made on the way.

    d loss / d row = (softmax - one-hot) E / n. log-sum-exp = max - log(largest probability).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, vocabulary: Tensor, targets: Tensor) -> Tensor:
        total = rows.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(rows)
        for start in range(0, len(rows), _HEAD_ROWS):
            part = slice(start, start + _HEAD_ROWS)
            logits = rows[part] @ vocabulary.T
            right = targets[part, None]
            p = torch.softmax(logits, -1, dtype=torch.float32)
            log_sum = logits.amax(-1).float() - p.amax(-1).log()
            total += (log_sum - logits.gather(1, right)[:, 0].float()).sum()
            p.scatter_add_(1, right, p.new_full(right.shape, -1.0))
            gradient[part] = p.to(rows.dtype) @ vocabulary
        ctx.save_for_backward(gradient.mul_(1.0 / len(rows)))
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        return rows * gradient.to(rows.dtype), None, None


# torch's own annotation of `apply` says nothing of its arguments
lora: Any = _Lora.apply
norm: Any = _Norm.apply
gate: Any = _Gate.apply
attention: Any = _Attention.apply
loss: Any = _Loss.apply
