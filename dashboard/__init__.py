"""The operator's view: a Streamlit application over the store's readers and the controller's HTTP API."""
