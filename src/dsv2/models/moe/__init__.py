"""DeepSeekMoE: router, balance losses, dropping, experts and dispatch, one file each."""
