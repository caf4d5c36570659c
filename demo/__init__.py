"""The main job, end to end, on alloys whose energies are known: ASE's EMT is both the teacher and the judge."""

from .job import DemoReport, run_demo

__all__ = ["DemoReport", "run_demo"]
