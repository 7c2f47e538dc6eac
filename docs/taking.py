"""What both scripts of pictures share: the browser, and a picture that is small enough to be kept in git."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, Playwright

# Pages have few colours; 128 of them are told from the original by nobody, in a third of the bytes.
COLOURS = 128


def chromium() -> str | None:
    """Where Chromium is: `ORCHESTRATOR_BROWSER`, or what the path has; None where there is none."""
    return os.environ.get("ORCHESTRATOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")


def launch(playwright: Playwright, path: str) -> Browser:
    """A browser; root has no sandbox, and the pages are our own."""
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])


def shoot(page: Page, folder: Path, name: str, *, full_page: bool = True) -> None:
    """One picture: the whole page, or what the window shows."""
    page.wait_for_load_state("networkidle")
    with Image.open(io.BytesIO(page.screenshot(full_page=full_page))) as taken:
        taken.convert("RGB").quantize(COLOURS).save(folder / f"{name}.png", optimize=True)
    print(folder / f"{name}.png")
