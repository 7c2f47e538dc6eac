"""Environments for the trainers we are compared with: each in a cache directory, never in the project's own.

The baseline gets the torch and transformers of this process, so that only the trainers differ. The first call
downloads some hundred megabytes; `BENCH_PIP_ARGS` goes to pip, for example
`--extra-index-url https://download.pytorch.org/whl/cpu` for the CPU build of torch.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

# The last release that still trains with PPO.
TRL_PPO = "trl==1.12.0"
# The newest release on 2026-11-24, for its RewardTrainer.
TRL_REWARD = "trl==1.16.0"


def baseline_python(*requirements: str) -> Path:
    """The interpreter of an environment with these packages; made once, then found.

    Raises:
        SystemExit: pip could not install them; its own message stands above.
    """
    wanted = sorted([*requirements, *(f"{name}=={_public(name)}" for name in ("torch", "transformers"))])
    key = hashlib.sha256("\n".join([*wanted, sys.version]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf-orchestrator" / "benchmarks"
    folder, lock = cache / f"venv-{key}", cache / f"venv-{key}.lock"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(lock):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            print(f"making {folder} with {', '.join(wanted)}; this downloads some hundred megabytes", flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            extra = shlex.split(os.environ.get("BENCH_PIP_ARGS", ""))
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            done = subprocess.run([*pip, *extra, *wanted])
            if done.returncode:
                sys.exit(f"error: pip could not install {', '.join(wanted)}. Set BENCH_PIP_ARGS to name an index.")
            (folder / "complete").write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def _public(name: str) -> str:
    """The installed version without its local part: "2.13.0+cpu" is 2.13.0 to an index."""
    return version(name).split("+")[0]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time; two benchmarks may want the same environment."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
