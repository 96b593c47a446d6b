"""All code that depends on vLLM: plugin, scheduler control, request events, contract, virtual GPU."""
