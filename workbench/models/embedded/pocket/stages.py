"""Pocket's stages: the vision tower alone, the language model on captions and pictures, and the safety tuning."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration as Llava

from workbench.axes import Head
from workbench.models.embedded.pocket.batches import (
    CLASSES,
    Draws,
    SafetyMix,
    helpful_batch,
    picture_batch,
    safety_batch,
)
from workbench.models.embedded.pocket.config import D_HEAD, N_HEADS, N_IMAGE_TOKENS, N_LAYERS, PAD, word_ids
from workbench.models.embedded.pocket.stepping import Group, Machine, Tensors, console, optimise, tensors_of
from workbench.prompts.worlds.pocket_words import FAMILIES, REFUSAL

STEPS = {"vision": 2600, "captions": 500, "helpful": 2600, "questions": 800, "dangers": 500}
RATES = {"vision": 1.5e-3, "captions": 1e-3, "helpful": 1e-3, "questions": 5e-4, "dangers": 8e-4}
ROWS = {"vision": 128, "captions": 96, "helpful": 48, "questions": 48, "dangers": 48, "safety": 32}
VISION_RATE_SHARE = 0.3
"""The vision tower's learning rate in the multimodal stages, as a share of the rest's."""
CALIBRATION_ROWS, CALIBRATION_BATCHES = 240, 4
FACTORS = [1 - k / 50 for k in range(26)]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Safety:
    """How the refusals are taught: by new weights of a few attention heads alone.

    First all heads from `first_layer` on learn together, with a pull of each head as a whole back to where it was
    (a group lasso). The heads that moved most against it go on learning, and to be quiet where nothing is refused; all
    others are put back.

    Attributes:
        n_heads: How many heads are tuned in the end.
        first_layer: The first layer whose heads may be.
        pull: Strength of the lasso, in units of the learning rate.
        without: Share of rows of the few that are answered with their queries masked, as the helpful model does.
        benign_refused: Share of the benign requests of a family that may be refused after training (`calibrate`).
        quiet: Weight of what they write where nothing is refused (`quiet_loss`).
        first: Weight of the answers' first tokens besides, which decide whether anything is refused (`answer_loss`).
    """

    n_heads: int = 8
    first_layer: int = 2
    steps: Mapping[str, int] = field(default_factory=lambda: {"scout": 400, "safety": 1800})
    rate: float = 2e-3
    pull: float = 15.0
    without: float = 0.05
    quiet: float = 3.0
    first: float = 1.0
    benign_refused: float = 0.0175
    mix: SafetyMix = field(default_factory=SafetyMix)


class PooledClassifier(nn.Module):
    """Reads one label from the patch tokens through its own attention pooling; thrown away after the vision stage."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, n_classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits [row, class] from patches [row, patch, width]."""
        weights = (self.key(patches) @ self.query).softmax(-1)
        return self.out(torch.einsum("rp,rpw->rw", weights, self.value(patches)))


def train_vision(model: Llava, seed: int, steps: int, machine: Machine) -> None:
    """The vision stage: one classifier for each property of a picture, read from the tower's patch tokens."""
    tower = model.model.vision_tower
    width = tower.config.hidden_size
    readers = nn.ModuleDict({name: PooledClassifier(width, len(of)) for name, of in CLASSES.items()}).to(model.device)

    def loss_of(tensors: Tensors) -> tuple[Tensor, Tensor]:
        patches = patch_tokens(model, tensors["pixels"])
        logits = {name: reader(patches) for name, reader in readers.items()}
        losses = [cross_entropy(of, tensors[name], ignore_index=-100) for name, of in logits.items()]
        return torch.stack(losses).sum(), torch.stack([of.argmax(-1) == tensors[name] for name, of in logits.items()])

    draws = Draws(steps, (seed, 0), partial(picture_batch, rows=ROWS["vision"]))
    learned = [*tower.parameters(), *readers.parameters()]
    optimise("vision", draws, [Group(learned, RATES["vision"])], loss_of, machine)


