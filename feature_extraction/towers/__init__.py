"""Frozen networks from timm, from the Hugging Face hub, and of your own."""
