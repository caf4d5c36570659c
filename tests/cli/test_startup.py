"""The command line starts without the libraries that take long to import, proven in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# With their submodules these take 0.1 to 3 s of CPU each; a help page needs none of them.
HEAVY = ("numpy", "zarr", "xarray", "dask", "distributed", "torch", "ase", "pyarrow", "numba", "pymatgen")
SCRIPT = """
import json, sys
sys.argv = ["equiscreen", *json.loads(sys.argv[1])]
from equiscreen.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [("--help",), ("screen", "--help"), ("--version",)])
def test_help_imports_no_heavy_library(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    assert "typer" in imported
    assert not imported & set(HEAVY)
