"""Rotary position embeddings in one fused kernel."""
