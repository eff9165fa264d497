"""Replies: many at once, guarded by a detector, and judged."""

from workbench.replies.batches import generate_batch
from workbench.replies.guarded import Reply, generate
from workbench.replies.guards import RefusalRecipe, list_guards, make_guard, register_guard
from workbench.replies.judges import attack_success_rate, judge_agreement, judge_refusal, judge_replies

__all__ = [
    "RefusalRecipe",
    "Reply",
    "attack_success_rate",
    "generate",
    "generate_batch",
    "judge_agreement",
    "judge_refusal",
    "judge_replies",
    "list_guards",
    "make_guard",
    "register_guard",
]
