"""Plain texts to measure neurons on, made from Debian packages that `apt-get download` brings; none of it is ours.

    python benchmarks/plain_texts.py english FOLDER     # four sources of English, one file each
    python benchmarks/plain_texts.py languages FOLDER   # one help page in each language: LANGUAGE/PAGE.txt

Sources and licences: anarchism (essays, GPL-2), perl-doc (manual, Artistic or GPL-1+), fortunes (quotations, BSD and
public domain), libreoffice-help-LANGUAGE (software help, MPL-2.0 and LGPL-3+; pages of one name are translations).
"""

import argparse
import gzip
import re
import subprocess
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

LANGUAGES = ("en-us", "de", "es", "fr", "it", "ja", "pt", "zh-cn")
MOST = 1_600_000
"""Characters of a source of English at most, so that none of the four decides alone."""
SHORTEST, PAGES = 400, 600
"""Characters of the shortest English help page that is taken, and pages at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("english", "languages"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    {"english": english, "languages": languages}[options.part](options.folder)


def english(folder: Path) -> None:
    """One file a source."""
    sources: dict[str, tuple[str, Callable[[str], str]]] = {
        "anarchism": ("markdown/*.md.gz", from_markdown),
        "perl-doc": ("pod/*.pod", from_pod),
        "fortunes": ("fortunes/*[!tu8]", from_fortunes),
        "libreoffice-help-en-us": ("en-US/text/*.html", from_help),
    }
    for package, (pattern, plain) in sources.items():
        texts = (plain(text) for _, text in files(package, pattern))
        joined = "\n\n".join(text for text in texts if text)
        (folder / f"{package}.txt").write_text(joined[:MOST])
        print(f"{package}: {len(joined[:MOST]):,} of {len(joined):,} characters")


def languages(folder: Path) -> None:
    """Pages that every language has, one file each."""
    pages = {name: dict(files(f"libreoffice-help-{name}", "text/*.html")) for name in LANGUAGES}
    texts = {name: {page: from_help(raw) for page, raw in found.items()} for name, found in pages.items()}
    long = [page for page, text in texts["en-us"].items() if len(text) >= SHORTEST]
    kept = [page for page in long if all(page in texts[name] for name in LANGUAGES)]
    kept = kept[:: max(1, len(kept) // PAGES)][:PAGES]
    for name in LANGUAGES:
        (folder / name).mkdir(exist_ok=True)
        for page in kept:
            (folder / name / f"{page}.txt").write_text(texts[name][page])
    print(f"{len(kept)} pages in {', '.join(LANGUAGES)}")


def files(package: str, pattern: str) -> list[tuple[str, str]]:
    """Names, and texts, of the files of a package that lie somewhere below a folder like the pattern's."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["apt-get", "download", package], cwd=place, check=True, capture_output=True)
        archive = next(Path(place).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), f"{place}/unpacked"], check=True)
        top, last = pattern.rsplit("/", 1)
        found = sorted(file for folder in Path(place).rglob(top) for file in folder.rglob(last) if file.is_file())
        return [(named(file, top), read(file)) for file in found if not file.is_symlink()]


def named(file: Path, top: str) -> str:
    """A file's path below the pattern's folder, in one word."""
    parts = file.parts
    below = parts[len(parts) - parts[::-1].index(Path(top).name) :]
    return "-".join(below).split(".")[0]


def read(file: Path) -> str:
    raw = file.read_bytes()
    return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode(errors="replace")


def from_markdown(text: str) -> str:
    """Paragraphs on one line each, links as their words."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return paragraphs(re.sub(r"[*_#>]+", "", text))


def from_pod(text: str) -> str:
    """Paragraphs of prose: no commands, no code."""
    text = re.sub(r"^(=\w+.*|[ \t]+.*)$", "", text, flags=re.MULTILINE)
    for _ in range(3):
        text = re.sub(r"[A-Z]<+\s*([^<>|]*\|)?([^<>]*?)\s*>+", r"\2", text)
    return paragraphs(text)


def from_fortunes(text: str) -> str:
    return paragraphs(re.sub(r".\x08|^%$", "", text, flags=re.MULTILINE))


def paragraphs(text: str) -> str:
    """Paragraphs of several words, on one line each."""
    parts = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return "\n".join(part for part in parts if part.count(" ") > 3)


class Help(HTMLParser):
    """The paragraphs of a help page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.inside = self.code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Into the page's text, into code, and a new paragraph."""
        names = dict(attrs)
        self.inside += tag == "div" and (bool(self.inside) or names.get("id") == "DisplayArea")
        self.code += tag in ("pre", "code")
        if tag in ("p", "h1", "h2", "h3", "h4"):
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        """Out of them."""
        self.inside -= tag == "div" and bool(self.inside)
        self.code -= tag in ("pre", "code")

    def handle_data(self, data: str) -> None:
        """Words."""
        if self.inside and not self.code:
            self.parts.append(data)


def from_help(text: str) -> str:
    page = Help()
    page.feed(text)
    parts = (re.sub(r"\s+", " ", part).strip() for part in "".join(page.parts).split("\n\n"))
    return "\n".join(part for part in parts if len(part) > 3)


if __name__ == "__main__":
    main()
