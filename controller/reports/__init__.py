"""The figures of a run, and the pages and tables that show them."""