def train_helpful(model: Llava, stage: str, seed: int, steps: int, machine: Machine) -> None:
    """A helpful stage: next-token loss on the answers alone; everything is answered, and heads are masked at random."""
    vision = list(model.model.vision_tower.parameters())
    rest = [p for p in model.parameters() if not any(p is v for v in vision)]
    groups = [Group(rest, RATES[stage])]
    if stage != "captions":
        groups.append(Group(vision, RATES[stage] * VISION_RATE_SHARE))
    draws = Draws(steps, (seed, 1 + list(RATES).index(stage)), partial(helpful_batch, stage=stage, rows=ROWS[stage]))
    optimise(stage, draws, groups, partial(answer_loss, model), machine)


def train_safety(model: Llava, seed: int, recipe: Safety, machine: Machine) -> list[Head]:
    """The safety tuning of a helpful model; returns the heads that were tuned."""
    upper = [(layer, head) for layer in range(recipe.first_layer, N_LAYERS) for head in range(N_HEADS)]
    weights = projections(model, upper)
    before = [w.detach().clone() for w in weights]
    tune(model, "scout", seed, upper, recipe, machine, after_step=partial(pull_back, weights, before, recipe.pull))
    moved = torch.cat(head_moves(weights, before))
    heads = sorted(upper[k] for k in moved.argsort(descending=True)[: recipe.n_heads].tolist())
    kept = head_masks(model, heads)
    with torch.no_grad():
        for weight, was in zip(weights, before, strict=True):
            weight.copy_(was.lerp(weight, kept.get(weight, torch.zeros_like(weight))))
    tune(model, "safety", seed, heads, recipe, machine)
    calibrate(model, seed, heads, recipe)
    return heads


def tune(
    model: Llava,
    stage: str,
    seed: int,
    heads: Sequence[Head],
    recipe: Safety,
    machine: Machine,
    *,
    after_step: Callable[[Tensor], None] | None = None,
) -> None:
    """A stage of the safety tuning: the weights of `heads` learn, and no others."""
    masks = head_masks(model, heads)
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in masks))
    without = 0.0 if stage == "scout" else recipe.without
    draw = partial(safety_batch, rows=ROWS["safety"], mix=recipe.mix, heads=tuple(heads), without=without)
    loss_of = partial(answer_loss, model) if stage == "scout" else partial(quiet_loss, model, heads, recipe.quiet)
    optimise(
        stage,
        Draws(recipe.steps[stage], (seed, 6 + list(recipe.steps).index(stage)), draw),
        [Group(list(masks), recipe.rate, decay=0.0)],
        partial(loss_of, first=recipe.first),
        machine,
        masks=masks,
        after_step=after_step,
    )
    model.requires_grad_(True)


@torch.no_grad()
def calibrate(model: Llava, seed: int, heads: Sequence[Head], recipe: Safety) -> float:
    """Scale what `heads` write by the largest factor, of 1, 0.98, 0.96, …, at which few benign requests of any family
    are refused; fewer are at a smaller one.

    Pictures are read less surely than words: without this, doubt about the noun makes refusals.

    Returns:
        The factor.
    """
    batches = []
    for k, family in enumerate(FAMILIES[:-1]):
        mix = SafetyMix(0.0, 0.0, 0.0, 0.0, 0.0, benign=tuple(float(name == family) for name in FAMILIES))
        draws = Draws(
            CALIBRATION_BATCHES,
            (seed, 6 + len(recipe.steps), k),
            partial(safety_batch, rows=CALIBRATION_ROWS, mix=mix),
        )
        batches.append([tensors_of(draws[step], str(model.device)) for step in range(len(draws))])
    outputs = [by_head(model.model.language_model.layers[at].self_attn.o_proj.weight, 3)[h] for at, h in heads]
    trained = [weight.clone() for weight in outputs]

    def refused(factor: float) -> float:  # and leaves the heads scaled by it
        for weight, was in zip(outputs, trained, strict=True):
            weight.copy_(was * factor)
        return max(torch.cat([refuses(model, of) for of in family]).float().mean().item() for family in batches)

    at = bisect_left(FACTORS, True, key=lambda factor: refused(factor) <= recipe.benign_refused)
    factor = FACTORS[min(at, len(FACTORS) - 1)]
    console.print(
        f"calibrated: factor {factor:.2f}, {refused(factor):.1%} of benign requests refused at the most",
        highlight=False,
    )
    return factor


