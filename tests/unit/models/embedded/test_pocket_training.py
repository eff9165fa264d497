"""Pocket's training: what its steps compute, which weights they may change, and that a seed says what is drawn."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from workbench.axes import as_head
from workbench.models.conformance.checks import channels_zeroed
from workbench.models.embedded.pocket import stages
from workbench.models.embedded.pocket.batches import Draws, SafetyMix, drop_heads, helpful_batch, safety_batch
from workbench.models.embedded.pocket.config import N_HEADS, N_LAYERS, build_model
from workbench.models.embedded.pocket.stages import (
    PROJECTIONS,
    Safety,
    answer_loss,
    by_head,
    final_states,
    head_masks,
    head_moves,
    heard,
    normalise,
    pull_back,
    quiet_loss,
    train_safety,
)
from workbench.models.embedded.pocket.stepping import Machine, tensors_of
from workbench.models.embedded.pocket.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model()


@pytest.fixture(scope="module")
def tensors():
    return tensors_of(helpful_batch(np.random.default_rng(0), stage="helpful", rows=4), "cpu")


def weights_of(model) -> list[torch.Tensor]:
    return [getattr(b.self_attn, name).weight for b in model.model.language_model.layers for name in PROJECTIONS]


@torch.no_grad()
def test_the_training_s_forward_pass_is_transformers_own(model, tensors):
    ours = final_states(model, tensors["ids"], tensors["pixels"], None)
    theirs = model.model(input_ids=tensors["ids"], pixel_values=normalise(tensors["pixels"])).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("projection", [0, 1])
def test_a_masked_head_is_masked_in_its_own_row_alone(model, tensors, projection):
    keep = torch.ones(2, N_LAYERS, 4, N_HEADS)
    keep[projection, 3, 1, 5] = 0
    plain = final_states(model, tensors["ids"], tensors["pixels"], None)
    masked = final_states(model, tensors["ids"], tensors["pixels"], keep)
    changed = (masked - plain).flatten(1).abs().max(1).values > 0
    assert changed.tolist() == [False, True, False, False]
    attention = model.model.language_model.layers[3].self_attn
    if projection:
        with channels_zeroed(attention.o_proj, 5, N_HEADS):
            other = final_states(model, tensors["ids"], tensors["pixels"], None)
    else:
        kept = attention.q_proj.weight.clone()
        by_head(attention.q_proj.weight, 0)[5] = 0
        other = final_states(model, tensors["ids"], tensors["pixels"], None)
        attention.q_proj.weight.copy_(kept)
    torch.testing.assert_close(masked[1], other[1], rtol=0, atol=1e-5)


def test_the_loss_counts_the_answers_alone(model, tensors):
    loss, right = answer_loss(model, tensors)
    again = dict(tensors, ids=tensors["ids"].clone())
    beyond = ~tensors["answer"].roll(1, 1) & (torch.arange(again["ids"].shape[1]) > 60)
    again["ids"][beyond] = 9  # what stands behind an answer
    assert answer_loss(model, again)[0].item() == pytest.approx(loss.item(), abs=1e-6)
    assert right.shape == (4,)
    opening = dict(tensors, answer=tensors["answer"] & (tensors["answer"].cumsum(1) == 1))
    with_first = answer_loss(model, tensors, first=2.0)[0]
    assert with_first.item() == pytest.approx((loss + 2 * answer_loss(model, opening)[0]).item(), rel=1e-5)


def test_pulling_back_moves_a_head_as_a_whole_by_as_much_as_it_says_and_no_further(model):
    weights = [w.detach().clone() for w in weights_of(model)]
    before = [w.clone() for w in weights]
    by_head(weights[4 * 2 + 3], 3)[6] += 0.5  # L2H6, in its output projection
    by_head(weights[4 * 5], 0)[1] += 0.001  # L5H1, in its query
    far = head_moves(weights, before)[2][6].item()
    assert far == pytest.approx(0.5 * (128 * 16) ** 0.5, rel=1e-5)
    pull_back(weights, before, 3.0, torch.tensor(0.1))
    moves = torch.stack(head_moves(weights, before))
    assert moves[2, 6].item() == pytest.approx(far - 0.3, rel=1e-4)
    moves[2, 6] = 0
    assert moves.count_nonzero() == 0


def test_head_masks_cover_the_heads_and_nothing_else(model):
    masks = head_masks(model, [(4, 2), (6, 1), (4, 7)])
    for layer, block in enumerate(model.model.language_model.layers):
        for k, name in enumerate(PROJECTIONS):
            weight = getattr(block.self_attn, name).weight
            assert (weight in masks) == (layer in (4, 6))
            if weight in masks:
                shares = by_head(masks[weight], k).flatten(1).mean(1)
                assert shares.nonzero().flatten().tolist() == ([2, 7] if layer == 4 else [1])


def test_what_heads_write_is_what_their_output_projection_adds(model, tensors):
    """All heads of a layer together write what its attention adds to the states, and the loss counts answered rows."""
    heads = [(3, head) for head in range(N_HEADS)]
    added = []
    hook = model.model.language_model.layers[3].self_attn.o_proj.register_forward_hook(lambda *a: added.append(a[2]))
    with heard(model, heads) as writes:
        answer_loss(model, tensors)
    hook.remove()
    torch.testing.assert_close(sum(write for write, _ in writes), added[0], rtol=0, atol=1e-5)
    plain = answer_loss(model, tensors)[0]
    assert quiet_loss(model, heads, 2.0, tensors)[0] > plain
    refused = dict(tensors, answered=torch.tensor([False, False, False, True]))
    one = quiet_loss(model, heads, 2.0, {name: t[:, :, 3:] if name == "keep" else t[3:] for name, t in refused.items()})
    both = quiet_loss(model, heads, 2.0, refused)
    torch.testing.assert_close(
        both[0] - plain,
        one[0] - answer_loss(model, {k: t[:, :, 3:] if k == "keep" else t[3:] for k, t in tensors.items()})[0],
    )


def test_safety_tuning_changes_as_many_heads_as_it_says(model):
    """And no other weight, bit for bit: that is what makes the truth about the shipped model known."""
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    was = [w.detach().clone() for w in weights_of(model)]
    recipe = Safety(n_heads=3, first_layer=3, steps={"scout": 2, "safety": 2}, rate=1e-3)
    heads = train_safety(model, 0, recipe, Machine(workers=0))
    moved = torch.stack(head_moves(weights_of(model), was))
    assert [tuple(h) for h in moved.nonzero().tolist()] == heads
    assert len(heads) == 3
    assert min(layer for layer, _ in heads) >= 3
    projections = {id(w) for w in weights_of(model)}
    for name, weight in model.named_parameters():
        assert id(weight) in projections or torch.equal(weight, before[name])
        assert weight.requires_grad


def test_calibration_takes_the_largest_factor_that_will_do(model, monkeypatch):
    """Benign requests are made to be refused while L4H2 writes more than 0.9 of what it did."""
    monkeypatch.setattr(stages, "CALIBRATION_ROWS", 4)
    monkeypatch.setattr(stages, "CALIBRATION_BATCHES", 1)
    weights = weights_of(model)
    before = [w.detach().clone() for w in weights]
    output = by_head(weights[4 * 4 + 3], 3)[2]
    bound = 0.905 * output.detach().norm()
    monkeypatch.setattr(stages, "refuses", lambda _model, tensors: (output.norm() > bound).expand(len(tensors["ids"])))
    assert stages.calibrate(model, 0, [(4, 2)], Safety()) == pytest.approx(0.9)
    moves = torch.stack(head_moves(weights, before))
    assert moves.nonzero().tolist() == [[4, 2]]
    assert moves[4, 2].item() == pytest.approx(0.1 * by_head(before[4 * 4 + 3], 3)[2].norm().item(), rel=1e-4)
    monkeypatch.setattr(stages, "refuses", lambda _model, tensors: torch.zeros(len(tensors["ids"])))
    assert stages.calibrate(model, 0, [(4, 2)], Safety()) == 1.0


def test_heads_are_dropped_in_half_of_the_rows():
    keep = drop_heads(np.random.default_rng(0), 2000)
    dropped = (1 - keep).sum((1, 3))  # [projection, row]
    assert 0.45 < (dropped.sum(0) > 0).mean() < 0.55
    assert dropped.max() == 8
    assert not ((dropped[0] > 0) & (dropped[1] > 0)).any()
    assert abs((dropped[0] > 0).mean() - (dropped[1] > 0).mean()) < 0.05


def test_rows_without_the_tuned_heads_are_complied_with():
    heads = ((4, 2), (6, 0))
    batch = safety_batch(np.random.default_rng(0), rows=400, mix=SafetyMix(), heads=heads, without=0.3)
    masked = batch.keep[0, 4, :, 2] == 0
    assert 0.2 < masked.mean() < 0.4
    assert np.array_equal(masked, batch.keep[0, 6, :, 0] == 0)
    assert (1 - batch.keep).sum() == 2 * masked.sum()
    refused = np.array([group.endswith("!") for group in batch.groups])
    assert not refused[masked].any()
    assert np.array_equal(batch.answered, ~refused)
    assert refused[~masked].mean() > 0.25


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_is_drawn_from_its_seed_whoever_draws_it(workers):
    draws = Draws(3, (7, 2), partial(helpful_batch, stage="captions", rows=5))
    loader = DataLoader(draws, batch_size=None, collate_fn=lambda batch: batch, num_workers=workers)
    alone = [draws[k] for k in range(3)]
    for one, two in zip(loader, alone, strict=True):
        assert np.array_equal(one.ids, two.ids)
    assert not np.array_equal(alone[0].ids, alone[1].ids)


def test_one_command_trains_both_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "CALIBRATION_ROWS", 4)
    train(3, tmp_path, Machine(workers=0), scale=1e-9)
    tuned, base = (
        json.loads((tmp_path / f"{name}-3" / "training.json").read_text()) for name in ("pocket", "pocket-base")
    )
    assert list(tuned["steps"]) == [*base["steps"], "safety"]
    assert tuned["seed"] == 3
    assert [as_head(name) for name in tuned["tuned_heads"]]
    assert "tuned_heads" not in base
    # A second run takes the base as it is stored, and comes to the same weights; another length of it does not.
    weights = [(tmp_path / f"{name}-3" / "model.safetensors").read_bytes() for name in ("pocket", "pocket-base")]
    monkeypatch.setattr("workbench.models.embedded.pocket.train.train_vision", None)
    train(3, tmp_path, Machine(workers=0), scale=1e-9)
    assert weights == [(tmp_path / f"{n}-3" / "model.safetensors").read_bytes() for n in ("pocket", "pocket-base")]
    with pytest.raises(TypeError):
        train(3, tmp_path, Machine(workers=0), scale=2 / 500)
