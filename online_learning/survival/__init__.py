"""Length distributions as hazards, also from answers that were cut or still run."""
