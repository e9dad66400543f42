"""Without a word of vouchers: Lua binding, named SQL, connections, signing, logging, metrics."""
