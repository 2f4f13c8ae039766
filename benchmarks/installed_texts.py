"""English that lies on every machine with this package: docstrings of the Python packages that are installed here.

Used where a measurement runs without a network and was given no --texts. Nothing of it is kept. What is shorter than
200 characters, or more than a third signs and digits, is left out, and so is what was there before.
"""

import ast
import inspect
import re
import sysconfig
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "networkx",
    "pandas",
    "huggingface_hub",
    "altair",
    "rich",
    "sympy",
)
SHORTEST, WORDS = 200, 2 / 3


def installed_texts(most: int = 30_000_000) -> list[str]:
    """Docstrings, one text a module, up to so many characters; always in the same order on one machine."""
    paths = sysconfig.get_paths()
    folders = [Path(paths["stdlib"]), *(Path(paths["purelib"]) / name for name in PACKAGES)]
    texts, seen, size = list[str](), set[str](), 0
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            if folder.name != "site-packages" and "site-packages" in file.relative_to(folder).parts:
                continue
            text = "\n\n".join(kept for kept in docstrings(file) if not (kept in seen or seen.add(kept)))
            if text:
                texts.append(text)
                size += len(text)
            if size > most:
                return texts
    return texts


def docstrings(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, RecursionError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    cleaned = [re.sub(r"[ \t]+", " ", inspect.cleandoc(text)) for text in found]
    return [text for text in cleaned if len(text) >= SHORTEST and prose(text)]


def prose(text: str) -> bool:
    return sum(c.isalpha() or c == " " for c in text) >= WORDS * len(text)


def parted(texts: list[str], every: int = 20) -> tuple[list[str], list[str]]:
    """Texts to train on, and every so manieth, held out."""
    return [text for i, text in enumerate(texts) if i % every], texts[::every]


if __name__ == "__main__":
    found = installed_texts()
    print(f"{len(found):,} texts, {sum(map(len, found)):,} characters")
