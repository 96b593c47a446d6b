"""The state machine: messages in, messages and history entries out; no file, socket, thread, log or clock."""
