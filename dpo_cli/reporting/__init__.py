"""Reading runs back: what was run, how it went, what to worry about, which was best. Plain values; no torch."""
