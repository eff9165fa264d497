"""The planted decoder, head by head: which dimension means what, what each head looks at, reads and writes.

Everything here is a table of small numbers; `workbench.models.embedded.planted` puts them into a LLaVA. How it works:

- **Clean states.** Every embedding has squared norm 64 = d_model, so RMSNorm leaves it as it is. What a head reads was
  never written to: a head of layer 0 reads the last token, of layer 1 the one before (`<turn>`), of layer 2 the one
  before that (`<end>`), of layer 3 the first token, the words and the patches; and causal attention carries no write
  backwards. So no mask on one head changes what another head reads.
- **Saturated attention.** From the last position a head's scores are about 72 times a small whole number (the tier of
  the key), and 0 from anywhere else. The softmax therefore splits evenly over the tokens of the highest tier and gives
  all others less than 1e-25. Queries and keys live in the rotary pair that turns by 1e-14 a position, so that content
  decides. Two heads of layer 0 are soft instead, since real heads are and half a query mask must show: one weighs the
  last token by e^3, the other every token at distance k by e^(3 cos k), through the fastest rotary pair.
- **Balanced classes.** A hazard replaces the harmless component by one of the same size, and the planted head replaces
  the compliance component of the last position by refusal of the same size. A safe prompt and its unsafe twin then
  have final states of the same norm that differ in two coordinates, and every other head moves both by the same angle.

Closed forms. Let n be the number of tokens, s the final residual at the last position (norm |s|), and w the share that
a masked head keeps of what it writes: 0 under the value mask; under the query mask the share of its sources among all
tokens. A head that trades a component `a` for another (decoy, a = 4, w = 1/n; planted on an unsafe prompt with m hazard
tokens, a = 3, w = m/n) turns the state by

    cos = (|s|² - a² (1 - w)) / (|s| sqrt(|s|² - 2 a² w (1 - w)))

and any other head that writes u, orthogonal to the rest of s, and keeps u' of it, by

    cos = (|s|² - |u|² + u.u') / (|s| sqrt(|s|² - |u|² + |u'|²)).

The planted head does both: its trace is such a u, of size 1/4, with w = (m + 1)/n under the query mask. In
`planted-pair` the two heads' signal reaches the state through an MLP, whose output depends a little on the norm of the
state, so that there all of this holds only nearly; tests take its values from a second implementation instead.

All that a head does, it does at the last position; a mask at that position alone acts as one at all positions.
"""

from dataclasses import dataclass, field

D_MODEL, N_LAYERS, N_HEADS, D_HEAD, D_MLP = 64, 4, 4, 16, 4
ROPE_THETA = 1e16  # the slowest rotary pair, channels 7 and 15 of a head, turns by theta^(-14/16) = 1e-14 a position
CONTENT_CHANNEL, DISTANCE_CHANNEL = 7, 0

# Dimensions of the residual stream.
CONST, HAZARD, HARMLESS, COMPLY, REFUSE = 0, 1, 2, 3, 4
LAST, TURN, END, BOS = 5, 6, 7, 8  # which of the template's tokens this is
THING, MANNER, FILLER = 9, 10, 11  # which kind of word or patch this is
DECOY_FROM, DECOY_TO, TRACE = 12, 13, 14
BOTH_FROM, BOTH_TO = 15, 16  # planted-pair only: the two heads' common signal
SUCCESSOR = tuple(range(17, 26))  # which token of a reply comes next
SIGNATURE = tuple(range(26, 30))  # what tells words of a kind apart
BALLAST = tuple(range(30, 34))  # fills every embedding up to squared norm 64
NOISE = tuple(range(34, 54))  # what the heads of no interest write

TRADED = 3.0  # a of the planted head
DECOY_TRADED = 4.0
# Of the flags, and FLAG_SIZE of the constant part too; powers of two, so that float32 holds every weight exactly.
LAST_SIZE, FLAG_SIZE, HAZARD_SIZE = 4.0, 2.0, 4.0
TRACE_SIZE = 0.25  # what the planted head writes on every prompt alike

Writes = dict[int, float]


@dataclass(frozen=True)
class Channel:
    """One channel of a head: z is the sum of `reads` at what it looks at; a unit of z adds `writes` to the state."""

    reads: Writes
    writes: Writes


@dataclass(frozen=True)
class WrittenHead:
    """A head as it is written.

    Attributes:
        layer: Where it sits, 0-based.
        head: Where it sits, 0-based.
        keys: From a flag dimension to its tier; the last position looks evenly at the tokens of the highest tier.
        channels: What it reads at those tokens and writes; at most 16.
        score: What a key of tier 1 scores from the last position, before any write there changed its norm a little.
        rotary: Channel of queries and keys, 0 to 7; it turns by `ROPE_THETA` ** (-rotary / 8) a position.
    """

    layer: int
    head: int
    keys: dict[int, int]
    channels: tuple[Channel, ...] = field(repr=False)
    score: float = 72.0
    rotary: int = CONTENT_CHANNEL


def flag_size(flag: int) -> float:
    """How large a flag is in the embeddings that carry it."""
    return {LAST: LAST_SIZE, HAZARD: HAZARD_SIZE}.get(flag, FLAG_SIZE)


def _share(layer: int, head: int, source: int, counted: int, noise: int, size: float) -> WrittenHead:
    """A head of no interest: it writes `size` divided by one plus the number of `counted` tokens."""
    return WrittenHead(layer, head, {source: 1, counted: 1}, (_noise(source, noise, size),))


def _noise(source: int, noise: int, size: float) -> Channel:
    return Channel({source: 1 / flag_size(source)}, {NOISE[noise]: size})


