"""llama.cpp: the embedded wheel's native server, or any `llama-server`."""
