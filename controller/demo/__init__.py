"""Everything on one machine: an engine under load, the controller and the dashboard."""
