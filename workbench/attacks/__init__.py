"""What an adversary can do to a detector: move its score while the model goes on doing what it did.

A test bench for defences. Only a detector's score is optimised, and only under the condition that the model's own
next-token distribution stays where it was; nothing is optimised towards a reply, and no picture is written unless asked
for.
"""

from workbench.attacks.attack import attack

__all__ = ["attack"]
