"""What Python answers the explorer's questions: values of heads, attention, next tokens, replies."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.axes import as_head, as_heads
from workbench.errors import WorkbenchError
from workbench.views.explorer.desk import Desk, Overtaken, Question
from workbench.views.explorer.packing import Packed
from workbench.views.explorer.stored import Stored

if TYPE_CHECKING:  # looking at stored data takes no torch
    from workbench.detectors.one_head import OneHeadDetector
    from workbench.models.masks import Mask
    from workbench.views.explorer.inspector import Inspector

# The most urgent first: what stands beside the maps, then what was asked for by name, and replies last.
ORDER = ("look", "box", "pattern", "score", "keep", "try")
Send = Callable[[dict[str, Any], bytes], None]


class Answers:
    """Answers one question at a time and sends what it finds, piece by piece.

    Attributes:
        desk: Where questions wait.
        detectors: Those kept so far.
    """

    def __init__(self, runs: Sequence[Stored], inspectors: "Sequence[Inspector | None]", send: Send) -> None:
        self._runs, self._inspectors, self._send = runs, inspectors, send
        self.desk = Desk(self._answer, ORDER)
        self.detectors: list[OneHeadDetector] = []

    def __repr__(self) -> str:
        return f"Answers({len(self._runs)} runs)"

    def heard(self, message: Any, buffers: Sequence[Any] = ()) -> None:
        """A message of the browser; what is no question of ours is passed over."""
        kind = message.get("ask") if isinstance(message, dict) else None
        if kind == "stop":
            self.desk.stop("try")
        elif kind in ORDER:
            self.desk.ask(kind, message | {"files": [bytes(part) for part in buffers]})

    def _answer(self, kind: str, question: Question) -> None:
        try:
            {
                "look": self._look,
                "box": self._box,
                "pattern": self._pattern,
                "score": self._score,
                "keep": self._keep,
                "try": self._try,
            }[kind](question)
        except Overtaken:
            raise
        except WorkbenchError as mistake:
            self._say(question, "error", error=str(mistake))
        except Exception as fault:  # noqa: BLE001 - a thread has no caller: what is not shown here is lost
            self._say(
                question, "error", error=f"This part failed ({type(fault).__name__}: {fault}). The rest still works."
            )
        if kind == "try":
            self._send({"kind": "try", "serial": question.get("serial"), "note": "", "done": True}, b"")

    def _say(self, question: Question, kind: str, data: bytes = b"", **what: Any) -> None:
        self._send({"kind": kind, "to": question.get("ask"), "id": question.get("id"), **what}, data)

    def _look(self, question: Question) -> None:
        side, at = question["side"], question["at"]
        self._say(question, "error", error="")
        self._say_stored(question, side)
        inspector = self._inspectors[side["run"]]
        if inspector is None or not inspector.knows(at["prompt"]):
            return
        if question.get("prompt"):
            about, picture = inspector.described(question["prompt"])
            self._say(question, "prompt", picture, prompt=question["prompt"], about=about)
        for layer in {as_head(head)[0]: None for head in question.get("rows") or ()}:
            if self.desk.stopped("look"):
                return
            rows = inspector.rows(at["prompt"], layer, at["position"])
            where = "last" if at["position"] is None else at["position"]
            self._say(question, "rows", rows.astype(np.float32).tobytes(), key=f"{at['prompt']}/{where}/{layer}")
        if question.get("next") and not self.desk.stopped("look"):
            head = as_head(question["next"])
            rows_, _ = inspector.next_tokens(inspector.prompts[at["prompt"]], [head], side["projection"])
            key = f"{at['prompt']}/{head[0]},{head[1]}/{side['projection']}"
            self._say(question, "next", key=key, rows=rows_)

    def _say_stored(self, question: Question, side: dict[str, Any]) -> None:
        run, packed = self._runs[side["run"]], Packed()
        for place, *head in question.get("values") or ():
            self._runs[place].pack_values(packed, place, side["criterion"], as_head(head))
        if question.get("stable"):
            rule, k = question["stable"]
            shown = [
                str(p) for p in run.scores.loc[run.scores["criterion"] == side["criterion"], "projection"].unique()
            ]
            for projection in shown:
                stable = run.stability(side["criterion"], projection, rule, int(k))
                packed.add(f"{side['run']}/{side['criterion']}/{projection}/stable/{rule}/{k}", stable)
        if packed.record["arrays"]:
            self._say(question, "values", packed.data, packed=packed.record)

    def _box(self, question: Question) -> None:
        inspector = self._inspector(question)
        found = inspector.most_on(question["prompt"], question["keys"], question["position"])
        heads, shares = zip(*found, strict=True)
        self._say(question, "box", heads=heads, shares=shares, tokens=len(question["keys"]))

    def _pattern(self, question: Question) -> None:
        head = as_head(question["head"])
        cells = self._inspector(question).pattern(question["prompt"], head)
        steps = np.rint(65535 * cells).astype(np.uint16)
        self._say(question, "pattern", steps.tobytes(), key=f"{question['prompt']}/{head[0]},{head[1]}")

    def _inspector(self, question: Question) -> "Inspector":
        """Of the first run that has a model, and the prompt among its prompts."""
        wanted = question.get("prompt")
        for inspector in self._inspectors:
            if inspector is not None and (wanted is None or inspector.knows(wanted)):
                return inspector
        raise WorkbenchError(
            "This needs the model of the run and its prompts: wb.explore(run, model=model, prompts=prompts)."
        )

    def _score(self, question: Question) -> None:
        run, name, packed = self._runs[question["run"]], str(question["criterion"]), Packed()
        run.add_criterion(name)
        run.pack_scores(packed, question["run"], [name], rule=question["rule"], k=int(question["k"]))
        about = {"run": question["run"], "criteria": run.criteria()}
        self._say(question, "scores", packed.data, packed=packed.record, **about)

    def _keep(self, question: Question) -> None:
        """Fit the one-head detector that a threshold was chosen for, and hand it to the board."""
        from workbench.detectors.one_head import OneHeadDetector

        names = ("criterion", "projection")
        asked: dict[str, Any] = {name: str(question[name]) for name in names}
        detector = OneHeadDetector(head=as_head(question["head"]), threshold=float(question["bound"]), **asked)
        self.detectors.append(detector.fit_run(self._runs[question["run"]].run))
        where = f"board.detectors[{len(self.detectors) - 1}]"
        self._say(question, "kept", words=f'Kept as {where}; {where}.save("guard") writes it.')

    def _try(self, question: Question) -> None:
        """The next tokens, then both replies as they are decoded, each piece as it comes."""
        from workbench.views.explorer.inspector import altered

        inspector = self._inspector(question)
        serial = question["serial"]
        text, heads = str(question.get("text") or ""), as_heads(question["heads"])
        prompt = altered(
            inspector.prompts[question["prompt"]],
            text,
            str(question.get("picture")),
            box=question.get("box"),
            files=question["files"],
        )
        mask = _mask(inspector, question)
        projection = question["projection"] if question["projection"] in mask.able else mask.able[0]

        def send(piece: str | None = None, **what: Any) -> None:
            said = {} if piece is None else {"piece": piece}
            self._send({"kind": "try", "serial": serial, **said, **what}, b"")

        def stop() -> bool:
            self.desk.give_way("try")
            return self.desk.stopped("try")

        rows, changed = inspector.next_tokens(prompt, heads, projection, mask=mask)
        send(next=rows, measures=changed if heads else None, note="Decoding …", restart=True)
        for masked in (False, True)[: 2 if heads else 1]:
            if not self.desk.stopped("try"):
                side = "masked" if masked else "base"
                say = partial(send, side=side)
                name = inspector.reply(prompt, heads, projection, mask=mask, masked=masked, say=say, stop=stop)
                if not stop():
                    send(side=side, steps=inspector.steps(name))


def _mask(inspector: "Inspector", question: Question) -> "Mask":
    """The run's mask, or the one that was chosen in the browser; at the run's grain."""
    mask = inspector.mask
    form = question.get("form")
    if not form:
        return mask
    from workbench.models.masks import Mask

    positions: Any = question.get("positions") or "all"
    if form == mask.form:
        return replace(mask, positions=positions)
    factor = float(question.get("factor") or 0) if form == "scale" else 0.0
    return inspector.taking(Mask(form=form, factor=factor, grain=mask.grain, positions=positions))
