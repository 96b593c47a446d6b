"""A hostile tester: clients with a ledger, faults that are injected and healed, and an audit of all that was seen."""
