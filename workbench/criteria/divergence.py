"""How far masking a head moves the next-token distribution at the last prompt position."""

import numpy as np

from workbench.criteria.registry import Criterion

CRITERIA = (
    Criterion.stored(
        "kl",
        name="ships",
        unit="nats",
        label="Ships (KL divergence)",
        direction="0 or more; KL(unmasked ‖ masked); larger = masking the head changes the answer more",
        source="Zhou et al., 'On the Role of Attention Heads in LLM Safety' (ICLR 2025, arXiv 2410.13708), section 3; "
        "ydyjya/SafetyHeadAttribution at 6203a04",
        quirks="Published with harmful prompts only (the sensitivity rule) and 1e-12 added to both probabilities; "
        "here the exact divergence, and safe prompts beside.",
    ),
    Criterion.stored(
        "js",
        unit="nats",
        label="Jensen-Shannon divergence",
        direction="0 to ln 2; larger = masking the head changes the answer more",
        source="this project, beside Ships",
    ),
    Criterion.stored(
        "tv",
        label="Total variation",
        direction="0 to 1; larger = masking the head moves more of the probability",
        source="this project, beside Ships",
    ),
    Criterion.stored(
        "top1_change",
        label="First token changed",
        direction="0 or 1 a prompt, a share over prompts; 1 = masking the head changes the most likely first token",
        source="this project, beside Ships",
    ),
    Criterion.stored(
        "refusal_change",
        unit="log-odds",
        label="Change of refusal log-odds",
        direction="masked − unmasked; negative = the head was helping to refuse, which the rules read as stronger",
        source="this project, beside Ships",
        strength=np.negative,
    ),
)
