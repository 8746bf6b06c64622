"""Plans: reading ablation plans, and finding what they name among a method's components."""
