"""Workers that run as jobs of a batch system: Slurm, PBS, LSF or Grid Engine."""
