"""MatCalc's side of `elasticity.py`: elastic moduli with SevenNet's own calculator, one crystal after another.

    PYTHON tests/benchmarks/elasticity_matcalc.py GIVEN.json MADE.json

PYTHON is the interpreter of an environment of its own, made with `pip install torch==2.13.0 && pip install
sevenn==0.13.0 matcalc torch==2.13.0`. GIVEN holds the name of the model, the cells, and arguments of `ElasticityCalc`;
MADE receives the CPU time of all crystals, in seconds, and their moduli K and G (GPa), NaN where MatCalc fails.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from matcalc import ElasticityCalc
from pymatgen.core import Structure
from sevenn.calculator import SevenNetCalculator

EV_PER_A3 = 160.21766208  # GPa


def moduli(calculation: Any, cell: dict[str, Any]) -> list[float]:
    """Bulk and shear modulus of a crystal, GPa."""
    structure = Structure(cell["cell"], cell["numbers"], cell["frac"])
    try:
        found = calculation.calc(structure)
    except Exception as error:  # noqa: BLE001 - MatCalc fails for some crystals
        print(f"{structure.formula}: {type(error).__name__}: {error}", file=sys.stderr)
        return [float("nan"), float("nan")]
    return [EV_PER_A3 * float(found["bulk_modulus_vrh"]), EV_PER_A3 * float(found["shear_modulus_vrh"])]


def main() -> None:
    """Compute all crystals of the given file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given = json.loads(Path(sys.argv[1]).read_text())
    calculation = ElasticityCalc(SevenNetCalculator(given["model"], device="cpu"), **given["settings"])
    moduli(calculation, given["cells"][0])  # warm-up
    begin = time.process_time()
    found = [moduli(calculation, cell) for cell in given["cells"]]
    Path(sys.argv[2]).write_text(json.dumps({"seconds": time.process_time() - begin, "moduli": found}))


if __name__ == "__main__":
    main()
