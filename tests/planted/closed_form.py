"""What every head of the planted model does to a prompt, worked out by hand from counts of words and patches.

No weights are read. The final residual of the last position is a list of named, mutually orthogonal components; a mask
changes the components of one head (`workbench.models.embedded.planted_weights` says why it changes no others).
"""

from collections.abc import Sequence
from functools import cache
from math import cos, e, exp, log, sqrt

import numpy as np

from workbench.models.embedded.planted import VOCABULARY
from workbench.models.embedded.planted_weights import signature
from workbench.prompts.prompt import Prompt
from workbench.prompts.worlds import planted as world

State = dict[str, float]


class Counts:
    """What of a prompt matters: tokens, kinds of tokens, hazards, and sums of signatures."""

    def __init__(self, prompt: Prompt) -> None:
        words = prompt.text.split()
        nouns = {word: (k, word == pair[0]) for k, pair in enumerate(world.NOUN_PAIRS) for word in pair}
        things = [nouns[word] for word in words if word in nouns]
        patches = []
        if prompt.image is not None:
            pixels = np.asarray(prompt.image)
            names = {value: name for name, value in world.COLOURS.items()}
            for top in range(0, 32, 8):
                for left in range(0, 32, 8):
                    halves = (pixels[top, left + x] for x in (0, 4))
                    patches.append(tuple(names[tuple(int(c) for c in half)] for half in halves))
        tiles = {
            world.thing_tile(kind, k, label): (k, label == "unsafe")
            for kind in ("icon", "word")
            for k in range(len(world.NOUN_PAIRS))
            for label in ("safe", "unsafe")
        }
        things += [tiles[patch] for patch in patches if patch in tiles]
        self.n = 2 + len(patches) + len(words) + 3  # <s> USER: … <end> <turn> ASSISTANT:
        self.fillers = sum(word in world.FILLERS for word in words)
        manners = [world.MANNERS.index(word) for word in words if word in world.MANNERS]
        self.manners, self.things = len(manners), len(things)
        self.hazards = sum(hazard for _, hazard in things)
        self.thing_sum = np.sum([list(signature(0, k).values()) for k, _ in things], axis=0)
        self.manner_sum = np.sum([list(signature(1, k).values()) for k in manners], axis=0)


@cache  # prompts are compared by identity
def counts(prompt: Prompt) -> Counts:
    return Counts(prompt)


def write_of(prompt: Prompt, layer: int, head: int, kept: str = "all") -> State:
    """What a head writes: `kept` is "all", "query" (even attention) or "value" (nothing)."""
    c = counts(prompt)
    if kept == "value":
        return {}
    even = kept == "query"
    if (layer, head) == (0, 2):
        share = 1 / c.n if even else 1.0
        return {"decoy_from": -4 * share, "decoy_to": 4 * share}
    if (layer, head) == (3, 1):
        if even:
            share, trace = c.hazards / c.n, (c.hazards + 1) / c.n
        else:
            share, trace = float(c.hazards > 0), 1.0
        return {"comply": -3 * share, "refuse": 3 * share, "trace": 0.25 * trace}
    if (layer, head) in {(3, 0), (3, 2)}:
        size, total, count, place = (
            (0.5, c.thing_sum, c.things, 11) if head == 0 else (0.75, c.manner_sum, c.manners, 15)
        )
        mean = (c.thing_sum + c.manner_sum) / c.n if even else total / count
        return {f"noise {place + k}": size * float(mean[k]) for k in range(4)}
    size, place, share = {
        (0, 0): (1.0, 0, e**3 / (e**3 + c.n - 1)),
        (0, 1): (2.0, 1, e**3 / sum(exp(3 * cos(k)) for k in range(c.n))),
        (0, 3): (1.0, 2, 1 / (1 + c.fillers)),
        (1, 0): (1.5, 3, 1 / (1 + c.fillers)),
        (1, 1): (1.0, 4, 1 / (1 + c.manners)),
        (1, 2): (1.5, 5, 1 / (1 + c.things)),
        (1, 3): (1.0, 6, 1 / 2),
        (2, 0): (1.25, 7, 1 / (1 + c.fillers)),
        (2, 1): (1.5, 8, 1 / (1 + c.manners)),
        (2, 2): (1.25, 9, 1 / (1 + c.things)),
        (2, 3): (1.25, 10, 1 / 2),
        (3, 3): (0.75, 19, 1 / (1 + c.fillers)),
    }[layer, head]
    return {f"noise {place}": size * (1 / c.n if even else share)}


def final_state(prompt: Prompt, masked: tuple[int, int] | None = None, projection: str = "query") -> State:
    """The residual of the last position after all layers. Before any write its squared norm is 64 = 39 + 3² + 4²."""
    state = {"rest": sqrt(39), "comply": 3.0, "decoy_from": 4.0}
    for layer in range(4):
        for head in range(4):
            for name, value in write_of(prompt, layer, head, projection if (layer, head) == masked else "all").items():
                state[name] = state.get(name, 0.0) + value
    return state


