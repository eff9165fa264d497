"""Find a Chromium that starts, for the browser tests; `--install` gets one when there is none.

Looked for in this order: WORKBENCH_BROWSER, the system's, Playwright's own download. Then, with `--install`: the Debian
package where this runs as root (it brings the libraries the browser needs), else Playwright's download.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SYSTEM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "chromium-driver")
ADVICE = (
    "No browser was found for the browser tests. Do one of these, then run `make test` again:\n"
    "  - install Chromium or Chrome with the system's package manager (Debian, Ubuntu: apt-get install chromium)\n"
    "  - run: .venv/bin/python -m playwright install --with-deps chromium\n"
    "  - name one: make test WORKBENCH_BROWSER=/path/to/chromium\n"
    "Or leave those tests out: make test BROWSER=0"
)


def find() -> str | None:
    """The path of a browser that starts; None if there is none."""
    named = os.environ.get("WORKBENCH_BROWSER")
    if named:
        return named if starts(named) else None
    candidates = [shutil.which(name) for name in SYSTEM_NAMES] + [playwright_download()]
    return next((path for path in candidates if path and starts(path)), None)


def starts(path: str) -> bool:
    """Whether it answers to --version; some systems put a stub in its place that only advertises a package."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def playwright_download() -> str | None:
    """Where Playwright's own Chromium lies, if it was downloaded."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> None:
    """Get a browser by the ways this machine has; says what it does, and leaves the judgement to `find`."""
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        print("No browser found; installing the system's packages", *PACKAGES, flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", *arguments], env=environment, stdout=subprocess.DEVNULL, check=False)
        if find():
            return
    print("No browser found; downloading Playwright's own", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False, timeout=600)
    except subprocess.TimeoutExpired:
        print("The download did not end within ten minutes.", file=sys.stderr)


def main() -> int:
    path = find()
    if path is None and "--install" in sys.argv[1:] and not os.environ.get("WORKBENCH_BROWSER"):
        install()
        path = find()
    if path is None:
        print(ADVICE, file=sys.stderr)
        return 1
    print(f"Browser: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
