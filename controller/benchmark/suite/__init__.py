"""The suite: our objectives against every baseline on many kinds of traffic, with targets that hold or fail."""
