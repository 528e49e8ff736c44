"""The simulator: messages, the server's state as plain data, a loop in virtual time, and what drives them."""
