"""What a run leaves behind: its key, its files (whole at any moment, locked while it is trained), the sweeps that notebooks ask
for, and what the numbers were made with. Imports the configuration only, and no torch: tables, figures and claims are made
from this room alone."""
