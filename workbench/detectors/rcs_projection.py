"""The learned projection of RCS: a small network that draws prompts of one data set together and the labels apart."""

from collections.abc import Sequence

import numpy as np

EPOCHS, BATCH, RATE, DECAY, PATIENCE, CLIP = 100, 64, 1e-3, 1e-4, 15, 1.0
MARGIN_SETS, MARGIN_LABELS, WEIGHT_LABELS = 1.0, 2.0, 5.0
HIDDEN, WIDTH, DROPOUT, LOWEST_RATE = 512, 256, 0.3, 0.01

Layers = list[tuple[np.ndarray, np.ndarray]]  # weight [out, in] and bias [out] of each


def train_projection(
    states: np.ndarray, unsafe: np.ndarray, sets: np.ndarray, *, width: int = WIDTH, seed: int = 0
) -> Layers:
    """Train the projection and fold it into three affine maps with ReLU between them.

    Args:
        states: [prompt, d].
        unsafe: [prompt].
        sets: Number of the data set of each prompt, [prompt].
        width: Of what comes out (theirs: 256).
        seed: Of first weights, batches and dropout.

    Source:
        sarendis56/Jailbreak_Detection_RCS: its network (d, 512, 256, 256, batch norm, ReLU, dropout 0.3), its loss
        (mean distance within a set and margin 1 between sets; five times margin 2 between the centres of the labels
        and mean distances to them) and its training (Adam, 1e-3 falling as a cosine, 100 epochs of batches of 64,
        stopped after 15 without gain). Not taken over: halving the rate on top of that when the loss stands still.
    """
    import torch
    from torch import nn

    x = torch.as_tensor(states, dtype=torch.float32)
    label, group = torch.as_tensor(unsafe), torch.as_tensor(sets)
    with torch.random.fork_rng(devices=[]):  # nobody's seed should notice
        torch.manual_seed(seed)
        net = nn.Sequential(
            *_block(nn, x.shape[1], HIDDEN), *_block(nn, HIDDEN, HIDDEN // 2),
            nn.Linear(HIDDEN // 2, width), nn.BatchNorm1d(width),
        )  # fmt: skip
        for module in net:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        optimiser = torch.optim.Adam(net.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS, eta_min=LOWEST_RATE * RATE)
        best, waited = float("inf"), 0
        for _ in range(EPOCHS):
            total, order = 0.0, torch.randperm(len(x))
            parts = [part for part in order.split(BATCH) if len(part) == min(BATCH, len(x))]
            for part in parts:
                optimiser.zero_grad()
                loss = contrast(net(x[part]), label[part], group[part])
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), CLIP)
                optimiser.step()
                total += float(loss.detach())
            schedule.step()
            best, waited = (total, 0) if total < best else (best, waited + 1)
            if waited >= PATIENCE:
                break
    return _folded([module for module in net.eval() if isinstance(module, nn.Linear | nn.BatchNorm1d)])


def project(layers: Layers, states: np.ndarray) -> np.ndarray:
    """Projected states, [prompt, width], float64; no layers leave them as they are."""
    out = states.astype(np.float64)
    for number, (weight, bias) in enumerate(layers):
        out = (np.maximum(out, 0) if number else out) @ weight.T + bias
    return out


def contrast(embedded, unsafe, sets):  # type: ignore[no-untyped-def]  # torch is imported when it is trained
    """The loss of a batch: [row, width], [row], [row] -> a number."""
    import torch

    unit = torch.nn.functional.normalize(embedded, dim=1)
    away = torch.cdist(unit, unit)
    same = sets[:, None] == sets
    apart, alone = ~same, torch.eye(len(sets), dtype=torch.bool)
    same = same & ~alone
    loss = unit.sum() * 0
    if apart.any():
        loss = loss + (away[same].mean() if same.any() else 0) + (MARGIN_SETS - away[apart]).clamp(min=0).mean()
    if unsafe.any() and not unsafe.all():
        centres = [unit[of].mean(0) for of in (unsafe, ~unsafe)]
        labels = (MARGIN_LABELS - (centres[0] - centres[1]).norm()).clamp(min=0)
        for of, centre in zip((unsafe, ~unsafe), centres, strict=True):
            if of.sum() > 1:
                labels = labels + (unit[of] - centre).norm(dim=1).mean()
        loss = loss + WEIGHT_LABELS * labels
    return loss


def _block(nn, wide: int, narrow: int):  # type: ignore[no-untyped-def]
    return nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.ReLU(), nn.Dropout(DROPOUT)


def _folded(modules: Sequence) -> Layers:
    """Pairs of a linear map and a batch norm, each as one affine map."""
    folded = []
    for linear, norm in zip(modules[::2], modules[1::2], strict=True):
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
        weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
        shift = norm.bias.detach().double().numpy() - norm.running_mean.double().numpy() * scale
        folded.append((weight * scale[:, None], bias * scale + shift))
    return folded
