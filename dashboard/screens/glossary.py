"""The glossary: every term of the pages, the metrics and the documents."""

from __future__ import annotations

import streamlit as st

from dashboard.text.glossary import GLOSSARY


def page() -> None:
    """Show all terms, or those that hold what the reader looks for."""
    st.title("Glossary")
    wanted = st.text_input("Find a term", placeholder="such as TTFT or reserve", key="term").strip().casefold()
    found = {term: text for term, text in GLOSSARY.items() if wanted in f"{term} {text}".casefold()}
    if not found:
        st.info("No term holds that. Try a shorter word.", icon=":material/info:")
    else:
        st.table({"Term": list(found), "Meaning": list(found.values())}, border="horizontal", hide_index=True)
