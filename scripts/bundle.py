"""Whether the scripts in the package are what the sources in viewer/ build; --write builds them.

Where node and the packages of viewer/ are there, types are checked, and the scripts are built and compared. Elsewhere
the hash of the sources, which was written down when the scripts were built, is compared.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VIEWER, ASSETS, NOTE = ROOT / "viewer", ROOT / "circuitome/present/assets", ROOT / "viewer/built-from.txt"
SCRIPTS = {"app.js": "production", "report.js": "report"}
"""What is built, and the mode that builds it."""
PACKAGES = VIEWER / "node_modules"


def sources_hash() -> str:
    """SHA-256 over names and bytes of all that the scripts are built from, and of the scripts themselves."""
    sources = [path for path in VIEWER.glob("src/**/*") if path.is_file()]
    built_scripts = [ASSETS / name for name in SCRIPTS]
    digest = hashlib.sha256()
    for file in sorted([*sources, *VIEWER.glob("*.json"), VIEWER / "vite.config.js", *built_scripts]):
        digest.update(f"{file.relative_to(ROOT).as_posix()} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def node(*words: str) -> None:
    """Run a script of viewer/'s packages."""
    subprocess.run(["node", str(PACKAGES / words[0]), *words[1:]], cwd=VIEWER, check=True)


def built() -> dict[str, bytes]:
    """The scripts that the sources build, once their types are right."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        builds = [
            pool.submit(node, "vite/bin/vite.js", "build", "--mode", mode, "--outDir", folder, "--logLevel", "error")
            for mode in SCRIPTS.values()
        ]
        for job in (pool.submit(node, "typescript/bin/tsc", "--noEmit"), *builds):
            job.result()
        return {name: (Path(folder) / name).read_bytes() for name in SCRIPTS}


def main() -> int:
    """0 where the scripts are what the sources build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="build the scripts and write them into the package")
    arguments = parser.parse_args()
    builds = shutil.which("node") is not None and PACKAGES.is_dir()
    if arguments.write and not builds:
        print("Building needs node: cd viewer && npm ci", file=sys.stderr)
        return 1
    if builds:
        try:
            scripts = built()
        except subprocess.CalledProcessError:
            print("viewer/ does not build; what is wrong stands above.", file=sys.stderr)
            return 1
        if arguments.write:
            for name, script in scripts.items():
                (ASSETS / name).write_bytes(script)
            NOTE.write_text(sources_hash() + "\n", encoding="utf-8")
        elif old := [name for name, script in scripts.items() if script != (ASSETS / name).read_bytes()]:
            print(
                f"{' and '.join(old)}: not what viewer/ builds. Run: python scripts/bundle.py --write", file=sys.stderr
            )
            return 1
    if NOTE.read_text("utf-8").strip() != sources_hash():
        print(
            "viewer/ has changed since its scripts were built. Run: python scripts/bundle.py --write", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