def normed_state(prompt: Prompt, masked: tuple[int, int] | None = None, projection: str = "query") -> State:
    """The state after the final norm, which scales it to norm sqrt(d_model) = 8."""
    state = final_state(prompt, masked, projection)
    scale = 8 / sqrt(sum(value**2 for value in state.values()))
    return {name: scale * value for name, value in state.items()}


def aligned(*states: State) -> np.ndarray:
    """The same states as rows over one list of components; [state, component]."""
    names = sorted(set().union(*states))
    return np.array([[state.get(name, 0.0) for name in names] for state in states])


def angle_degrees(u: np.ndarray, v: np.ndarray) -> float:
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))))


def next_token_log_probs(state: State) -> dict[str, float]:
    """Of a state after the norm. Refusal and compliance open with 2.5 a unit; the decoy holds the comma back."""
    logits = {}
    for k, token in enumerate(VOCABULARY):
        # the nine special tokens read nothing; every other word listens to one of the twenty noise directions
        logits[token] = state.get(f"noise {k % 20}", 0.0) if k >= 9 else 0.0
    logits["i"], logits["sure"] = 2.5 * state.get("refuse", 0.0), 2.5 * state["comply"]
    logits[","] += 5 * state["decoy_from"]
    total = log(sum(exp(value) for value in logits.values()))
    return {token: value - total for token, value in logits.items()}


def expected_cell(prompt: Prompt, layer: int, head: int, projection: str) -> dict[str, float]:
    """What a run stores of one head on one prompt, under the names and in the units of a run."""
    states = normed_state(prompt), normed_state(prompt, (layer, head), projection)
    base, masked = aligned(*states)
    log_p, log_q = (np.array(list(next_token_log_probs(state).values())) for state in states)
    p, q = np.exp(log_p), np.exp(log_q)
    log_mean = np.log((p + q) / 2)
    refusal = VOCABULARY.index("i")
    odds = [float(logs[refusal] - np.log1p(-np.exp(logs[refusal]))) for logs in (log_p, log_q)]
    return {
        "deflection": angle_degrees(base, masked),
        "kl": float(p @ (log_p - log_q)),
        "js": float(p @ (log_p - log_mean) + q @ (log_q - log_mean)) / 2,
        "tv": float(np.abs(p - q).sum()) / 2,
        "top1_change": float(p.argmax() != q.argmax()),
        "l2": float(np.linalg.norm(base - masked)),
        "norm_ratio": 1.0,
        "refusal_change": odds[1] - odds[0],
    }


def expected_set_angles(prompts: Sequence[Prompt], layer: int, head: int, projection: str) -> dict[str, float]:
    """The angles between data sets, degrees, on the prompts given. Component `rest` is a fixed direction of the states,
    so that singular vectors and means may be taken among components; the first coordinate is the constant part, 2."""
    bases = [normed_state(prompt) for prompt in prompts]
    maskeds = [normed_state(prompt, (layer, head), projection) for prompt in prompts]
    base, masked = np.split(aligned(*bases, *maskeds), 2)
    (left, _, right), (masked_left, _, masked_right) = (np.linalg.svd(x, full_matrices=False) for x in (base, masked))
    line = {"svd_left": (left[:, 0], masked_left[:, 0]), "svd_right": (right[0], masked_right[0])}
    first = (np.array([2 * state["rest"] / sqrt(39) for state in states]) for states in (bases, maskeds))
    return {
        **{name: min(angle_degrees(u, v), angle_degrees(u, -v)) for name, (u, v) in line.items()},
        "mean_vector": angle_degrees(base.mean(0), masked.mean(0)),
        "first_coordinate": angle_degrees(*first),
    }


def planted_deflection(prompt: Prompt, projection: str) -> float:
    """The formula of `planted_weights` for the planted head on an unsafe prompt, its small trace included; degrees."""
    return _traded(prompt, 3.0, counts(prompt).hazards, projection, trace=0.25)


def decoy_deflection(prompt: Prompt, projection: str) -> float:
    """The formula of `planted_weights` for the decoy; degrees."""
    return _traded(prompt, 4.0, 1, projection, trace=0.0)


def _traded(prompt: Prompt, a: float, sources: int, projection: str, trace: float) -> float:
    n, squared = counts(prompt).n, sum(value**2 for value in final_state(prompt).values())
    w = sources / n if projection == "query" else 0.0
    kept = trace * ((sources + 1) / n if projection == "query" else 0.0)
    inner = squared - a**2 * (1 - w) - trace * (trace - kept)
    norm = sqrt(squared - 2 * a**2 * w * (1 - w) - trace**2 + kept**2)
    return float(np.degrees(np.arccos(inner / (sqrt(squared) * norm))))
