"""Authenticated encrypted channels: identities, handshakes, records, streams. Bytes only."""
