"""Count code by room: lines that are no blank, comment or docstring. `--write` puts the table into ARCHITECTURE.md."""

import argparse
import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"


def code_lines(path: Path) -> int:
    """Lines of a file that hold code."""
    source = path.read_text("utf-8")
    skipped = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = {
        number
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in silent
        for number in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - skipped)


def by_room() -> dict[str, int]:
    """Code lines of each room of the package, and of the files above them."""
    package = ROOT / "circuitome"
    counts = {"(top)": sum(map(code_lines, package.glob("*.py")))}
    for room in sorted(path for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"):
        counts[room.name] = sum(map(code_lines, room.rglob("*.py")))
    return counts


def table() -> str:
    """The counts as a Markdown table."""
    counts = by_room()
    rows = [f"| {name} | {count:,} |" for name, count in counts.items()]
    return "\n".join(["| room | code lines |", "|---|---:|", *rows, f"| **all** | **{sum(counts.values()):,}** |"])


def main() -> None:
    """Print the table, or write it between the page's markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into ARCHITECTURE.md")
    if parser.parse_args().write:
        page = PAGE.read_text("utf-8")
        new = re.sub(r"(<!-- count -->\n).*?(<!-- /count -->)", lambda m: f"{m[1]}{table()}\n{m[2]}", page, flags=re.S)
        PAGE.write_text(new, "utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
