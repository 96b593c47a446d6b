"""Policies and routers side by side in virtual time."""
