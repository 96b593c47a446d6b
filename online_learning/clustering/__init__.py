"""Clusters of prompts: how they form, split, merge and retire."""