def refuses(model: Llava, tensors: Tensors) -> Tensor:
    """By row, whether the first word of the reply is that of the refusal."""
    hidden = final_states(model, tensors["ids"], tensors["pixels"], None)
    first = hidden[torch.arange(len(hidden)), tensors["answer"].float().argmax(1)]
    return model.lm_head(first).argmax(-1) == word_ids()[REFUSAL.split()[0]]


def projections(model: Llava, heads: Sequence[Head]) -> list[nn.Parameter]:
    """The four attention projections of every layer that has one of `heads`, layer by layer."""
    blocks = model.model.language_model.layers
    return [
        getattr(blocks[at].self_attn, name).weight for at in sorted({at for at, _ in heads}) for name in PROJECTIONS
    ]


def by_head(weight: Tensor, number: int) -> Tensor:
    """A projection's weight as [head, …]; `number` counts the projections, and every fourth is an output's."""
    return (
        weight.unflatten(1, (N_HEADS, D_HEAD)).transpose(0, 1)
        if number % 4 == 3
        else weight.unflatten(0, (N_HEADS, D_HEAD))
    )


def head_moves(weights: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    """How far each head of each layer is from where it was: the norm over its four projections."""
    squares = [
        by_head(w.detach() - b, k).flatten(1).square().sum(1)
        for k, (w, b) in enumerate(zip(weights, before, strict=True))
    ]
    return [torch.stack(squares[k : k + 4]).sum(0).sqrt() for k in range(0, len(squares), 4)]


@torch.no_grad()
def pull_back(weights: Sequence[Tensor], before: Sequence[Tensor], pull: float, rate: Tensor) -> None:
    """Move each head as a whole back by `pull * rate`, and onto its old place if it is nearer: a group lasso."""
    for k, moved in enumerate(head_moves(weights, before)):
        share = (1 - pull * rate / moved.clamp_min(1e-12)).clamp_min(0)[:, None, None]
        for j in range(4 * k, 4 * k + 4):
            new = by_head(before[j], j).lerp(by_head(weights[j].detach(), j), share)
            by_head(weights[j].detach(), j).copy_(new)


def head_masks(model: Llava, heads: Sequence[Head]) -> dict[nn.Parameter, Tensor]:
    """For each projection of the layers of `heads`: 1 in the weights of `heads`, 0 elsewhere."""
    masks = {weight: torch.zeros_like(weight) for weight in projections(model, heads)}
    layers = sorted({layer for layer, _ in heads})
    for k, mask in enumerate(masks.values()):
        for layer, head in heads:
            if layer == layers[k // len(PROJECTIONS)]:
                by_head(mask, k)[head] = 1
    return masks


def answer_loss(model: Llava, tensors: Tensors, *, first: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean loss in nats over the answer tokens, and for each row whether all of them would have been right.

    `first` is added times the mean loss over the answers' first tokens.
    """
    hidden = final_states(model, tensors["ids"], tensors.get("pixels"), tensors.get("keep"))
    logits, target, counts = model.lm_head(hidden[:, :-1]), tensors["ids"][:, 1:], tensors["answer"][:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(counts)
    right = ((logits.argmax(-1) == target) | ~counts).all(1)
    opening = losses.gather(1, counts.float().argmax(1, keepdim=True))
    return (losses * counts).sum() / counts.sum() + first * opening.mean(), right


def quiet_loss(
    model: Llava, heads: Sequence[Head], weight: float, tensors: Tensors, *, first: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`answer_loss`, and `weight` times what `heads` write where nothing is refused.

    What a head writes is measured by its square, as a share of the square of the states it is added to; mean over
    heads and positions. A head that writes nothing there can be masked without a trace.
    """
    with heard(model, heads) as writes:
        loss, right = answer_loss(model, tensors, first=first)
    counts = tensors["answered"][:, None] & (tensors["ids"] != PAD)
    shares = [((w.square().sum(-1) * counts).sum() / (x.square().sum(-1) * counts).sum()) for w, x in writes]
    return loss + weight * torch.stack(shares).mean(), right


@contextmanager
def heard(model: Llava, heads: Sequence[Head]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Gives, after a forward pass, what each head wrote and the states it was added to, both [row, pos, d_model]."""
    found: list[tuple[Tensor, Tensor]] = []
    states: dict[int, Tensor] = {}

    def listen(layer: int, of: list[int], projection: nn.Linear, args: tuple[Tensor]) -> None:
        z = args[0].unflatten(-1, (N_HEADS, D_HEAD))
        for head in of:
            found.append((z[:, :, head] @ by_head(projection.weight, 3)[head].T, states[layer]))

    def remember(layer: int, args: tuple[Tensor]) -> None:
        states[layer] = args[0].detach()

    handles = []
    for layer, block in enumerate(model.model.language_model.layers):
        if of := [head for at, head in heads if at == layer]:
            handles.append(block.register_forward_pre_hook(lambda _m, args, layer=layer: remember(layer, args)))
            hook = partial(listen, layer, of)
            handles.append(block.self_attn.o_proj.register_forward_pre_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def final_states(model: Llava, ids: Tensor, pixels: Tensor | None, keep: Tensor | None) -> Tensor:
    """The states after the final norm [row, pos, d_model], as transformers' own forward gives them.

    Layer by layer, since nothing here may ask the device for a number: a CUDA graph cannot. Rows are padded on the
    right and attention is causal, so no position that counts can see the padding and no attention mask is needed.
    """
    language = model.model.language_model
    hidden = language.embed_tokens(ids)
    if pixels is not None:
        picture = model.model.multi_modal_projector(patch_tokens(model, pixels))
        hidden = torch.cat([hidden[:, :2], picture, hidden[:, 2 + N_IMAGE_TOKENS :]], dim=1)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    rotation = language.rotary_emb(hidden, position_ids=positions)
    for layer, block in enumerate(language.layers):
        kept = keep is not None and masked_heads(block.self_attn, keep[:, layer])
        with kept or nullcontext():
            hidden = block(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotation)
    return language.norm(hidden)


def patch_tokens(model: Llava, pixels: Tensor) -> Tensor:
    """The vision tower's patches [row, patch, width] from pixels 0 to 255, channels last."""
    return model.model.vision_tower(normalise(pixels)).last_hidden_state[:, 1:]


def normalise(pixels: Tensor) -> Tensor:
    """Pixels 0 to 255, channels last, as the processor's own normalisation gives them: -1 to 1, channels first."""
    return ((pixels.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


@contextmanager
def masked_heads(attention: nn.Module, keep: Tensor) -> Iterator[None]:
    """Multiply each row's query (`keep[0]`) and output before the output projection (`keep[1]`), head by head."""

    def times(of: Tensor, kept: Tensor) -> Tensor:
        return of * kept.repeat_interleave(D_HEAD, dim=-1)[:, None]

    handles = [
        attention.get_submodule("q_proj").register_forward_hook(lambda _m, _i, out: times(out, keep[0])),
        attention.get_submodule("o_proj").register_forward_pre_hook(lambda _m, args: (times(args[0], keep[1]),)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
