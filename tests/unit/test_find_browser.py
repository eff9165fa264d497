"""The browser behind the browser tests: which is taken, how one is got, what is said when there is none."""

import os
import sys
from pathlib import Path

import pytest

from tests import find_browser


@pytest.fixture
def bin_folder(tmp_path, monkeypatch) -> Path:
    """An empty folder as the whole PATH, and no download of Playwright's."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WORKBENCH_BROWSER", raising=False)
    monkeypatch.setattr(find_browser, "playwright_download", lambda: None)
    monkeypatch.setattr(sys, "argv", ["find_browser.py", "--install"])
    return tmp_path


def program(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def test_a_stub_that_does_not_start_is_passed_over(bin_folder):
    program(bin_folder / "chromium-browser", "echo install it from the store; exit 1")
    assert find_browser.find() is None
    chrome = program(bin_folder / "google-chrome", "exit 0")
    assert find_browser.find() == chrome


def test_playwrights_download_comes_after_the_systems(bin_folder, monkeypatch):
    download = program(bin_folder / "downloaded", "exit 0")
    monkeypatch.setattr(find_browser, "playwright_download", lambda: download)
    assert find_browser.find() == download
    chromium = program(bin_folder / "chromium", "exit 0")
    assert find_browser.find() == chromium


def test_a_named_browser_is_not_replaced_by_another(bin_folder, monkeypatch, capsys):
    program(bin_folder / "chromium", "exit 0")
    monkeypatch.setenv("WORKBENCH_BROWSER", str(bin_folder / "missing"))
    assert find_browser.main() == 1
    assert "WORKBENCH_BROWSER" in capsys.readouterr().err


def test_root_gets_the_systems_package(bin_folder, monkeypatch, capfd):
    log = bin_folder / "log"
    there = f"printf '#!/bin/sh\\nexit 0\\n' > {bin_folder}/chromium && /bin/chmod +x {bin_folder}/chromium"
    program(bin_folder / "apt-get", f'echo "$@" >> {log}', f'[ "$1" = update ] || {{ {there}; }}')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert find_browser.main() == 0
    assert log.read_text().split("\n")[:2] == [
        "update -q",
        "install -y -q --no-install-recommends chromium chromium-driver",
    ]
    assert f"Browser: {bin_folder / 'chromium'}" in capfd.readouterr().out


def test_others_get_playwrights_and_are_told_when_it_fails(bin_folder, monkeypatch, capfd):
    program(bin_folder / "apt-get", f"echo called > {bin_folder}/apt-was")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "executable", program(bin_folder / "python", 'echo "asked: $@"; exit 1'))
    assert find_browser.main() == 1
    said = capfd.readouterr()
    assert not (bin_folder / "apt-was").exists()
    assert "asked: -m playwright install chromium" in said.out
    assert "apt-get install chromium" in said.err
    assert "make test BROWSER=0" in said.err
