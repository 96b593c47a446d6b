"""What a request says about its service in headers and body, checked, and written where vLLM's scheduler sees it."""
