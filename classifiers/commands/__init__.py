"""The commands: hser-train, hser-evaluate, hser-predict, hser-lookup, hser-report."""
