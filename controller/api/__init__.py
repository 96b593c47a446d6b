"""HTTP: the application and its limits, the server, commands to the control loop, and the client."""
