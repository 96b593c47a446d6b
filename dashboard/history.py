"""The page *History*: what the store has recorded, whether the controller runs or not."""

from __future__ import annotations

import streamlit as st


def page() -> None:
    """Draw the page."""
    st.title("History")
