"""Many logistic regressions at once, to the optimum: one batched solve instead of a loop over heads and folds.

The problems of a batch share their labels, and the folds of a head share its features, which is what makes it fast:

1. every head is fitted roughly on the pooled folds, in float32, and the inverse Hessian there is computed, once a head;
2. from there every fold goes on by itself, by nonlinear conjugate gradients that the pooled inverse preconditions. A
   step takes two products with the features, in float32. A problem is done when its gradient, computed in float64, is
   small enough; where it is not, the steps go on from that gradient;
3. whatever is left after that (features of odd scale, folds unlike the pool) goes through a damped Newton in float64.
"""

from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import CriterionError

if TYPE_CHECKING:
    from torch import Tensor

GRADIENT_TOLERANCE = 1e-8  # largest gradient entry at the optimum, against that at zero coefficients or 1
POOLED_STEPS = 8  # on the pooled folds, from where each fold goes on by itself
ROUNDS, STEPS = 5, 16
SMALLEST = 1e-30  # instead of 0 in a denominator
DAMPED_STEPS, HALVINGS = 200, 30
NUMBERS_AT_ONCE = 2**19  # features in one solve: 6 MB in both types, which stay in the caches
JITTER = 1e-6  # keeps a float32 Hessian invertible where the intercept's curvature vanishes


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    C: float = 1.0,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Fit every logistic regression of a batch to its optimum.

    Minimises C·Σᵢ weightᵢ·log(1 + exp(−yᵢ(w·xᵢ + b))) + ½|w|², y = ±1: scikit-learn's objective, with an L2 penalty on
    the coefficients and none on the intercept. Features are taken as they are (not standardised), as in the LVLM-LP
    protocol that the SAHs line builds on.

    Args:
        features: [*batch, n, d], any float type; one regression for each index of `batch` (a head, say).
        labels: [n], true or 1 for unsafe; shared by the batch.
        weight: Either [n], or [fold, n] for one regression a fold; at least 0, and 0 leaves a sample out. Default: all
            1.
        C: Inverse strength of the penalty, as in scikit-learn.
        device: Where torch solves it.

    Returns:
        Coefficients [*batch, d] and intercepts [*batch], float64; with folds [*batch, fold, d] and [*batch, fold]. The
        decision value of x is x·coef + intercept, in log-odds, positive for unsafe.

    Raises:
        CriterionError: If a feature is NaN or infinite, a fold trains on one class only, or an optimum is not reached;
            or where torch is not installed.

    Source:
        Agrees with sklearn.linear_model.LogisticRegression(C=C, tol=1e-12) within 1e-4 (tested).
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise CriterionError(
            "Probes are trained with torch, which is not installed here. Leave them out of the criteria, or install "
            "the whole workbench: pip install lvlm-workbench."
        ) from error

    features = np.asarray(features)
    batch = features.shape[:-2]
    weights = np.ones(np.shape(labels)) if weight is None else np.asarray(weight, dtype=np.float64)
    flat = features.reshape(-1, *features.shape[-2:])
    _check(flat, np.asarray(labels), weights)
    sign = torch.as_tensor(np.where(np.asarray(labels).astype(bool), 1.0, -1.0), device=device)
    cost = torch.as_tensor(C * np.atleast_2d(weights), device=device)
    at_once = max(1, NUMBERS_AT_ONCE // (flat.shape[1] * (flat.shape[2] + 1)))
    parts = []
    for start in range(0, len(flat), at_once):
        some = torch.as_tensor(flat[start : start + at_once], device=device)
        # A sample's sign and features only ever appear multiplied: the problem becomes "push every margin up".
        x = sign.new_empty((*some.shape[:2], some.shape[2] + 1))
        torch.mul(some, sign[:, None], out=x[..., :-1])
        x[..., -1] = sign
        parts.append(_solve(x, cost).cpu().numpy())
    theta = np.concatenate(parts).reshape(*batch, *weights.shape[:-1], features.shape[-1] + 1)
    return theta[..., :-1], theta[..., -1]


def _check(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
    n = features.shape[-2:-1]
    if not n or labels.shape != n or weights.shape[-1:] != n or weights.ndim > 2:
        raise CriterionError(
            "A logistic regression needs features [..., n, d], labels [n] and weights [n] or [fold, n]; "
            f"got features {features.shape}, labels {labels.shape}, weights {weights.shape}."
        )
    unsafe = labels.astype(bool)
    if (weights < 0).any() or not (weights[..., unsafe].sum(-1).all() and weights[..., ~unsafe].sum(-1).all()):
        raise CriterionError(
            "A logistic regression was given training samples of one class only, or negative weights. "
            "Every training part needs safe and unsafe prompts."
        )


def _solve(x: "Tensor", cost: "Tensor") -> "Tensor":
    """theta [head, fold, d + 1] for signed features x [head, n, d + 1] and costs [fold, n]."""
    import torch

    heads, folds, width = len(x), len(cost), x.shape[-1]
    penalty = torch.ones(width, dtype=x.dtype, device=x.device)
    penalty[-1] = 0
    largest = torch.linalg.vector_norm(x, torch.inf, (-1, -2))
    if not largest.isfinite().all():
        raise CriterionError(
            "A logistic regression was given features that are NaN or infinite. Fit computed heads only."
        )
    tolerance = GRADIENT_TOLERANCE * (cost.sum(-1) * largest[:, None]).clamp_min(1)  # head, fold
    single, pool, flat = x.float(), cost.float().mean(0, keepdim=True), penalty.float()
    theta, margin = single.new_zeros(heads, 1, width), single.new_zeros(heads, 1, x.shape[1])
    diagonal = torch.diag_embed(1 / (flat + pool[0] @ single.square() / 4))  # of the Hessian at zero, inverted
    enough = tolerance[:, :1, None].float()
    theta = _conjugate(single, pool, flat, diagonal, margin, -pool / 2 @ single, enough, POOLED_STEPS)
    theta = torch.where(torch.isfinite(theta).all(-1, keepdim=True), theta, torch.zeros_like(theta))
    theta, done = _descend(x, single, cost, penalty, theta.to(x.dtype).expand(heads, folds, width), tolerance)
    for head, fold in torch.argwhere(~done).tolist():
        theta[head, fold] = _damped_newton(x[head], cost[fold], penalty, tolerance[head, fold])
    return theta


def _descend(
    x: "Tensor", single: "Tensor", cost: "Tensor", penalty: "Tensor", theta: "Tensor", tolerance: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """Go down from theta [head, fold, d + 1] until every gradient is within tolerance [head, fold], or `ROUNDS`.

    A round computes margins and gradients in float64, and goes on from there in float32 (`single` is x in that) with
    the inverse Hessian amid the folds: what float32 rounds costs rounds, not accuracy.

    Returns:
        theta, and whether each problem is done.
    """
    import torch

    theta, light, flat = theta.clone(), cost.float(), penalty.float()
    done = torch.zeros(theta.shape[:2], dtype=torch.bool, device=x.device)
    open_ = torch.arange(len(x), device=x.device)
    for number in range(ROUNDS + 1):
        at = theta[open_]
        margin = at @ x.transpose(1, 2)
        gradient = penalty * at - (cost * torch.sigmoid(-margin)) @ x
        done[open_] = gradient.abs().amax(-1) <= tolerance[open_]
        going = ~done[open_].all(1)
        if number == ROUNDS or not going.any():
            break
        if not going.all():
            open_, x, single = open_[going], x[going], single[going]
            at, margin, gradient = at[going], margin[going], gradient[going]
        inverse = _inverse_hessian(single, light.mean(0), flat, at.float().mean(1))
        enough = tolerance[open_, :, None].float()
        theta[open_] = at + _conjugate(single, light, flat, inverse, margin.float(), gradient.float(), enough, STEPS)
    return theta, done


def _conjugate(
    x: "Tensor",
    cost: "Tensor",
    penalty: "Tensor",
    inverse: "Tensor",
    margin: "Tensor",
    gradient: "Tensor",
    enough: "Tensor",
    steps: int,
) -> "Tensor":
    """Where to go from these margins [head, fold, n] and gradients, [head, fold, d + 1], by conjugate gradients.

    Nonlinear ones (Polak and Ribiere), preconditioned. The margins are carried along, so a step takes two products with
    x: what the direction does to the margins, and what the changed misses do to the gradient.
    """
    import torch

    turned, path, against = x.transpose(1, 2), torch.zeros_like(gradient), -margin
    odds = torch.sigmoid(against)
    pull = cost * odds
    direction = ahead = torch.bmm(gradient, inverse)  # uphill
    for _ in range(steps):
        image, lean = torch.bmm(direction, turned), penalty * direction
        curvature = torch.addcmul(pull, pull, odds, value=-1)
        bend = (lean * direction).sum(-1, keepdim=True) + (curvature * image * image).sum(-1, keepdim=True)
        slope = (gradient * direction).sum(-1, keepdim=True).clamp_min(SMALLEST)
        length = slope / bend.clamp_min(SMALLEST)
        path = torch.addcmul(path, length, direction, value=-1)
        against = torch.addcmul(against, length, image)
        odds, before = torch.sigmoid(against), pull
        pull = cost * odds
        fall = torch.baddbmm(length * lean, pull - before, x)
        gradient = gradient - fall
        if bool((gradient.abs() <= enough).all()):
            break
        ahead = torch.bmm(gradient, inverse)
        turn = ((ahead * fall).sum(-1, keepdim=True) / -slope).clamp_min(0)
        direction = torch.addcmul(ahead, turn, direction)
    return path


def _inverse_hessian(x: "Tensor", cost: "Tensor", penalty: "Tensor", theta: "Tensor") -> "Tensor":
    """Inverse Hessian of every head at theta [head, d + 1], [head, d + 1, d + 1], in float32."""
    import torch

    miss = torch.sigmoid(-(x @ theta[..., None])[..., 0])
    hessian = (x.transpose(1, 2) * (cost * miss * (1 - miss))[:, None]) @ x
    hessian.diagonal(dim1=1, dim2=2).add_(penalty + JITTER)
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(hessian)[0])


def _damped_newton(x: "Tensor", cost: "Tensor", penalty: "Tensor", tolerance: "Tensor") -> "Tensor":
    """One problem from zero, [d + 1]: Newton steps, halved as long as they raise the objective."""
    import torch

    def objective(theta: "Tensor") -> "Tensor":
        return (cost * torch.nn.functional.softplus(-(x @ theta))).sum() + 0.5 * (penalty * theta**2).sum()

    theta = torch.zeros(x.shape[-1], dtype=x.dtype, device=x.device)
    value = objective(theta)
    for _ in range(DAMPED_STEPS):
        miss = torch.sigmoid(-(x @ theta))
        gradient = penalty * theta - (cost * miss) @ x
        if bool(gradient.abs().amax() <= tolerance):
            return theta
        hessian = (x.T * (cost * miss * (1 - miss))) @ x + torch.diag(penalty + 1e-12)
        step = torch.linalg.solve_ex(hessian, gradient)[0]
        for _ in range(HALVINGS):
            if objective(theta - step) <= value * (1 + 1e-14):
                break
            step = step / 2
        theta = theta - step
        value = objective(theta)
    raise CriterionError(
        f"A logistic regression did not reach its optimum in {DAMPED_STEPS} Newton steps; its features reach "
        f"{float(x.abs().max()):.1e}. Scale them to a size near 1."
    )
