"""Every place that knows vLLM: plugin, scheduler control, request events, contract, virtual GPU."""
