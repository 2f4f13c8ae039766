"""Plain English from Debian packages for training and checking dictionaries; none of it is kept in the repository.

    apt-get download anarchism debian-handbook dict-foldoc dict-gcide fortunes jargon-text linux-doc-6.1 python3.11-doc
    for f in *.deb; do dpkg -x $f unpacked; done
    python benchmarks/dictionary_texts.py unpacked texts

writes texts/train/*.txt and texts/held_out/*.txt: of every source at most `SIZE` characters, and every tenth of its
pieces (files, or stretches of a long file) held out.
"""

import gzip
import re
import sys
from pathlib import Path

SIZE, PIECE, TENTH = 1_600_000, 20_000, 10
SOURCES = {
    "politics": "usr/share/doc/anarchism/markdown/*.md.gz",
    "administration": "usr/share/doc/debian-handbook/html/en-US/*.html",
    "computing": "usr/share/dictd/foldoc.dict.dz",
    "dictionary": "usr/share/dictd/gcide.dict.dz",
    "quotations": "usr/share/games/fortunes/*",
    "jargon": "usr/share/doc/jargon-text/jargon.txt.gz",
    "kernel": "usr/share/doc/linux-doc-6.1/Documentation/admin-guide/**/*.rst.gz",
    "python": "usr/share/doc/python3.11/html/_sources/**/*.rst.txt",
}


def text(path: Path) -> str:
    raw = path.read_bytes()
    words = (gzip.decompress(raw) if path.suffix in (".gz", ".dz") else raw).decode("utf-8", "replace")
    if path.suffix == ".html":
        words = re.sub(r"(?s)<(script|style|head).*?</\1>|<[^>]+>", " ", words)
    words = re.sub(r"\]\([^)]*\)|[\[\]]", "", words) if ".md" in path.name else words
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", words))


def pieces(root: Path, pattern: str) -> list[str]:
    files = sorted(path for path in root.glob(pattern) if path.is_file() and path.suffix not in (".dat", ".u8"))
    whole = [text(path) for path in files if not path.is_symlink()]
    cut = [words[i : i + PIECE] for words in whole for i in range(0, len(words), PIECE)]
    step = max(1, sum(map(len, cut)) // SIZE)
    return cut[::step]


def main(root: Path, out: Path) -> None:
    for part in ("train", "held_out"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for name, pattern in SOURCES.items():
        found = pieces(root, pattern)
        held = found[TENTH - 1 :: TENTH]
        read = [piece for i, piece in enumerate(found) if i % TENTH != TENTH - 1]
        (out / "train" / f"{name}.txt").write_text("\n\n".join(read))
        (out / "held_out" / f"{name}.txt").write_text("\n\n".join(held))
        print(f"{name:15s} {len(found):5d} pieces, {sum(map(len, read)):,} + {sum(map(len, held)):,} characters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
