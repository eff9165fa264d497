"""A process that dies at a given change of files: each line of its input is "engine, folder, number of the change".

Changes are opening a file to write, renaming, and making a folder, anywhere under the folder. They are seen by an
audit hook, so that no layout of the store, and no library beneath it, has to be known here. Number 0 never comes: the
answer is then how many changes there were; else it is the exit code of the process that was to die.
"""

import os
import signal
import sys
from pathlib import Path

CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
count, last, folder = 0, -1, "/nowhere"
busy = False


def watch(event: str, arguments: tuple) -> None:
    global count, busy
    if busy or event not in ("open", "os.rename", "os.mkdir"):
        return
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(folder):
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & CHANGING):
        return
    count += 1
    if count == last:
        if event == "open" and count % 2:
            busy = True  # it dies after the file was made, and before its bytes were
            Path(os.fsdecode(path)).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    global count, last, folder
    from tests.builders.models import tiny
    from tests.faults.harness import small_blocks, swept

    small_blocks()
    tiny()
    sys.addaudithook(watch)
    for line in sys.stdin:
        engine, out, number = line.split()
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            count, last, folder = 0, int(number), out
            swept(engine, Path(out))
            os.write(writing, str(count).encode())
            os._exit(0)
        os.close(writing)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        changes = os.read(reading, 100).decode()
        os.close(reading)
        print(changes if number == "0" and code == 0 else code, flush=True)


if __name__ == "__main__":
    main()
