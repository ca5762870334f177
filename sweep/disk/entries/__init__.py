"""What a ledger is made of: lines with a checksum, texts that rows share, and what a run's other files say of them."""
