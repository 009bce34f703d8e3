"""Sharded, isolated, sliced, aggregated: LoRA adapters from which a subject can be taken out exactly.

After Bourtoule et al. 2021, "Machine Unlearning" (arXiv 1912.03817): disjoint shards, each with its
own adapter (constituent), trained slice by slice with a checkpoint after each.
"""
