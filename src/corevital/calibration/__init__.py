"""What is normal for one model, learned from its own runs: numpy and pydantic, nothing else."""
