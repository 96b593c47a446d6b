"""Who may open the dashboard: names that it is served under, login, roles; between the network and Streamlit."""
