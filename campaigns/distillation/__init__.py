"""Distillation: a small network learns the predictions of a large model for crystals of one chemistry.

`variants` makes the structures to label, `labelling` labels them on Dask workers (`worker`), `evaluation` compares the
student with its teacher on crystals that were held out, and `distill` runs all steps in one resumable folder.
"""
