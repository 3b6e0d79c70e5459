# SPDX-License-Identifier: Apache-2.0
"""The repository is self-contained: no machine, no registry and no secret in any file."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SPDX = "SPDX-License-Identifier: Apache-2.0"

FORBIDDEN = {
    # A user's home or working directory. Paths in containers and in /tmp are not tied to a machine.
    "a path of one machine": re.compile(r"(?<![\w.:/-])/(?:home|root|Users|work|mnt|workspace)/[\w.-]+"),
    "the address of a package index": re.compile(
        r"https?://[^\s\"'<>]*(?:/simple\b|pypi\.org/simple|files\.pythonhosted\.org|artifactory|/pypi/)|"
        r"--(?:extra-)?index-url\s*[=\s]\s*\S+|--find-links\s*[=\s]\s*\S+",
        re.IGNORECASE,
    ),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"),
    "a cloud key": re.compile(r"\b(?:AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,})"),
    "a token": re.compile(r"\b(?:gh[pousr]_[0-9A-Za-z]{30,}|glpat-[\w-]{20,}|xox[abp]-[\w-]{10,}|sk-[\w-]{32,})"),
    "a bearer token": re.compile(r"Bearer\s+(?=[\w.~+/-]*\d)[A-Za-z0-9._~+/-]{24,}"),
    # "user" is not a real account: a test uses it to show how such a link is handled.
    "a link with credentials": re.compile(r"https?://(?!user:)[^\s/@:{}<>\"'$]+:[^\s/@{}<>\"'$]{6,}@"),
}


def _files() -> list[Path]:
    """Return the files that are in the repository, or would be after the next commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git repository, so there is no list of its files")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_contains(what: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()[:60]}"
        for file in _files()
        if file != Path(__file__).resolve() and (text := _text(file)) is not None
        for match in FORBIDDEN[what].finditer(text)
    ]
    assert not found, f"{what} is in:\n" + "\n".join(found)


def test_every_source_file_names_its_licence() -> None:
    sources = [f for f in _files() if f.suffix in (".py", ".sh") or f.parent.name == ".ci"]
    without = [
        str(file.relative_to(ROOT)) for file in sources if SPDX not in "\n".join((_text(file) or "").splitlines()[:3])
    ]
    assert not without


def test_constraints_are_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin)] == []


def test_every_development_requirement_is_pinned() -> None:
    def names(file: str) -> set[str]:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        return {re.sub(r"[-_.]+", "-", re.split(r"[=<>\[;]", x)[0].strip()).lower() for x in lines if x[:1] not in "#"}

    assert names("requirements-dev.txt") - names("constraints.txt") == set()