def _signature_reader(head: int, kind: int, noise: int, size: float) -> WrittenHead:
    """A head of no interest in layer 3: it copies the mean signature of the tokens of a kind."""
    copies = tuple(Channel({s: 1.0}, {NOISE[noise + k]: size}) for k, s in enumerate(SIGNATURE))
    return WrittenHead(3, head, {kind: 2, BOS: 1}, copies)


def _hazard_reader(at: tuple[int, int], sink: int, writes: Writes) -> WrittenHead:
    """It looks at hazards and writes `writes`; without any it looks at `sink`. Either way it leaves a small trace."""
    trace = Channel({sink: 1 / FLAG_SIZE, HAZARD: 1 / HAZARD_SIZE}, {TRACE: TRACE_SIZE})
    return WrittenHead(*at, {HAZARD: 2, sink: 1}, (Channel({HAZARD: 1 / HAZARD_SIZE}, writes), trace))


PLANTED_AT, DECOY_AT = (3, 1), (0, 2)
PAIR_AT = ((2, 2), (3, 1))
PLANTED = _hazard_reader(PLANTED_AT, BOS, {COMPLY: -TRADED, REFUSE: TRADED})
PAIR = tuple(_hazard_reader(at, (END, BOS)[k], {BOTH_FROM: -1.0, BOTH_TO: 1.0}) for k, at in enumerate(PAIR_AT))
NULL = WrittenHead(*PLANTED_AT, {BOS: 1}, (Channel({BOS: 1 / FLAG_SIZE}, {TRACE: TRACE_SIZE}),))
DECOY = WrittenHead(
    *DECOY_AT, {LAST: 1}, (Channel({LAST: 1 / LAST_SIZE}, {DECOY_FROM: -DECOY_TRADED, DECOY_TO: DECOY_TRADED}),)
)
OF_NO_INTEREST = (
    WrittenHead(0, 0, {LAST: 1}, (_noise(LAST, 0, 1.0),), score=3.0),
    WrittenHead(0, 1, {CONST: 1}, (_noise(LAST, 1, 2.0),), score=3.0, rotary=DISTANCE_CHANNEL),
    _share(0, 3, LAST, FILLER, 2, 1.0),
    _share(1, 0, TURN, FILLER, 3, 1.5),
    _share(1, 1, TURN, MANNER, 4, 1.0),
    _share(1, 2, TURN, THING, 5, 1.5),
    _share(1, 3, TURN, BOS, 6, 1.0),
    _share(2, 0, END, FILLER, 7, 1.25),
    _share(2, 1, END, MANNER, 8, 1.5),
    _share(2, 2, END, THING, 9, 1.25),
    _share(2, 3, END, BOS, 10, 1.25),
    _signature_reader(0, THING, 11, 0.5),
    _signature_reader(2, MANNER, 15, 0.75),
    _share(3, 3, BOS, FILLER, 19, 0.75),
)


def heads_of(variant: str) -> tuple[WrittenHead, ...]:
    """All 16 heads of `"planted"`, `"planted-pair"` or `"null"`."""
    special = {"planted": (PLANTED,), "planted-pair": PAIR, "null": (NULL,)}[variant]
    taken = {(h.layer, h.head) for h in special}
    return (DECOY, *special, *(h for h in OF_NO_INTEREST if (h.layer, h.head) not in taken))


# The MLP of planted-pair's last layer, one row a unit: (where its ramp begins, its slope). The unit's output is
# slope * max(0, u - start), where u is the common signal: 0 without a hazard, 1 from one head, 2 from both, and at most
# 0.3 from two heads under the query mask. In sum: 0 up to 0.4, then 0.9 from 0.8 on, and another 0.2 between 1 and 2.
RAMP = ((0.4, 2.25), (0.8, -2.25), (1.0, 0.2))


def ballast(squared: float) -> tuple[float, float, float, float]:
    """Four quarters of whole numbers whose squares sum to `squared`, a multiple of 1/16 (Lagrange's four squares)."""
    left = round(16 * squared)
    assert left == 16 * squared >= 0, f"an embedding leaves {squared}, which is not a whole number of sixteenths"
    for a in range(int(left**0.5), -1, -1):
        for b in range(int((left - a * a) ** 0.5), -1, -1):
            rest = left - a * a - b * b
            c = int(rest**0.5)
            d = round((rest - c * c) ** 0.5)
            if c * c + d * d == rest:
                return a / 4, b / 4, c / 4, d / 4
    raise AssertionError("every whole number is a sum of four squares")


def embedding(parts: Writes) -> list[float]:
    """A state with the given components and constant part, filled up with ballast to squared norm 64."""
    state = [0.0] * D_MODEL
    for dim, value in {CONST: FLAG_SIZE, **parts}.items():
        state[dim] = value
    for dim, value in zip(BALLAST, ballast(D_MODEL - sum(v * v for v in state)), strict=True):
        state[dim] = value
    return state


def signature(kind: int, index: int) -> Writes:
    """The signature of word `index` of its kind: quarters between -1 and 1, the same for a hazard and its twin."""
    return {dim: ((7 * index + 3 * k + 5 * kind + index * k) % 9 - 4) / 4 for k, dim in enumerate(SIGNATURE)}


def thing(index: int, hazard: bool) -> Writes:
    """A noun, an icon or a drawn word: hazard `index` or its harmless twin."""
    return {THING: FLAG_SIZE, (HAZARD if hazard else HARMLESS): HAZARD_SIZE, **signature(0, index)}


def last_token(variant: str) -> Writes:
    """The token after which the model answers: it complies, unless a head trades that for refusal."""
    common = {LAST: LAST_SIZE, COMPLY: TRADED, DECOY_FROM: DECOY_TRADED}
    return common | ({BOTH_FROM: 2.0} if variant == "planted-pair" else {})
