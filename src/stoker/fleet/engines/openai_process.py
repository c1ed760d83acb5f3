"""Any OpenAI-compatible server: a command of the user's, or a URL."""
