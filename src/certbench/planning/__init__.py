"""How :func:`certbench.plan.make` enumerates jobs, stage by stage."""
