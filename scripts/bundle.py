"""Whether the app's script in the package is what the sources in viewer/ build; --write builds it.

Where node and the packages of viewer/ are there, the script is built and compared. Elsewhere the hash of the sources,
which was written down when the script was built, is compared.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VIEWER, SCRIPT, NOTE = ROOT / "viewer", ROOT / "circuitome/present/assets/app.js", ROOT / "viewer/built-from.txt"
VITE = VIEWER / "node_modules/vite/bin/vite.js"


def sources_hash() -> str:
    """SHA-256 over names and bytes of all that the script is built from, and of the script itself."""
    files = sorted([*VIEWER.glob("src/*"), *VIEWER.glob("*.json"), VIEWER / "vite.config.js", SCRIPT])
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(ROOT).as_posix()} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def built(folder: Path) -> bytes:
    """The script that the sources build."""
    command = ["node", str(VITE), "build", "--outDir", str(folder), "--logLevel", "error"]
    subprocess.run(command, cwd=VIEWER, check=True)
    return (folder / "app.js").read_bytes()


def main() -> int:
    """0 where the script is what the sources build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="build the script and write it into the package")
    arguments = parser.parse_args()
    node = shutil.which("node") is not None and VITE.is_file()
    if arguments.write and not node:
        print("Building needs node: cd viewer && npm ci", file=sys.stderr)
        return 1
    if node:
        with tempfile.TemporaryDirectory() as folder:
            script = built(Path(folder))
        if arguments.write:
            SCRIPT.write_bytes(script)
            NOTE.write_text(sources_hash() + "\n", encoding="utf-8")
        elif script != SCRIPT.read_bytes():
            print("app.js is not what viewer/ builds. Run: python scripts/bundle.py --write", file=sys.stderr)
            return 1
    if NOTE.read_text("utf-8").strip() != sources_hash():
        print("viewer/ has changed since app.js was built. Run: python scripts/bundle.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
