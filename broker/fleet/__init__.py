"""The workers as processes: started, spoken to, killed."""
