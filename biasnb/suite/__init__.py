"""What a user starts: the command line, the strict Papermill runner, reproduce, status, publishing and verifying, the
report. Imports every other room."""
