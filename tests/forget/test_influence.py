"""The removal step against leaving out and training again, where that is exact to second order."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from llm_unlearn.forget.methods.influence import gauss_newton, mean_diagonal, solve

CLASSES, WIDTH, RIDGE = 3, 4, 0.5


def _data(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def _optimum(x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Logistic regression with a ridge, by Newton's method on the exact Hessian."""

    def objective(w: Tensor) -> Tensor:
        return cross_entropy(x @ w.T, y, reduction="sum") + RIDGE / 2 * w.square().sum()

    w = start.clone()
    for _ in range(20):
        gradient = jacobian(objective, w).flatten()  # type: ignore[no-untyped-call]
        curved = hessian(objective, w).reshape(w.numel(), w.numel())  # type: ignore[no-untyped-call]
        w = w - torch.linalg.solve(curved, gradient).reshape(w.shape)
    return w


def _removed(w: Tensor, x: Tensor, y: Tensor, gone: slice) -> Tensor:
    """The step of the package: gradient of what goes, curvature of what stays, ridge as damping."""
    kept = torch.ones(len(x), dtype=torch.bool)
    kept[gone] = False
    w = w.clone().requires_grad_(True)
    loss = cross_entropy(x[gone] @ w.T, y[gone], reduction="sum")
    (right,) = torch.autograd.grad(loss, w)
    batches = [lambda part=part: x[kept][part] @ w.T for part in (slice(None, 40), slice(40, None))]
    step, residual, _ = solve(
        lambda v: [gauss_newton(batches, [w], v)[0] + RIDGE * v[0]], [right], 60, 1e-10
    )
    assert residual < 1e-9
    return w.detach() + step[0]


def test_the_step_equals_retraining_to_second_order() -> None:
    x, y = _data(200)
    x, y = torch.cat([x[:1].repeat(7, 1), x]), torch.cat([y[:1].repeat(7), y])  # eight of one kind
    w = _optimum(x, y, torch.zeros(CLASSES, WIDTH, dtype=torch.float64))
    left = []
    for count in (1, 2, 4, 8):
        again = _optimum(x[count:], y[count:], w)
        step = _removed(w, x, y, slice(0, count))
        left.append(float((again - step).norm()))
        # one Newton step explains nearly all of what training again changes
        assert left[-1] < 0.1 * float((again - w).norm())
    # twice as many removed, four times the error
    for fewer, more in itertools.pairwise(left):
        assert 3 < more / fewer < 6, left


def test_products_equal_the_explicit_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5)
    ).double()
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    names = [n for n, _ in net.named_parameters()]
    parameters = [p for _, p in net.named_parameters()]
    vector = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def logits(*values: Tensor) -> Tensor:
        out: Tensor = functional_call(net, dict(zip(names, values, strict=True)), (x,))
        return out

    slopes = torch.cat(
        [
            j.reshape(x.shape[0], 5, -1)
            for j in jacobian(logits, tuple(parameters))  # type: ignore[no-untyped-call]
        ],
        dim=-1,
    )
    p = logits(*parameters).softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    whole = torch.einsum("nia,nij,njb->ab", slopes, middle, slopes)
    expected = whole @ torch.cat([v.flatten() for v in vector])
    found = gauss_newton([lambda: net(x[:2]), lambda: net(x[2:])], parameters, vector)
    torch.testing.assert_close(torch.cat([f.flatten() for f in found]), expected)
    estimate = mean_diagonal(
        lambda v: gauss_newton([lambda: net(x)], parameters, v), parameters, 400, b"s"
    )
    exact = float(whole.detach().trace()) / len(whole)
    assert abs(estimate - exact) < 0.15 * exact


def test_a_parameter_that_nothing_depends_on_has_no_curvature() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    found = gauss_newton([lambda: (used * 2)[None]], [used, unused], [torch.ones(2), torch.ones(3)])
    assert found[1].tolist() == [0.0, 0.0, 0.0]


def test_conjugate_gradients_stop_and_say_how_far_they_came() -> None:
    matrix = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    right = [torch.ones(3, dtype=torch.float64)]
    exact, residual, done = solve(lambda v: [matrix @ v[0]], right, 10, 1e-6)
    torch.testing.assert_close(exact[0], torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64))
    assert done == 3
    _, coarse, one = solve(lambda v: [matrix @ v[0]], right, 1, 1e-6)
    assert (one, coarse > residual) == (1, True)
