"""Run commands in an interactive bash on a terminal of its own, with job control, as a user does.

python tests/terminal.py python curation/run.py     # shows what it prints; ends with its exit code
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import sys
import time
from pathlib import Path

PROMPT = "ready> "
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """An interactive bash that is the leader of a terminal of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.seen = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            bash = ["bash", "--norc", "--noprofile", "-i"]
            os.execvpe("bash", bash, environment | {"PS1": PROMPT, "TERM": "xterm"})
        self.wait_for(PROMPT, 30)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, pattern: str, timeout_s: float) -> str:
        """What came on the screen until a regex matched; TimeoutError with all of it otherwise."""
        start, end_s = len(self.seen), time.monotonic() + timeout_s
        while True:
            shown = CONTROL.sub(b"", self.seen[start:]).decode(errors="replace")
            if re.search(pattern, shown):
                return shown
            left_s = end_s - time.monotonic()
            if left_s <= 0 or not select.select([self.master], [], [], left_s)[0]:
                raise TimeoutError(
                    f"no {pattern!r} in {timeout_s:g} s; the screen:\n{shown[-3000:]}"
                )
            self.seen += os.read(self.master, 65536)

    def run(self, command: str, timeout_s: float) -> tuple[int, str]:
        """A command's exit code and what it showed."""
        # The echo of what is typed must not look like the end.
        self.type(f"{command}; echo code''=$?\n")
        shown = self.wait_for(rf"code=\d+\s+{PROMPT}", timeout_s)
        return int(re.findall(r"code=(\d+)", shown)[-1]), shown

    def close(self) -> None:
        os.close(self.master)  # hangs up: the shell and its jobs end
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def main() -> None:
    terminal = Terminal(Path.cwd(), dict(os.environ))
    try:
        code, shown = terminal.run(shlex.join(sys.argv[1:]), timeout_s=600)
    finally:
        terminal.close()
    print(shown)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
