"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ..pipeline.store.dedup import Dedup

CandidateSources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Graph store (G.zarr) of the candidates, or its URL; structure files in any format that `equiscreen "
        "featurize` reads; or a scores dataset, whose structures are used (the relaxed ones if `equiscreen relax` "
        "wrote it).",
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing --out.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Use only this many structures, starting with the first.", show_default="all")
]
Estimate = Annotated[
    bool,
    typer.Option(
        help="Print the time, disk space and memory that the run would need, extrapolated from a sample, and exit."
    ),
]
Deduplication = Annotated[
    Dedup,
    typer.Option(
        help="Which structures count as duplicates: `exact` compares the cell, elements, coordinates, site order and "
        "labels; `crystal` recognises the same crystal regardless of the choice of unit cell, origin, orientation, "
        "site order or labels."
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Where to run: tcp://HOST:PORT or tls://HOST:PORT (a running Dask cluster); slurm:cluster.yaml, "
        "pbs:cluster.yaml, lsf:cluster.yaml or sge:cluster.yaml (jobs of a batch system, described by that file); or "
        "`threads` (in this process, for debugging).",
        show_default="one Dask worker process per core",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Device on which to evaluate models: cpu, cuda, cuda:N, or auto (a GPU if there is one). With cuda and "
        "auto, every GPU of this machine gets a worker. With +cpu appended, as in cuda+cpu, operations that have no "
        "GPU kernel run on the CPU; otherwise, a model with such operations is rejected."
    ),
]
AllowMixedDevices = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-devices",
        help="Accept workers, and parts of an interrupted run, with different kinds of devices or instruction sets, "
        "such as AVX2 and AVX-512. Without this option, they are refused, since their results differ by rounding.",
    ),
]
Dispersion = Annotated[
    Literal["none", "d3", "d3-atm"],
    typer.Option(
        help="Dispersion correction to add to the energies, forces and stresses of the model: d3 is DFT-D3 with "
        "Becke-Johnson damping for the model's functional (PBE or r2SCAN), like VASP's IVDW=12; d3-atm adds the "
        "three-body term, which takes about ten times as long as 7net-0. Energies are then comparable only with "
        "others that include the same correction. Needs `pip install 'equiscreen[properties]'`."
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        help="Start no new batches after this many hours of relaxation; run the same command again to resume.",
        show_default="no limit",
    ),
]
AllowExtrapolation = Annotated[
    bool,
    typer.Option(
        "--allow-extrapolation",
        help="Accept results even if atoms are implausibly close (judged by the model's training data or the covalent "
        "radii), a force is above 50 eV/angstrom or the energy is implausible. Without this option, such structures "
        "get the status extrapolating: they are left out of convex hulls, and `select` skips them or, if its filter "
        "admits them, ranks them last.",
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        help="Competing phases: pymatgen entries (.json, .json.gz), a scores dataset (.zarr), or a table (.csv, "
        ".csv.gz, .parquet) with the columns formula and either energy_per_atom or formation_energy_per_atom "
        "(eV/atom), and optionally scheme and either run_type or functional. Repeatable.",
        show_default="none: only the candidates and the elements compete, so energies above hull are lower bounds",
    ),
]
Scheme = Annotated[
    str | None,
    typer.Option(
        help="Energy scheme (DFT settings and energy corrections) to assume where none is stated, for example for "
        "table rows without `scheme` and entries without a run type. Choose mp-uncorrected, mp2020-corrected, omat24, "
        "matpes-pbe, r2scan, or own (any other scheme, such as your own DFT settings)."
    ),
]
Within = Annotated[
    float,
    typer.Option(
        min=0,
        help="Structures at most this far above the hull (eV/atom) count as near the hull. If the error of the "
        "model's energies above hull is known, the output also gives the probability that a "
        "structure is near the hull.",
    ),
]
MovedStore = Annotated[
    str | None,
    typer.Option(
        metavar="G.zarr",
        help="Graph store of the structures, if it has moved.",
        show_default="the path recorded in the scores",
    ),
]
