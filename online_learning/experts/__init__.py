"""The predictors that the mixture weighs."""
