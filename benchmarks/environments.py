"""Environments of their own for what is measured beside us: a peer's packages over those that are here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def environment(folder: Path, packages: Sequence[str], variables: Mapping[str, str] | None = None) -> Path:
    """Its Python, made if it is not there. `variables`: of the installation, for what is compiled. Raises CalledProcessError
    where packages cannot be installed."""
    folder = folder.absolute()
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    own = next((folder / "lib").glob("python*")) / "site-packages"
    seen = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (own / "these.pth").write_text("\n".join(seen) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *packages]
    subprocess.run(pip, check=True, env={**os.environ, **(variables or {})})
    (folder / "ready").touch()
    return python
