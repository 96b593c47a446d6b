"""The suite: our objectives against every rival on many kinds of traffic, with targets that hold or fail."""
