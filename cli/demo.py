"""The command `demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..demo.acts import Act
from .options import Scheduler
from .terminal.account import account, shows_progress, tell, wants_json


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write; each act has its own subfolder.")] = Path(
        "equiscreen-demo"
    ),
    only: Annotated[Act | None, typer.Option(help="Run only this act.", show_default="both")] = None,
    candidates: Annotated[int, typer.Option(min=10, help="Number of new structures that act two screens.")] = 5000,
    training: Annotated[int, typer.Option(min=20, help="Number of structures that act two trains on.")] = 1500,
    epochs: Annotated[int, typer.Option(min=1, help="Number of training epochs in act two.")] = 30,
    overwrite: Annotated[bool, typer.Option(help="Replace earlier results of the same acts in --out.")] = False,
    scheduler: Scheduler = None,
) -> None:
    """Run the whole workflow on an example, in two acts.

    Act one, `published`, relaxes and ranks 75 intermetallics from the Materials Project with `equiscreen rank` and the
    published weights 7net-0, and compares their formation energies with those from DFT.

    Act two, `train`, labels alloys of seven metals with EMT (a cheap classical potential in ASE), trains a network on
    some of them, exports the network, and ranks the others with it (5,000 by default). EMT then checks the ranking.

    The demo needs `pip install 'equiscreen[demo]'`. The weights are part of the packages sevenn and equiscreen-models;
    if neither is installed and the cache does not hold the model, act one is skipped, act two still runs, and the exit
    code is 1.

    \b
    Example, a smaller act two:
        equiscreen demo --only train --candidates 500 --training 300 --epochs 10
    """
    from ..demo.job import SkippedAct, run_demo

    reports, complete = {}, True
    for report in run_demo(
        out,
        only=only,
        n_candidates=candidates,
        n_training=training,
        epochs=epochs,
        overwrite=overwrite,
        scheduler=scheduler,
        progress=shows_progress(),
        note=tell,
    ):
        if isinstance(report, SkippedAct):
            print(report, file=sys.stderr, flush=True)
            complete = False
        elif wants_json():
            reports[report.act] = report
        else:
            account(report)
    if wants_json():
        account("\n".join(map(str, reports.values())), reports)
    if not complete:
        raise typer.Exit(1)
