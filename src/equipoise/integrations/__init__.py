"""`eq.watch` as callbacks of trainers; each module needs the trainer it is for."""
