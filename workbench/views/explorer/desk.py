"""Questions of the browser, answered one at a time beside the notebook's own cells; of each kind only the newest."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Question = Mapping[str, Any]
IDLE_SECONDS = 20.0


class Overtaken(Exception):
    """A question was asked that comes before the one being answered, which is taken up again after it."""


class Desk:
    """A thread that answers; it ends when nothing was asked for a while, and begins again with the next question.

    A question that waits is replaced by the next of its kind: an answer that nobody waits for any more is not
    worked out.

    Args:
        answer: Called with the kind and the question, never twice at once.
        order: The kinds, the most urgent first.
    """

    def __init__(self, answer: Callable[[str, Question], None], order: Sequence[str]) -> None:
        self._answer, self._order = answer, tuple(order)
        self._waiting: dict[str, Question] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._stopped: set[str] = set()

    def __repr__(self) -> str:
        return f"Desk({', '.join(self._waiting) or 'nothing waits'})"

    def ask(self, kind: str, question: Question) -> None:
        """Put a question in line, in place of one of its kind that still waits."""
        with self._changed:
            self._stopped.discard(kind)
            self._waiting[kind] = question
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="workbench explorer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def stop(self, kind: str) -> None:
        """Answer questions of this kind no further, until the next one is asked."""
        with self._changed:
            self._waiting.pop(kind, None)
            self._stopped.add(kind)

    def stopped(self, kind: str) -> bool:
        """Whether what is being answered is no longer wanted: stopped, or a newer one of its kind waits."""
        return kind in self._stopped or kind in self._waiting

    def give_way(self, kind: str) -> None:
        """Let more urgent questions through.

        Raises:
            Overtaken: One waits.
        """
        if any(other in self._waiting for other in self._order[: self._order.index(kind)]):
            raise Overtaken

    def wait(self, seconds: float = 60.0) -> bool:
        """Until everything that was asked is answered; whether it was, in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._waiting, IDLE_SECONDS):
                    self._thread = None
                    return
                kind = min(self._waiting, key=self._order.index)
                question = self._waiting.pop(kind)
                self._busy = True
            again = False
            try:
                self._answer(kind, question)
            except Overtaken:
                again = True
            with self._changed:
                self._busy = False
                if again and kind not in self._waiting and kind not in self._stopped:
                    self._waiting[kind] = question
                self._changed.notify_all()
