"""What a browser would ask the board, and what it hears."""


def ask(board, **question):
    """What Python says to one question, as (record, bytes)."""
    said = []
    board._answers._send = lambda record, data: said.append((record, data))
    board._answers.heard({"id": 1, **question})
    assert board._answers.desk.wait()
    return said


def look(board, prompt, head, **more):
    side = {"run": 0, "criterion": "deflection", "projection": "query"}
    at = {"prompt": prompt, "position": more.pop("position", None)}
    return ask(board, ask="look", side=side, at=at, prompt=prompt, rows=[head], next=head, **more)


def unsafe_prompt(run):
    return str(run["prompt"].values[run["label"].values == "unsafe"][0])
