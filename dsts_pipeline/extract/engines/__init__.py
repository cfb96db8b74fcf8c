"""Ways to spread an extraction over processes and machines.

Processes that share the store's folder need no engine: each runs `extract_features`, and locks on
shards keep them apart (`torchrun`, a SLURM array, the same command in two terminals). `cluster`
spreads decoding as well, over the machines of a Ray cluster.
"""
